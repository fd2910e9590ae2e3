"""The commands predict and app."""

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from aimonk_hf.cli import flags
from aimonk_hf.errors import AimonkError
from aimonk_hf.storage import atomic_path, make_folder

if TYPE_CHECKING:
    from aimonk_hf.modeling.predict_files import ImageFiles, Results


def add_prediction_commands(command: flags.Command) -> None:
    """Add the commands to the parser."""
    predict = command("predict", _predict, "print the attributes of images")
    flag = predict.add_argument
    flag("inputs", nargs="*", type=Path, metavar="IMAGE_OR_FOLDER")
    flag("--list", type=Path, action="append", default=[], metavar="FILE", help="text file with one path a line")
    flags.add_model_flag(predict)
    flags.add_threshold_flag(predict)
    flag("--format", choices=("text", "json", "csv", "parquet"), default="text")
    flag("--excel", action="store_true", help="with --format csv: mark it as UTF-8, put ' before cells like formulas")
    flag("--output", type=Path, metavar="FILE", help="write there instead of to the terminal; a folder for parquet")
    flag("--shard-size", type=int, default=10_000, metavar="N", help="images in each Parquet file (10000)")
    flag("--resume", action="store_true", help="with --format parquet: continue after the last complete shard")
    flag("--tta", action="store_true", help="average with the mirrored image")
    flag("--batch-size", type=int, default=32)
    flag("--num-workers", type=int, help="threads that decode images; by default one a core, at most 8")
    flags.add_predictor_flags(predict)

    app = command("app", _app, "serve a model as a web page")
    flag = app.add_argument
    flag("--model", help="model folder or Hub repository; $AIMONK_MODEL, else outputs/demo, else a sample")
    flags.add_predictor_flags(app)
    flag("--host", default="127.0.0.1")
    flag("--port", type=int, default=7860)
    flag("--share", action="store_true", help="make a public link through Gradio")
    flag("--mcp", action="store_true", help="offer the endpoints as tools to MCP clients, at /gradio_api/mcp/")
    flag("--label", metavar="DATA", help="a tab that mends the labels of this data folder (docs/LABELLING.md)")
    kept = "keep images that visitors mark as rightly or wrongly decided, if they agree, in this data folder"
    flag("--collect", metavar="DATA", help=f"{kept} (docs/APP.md)")
    flag("--allow-save", action="store_true", help="let visitors write thresholds into the local model folder")
    proxied: dict[str, Any] = {"dest": "allowed_hosts", "action": "append", "default": [], "metavar": "NAME"}
    flag("--allowed-host", **proxied, help="host name under which a proxy offers the app; repeatable, * for any")
    flag("--max-file-size", type=int, default=100, metavar="MB", help="refuse larger uploads (100)")


def _predict(options: argparse.Namespace) -> int:
    from aimonk_hf.modeling.config import resolve_thresholds
    from aimonk_hf.modeling.predict_files import ImageFiles, ParquetShards, predict_files, reported
    from aimonk_hf.modeling.predictor import AimonkPredictor

    _check(options)
    paths = ImageFiles(options.inputs, options.list)
    thresholds = flags.read_thresholds(options.threshold)
    model = AimonkPredictor.from_pretrained(options.model, **flags.computing_options(options))
    names = model.config.attributes

    def results(own: Iterable[Path], total: int) -> "Results":
        stream = model.stream(own, thresholds, options.batch_size, options.tta, options.num_workers)
        print(model.computing_line, file=sys.stderr)  # wrong thresholds were refused before
        return reported(stream, total, "predicting")

    if options.format == "parquet":
        decided = resolve_thresholds(names, model.thresholds, thresholds)
        settings = {"model": model.fingerprint, "thresholds": decided, "tta": options.tta}
        shards = ParquetShards(options.output, names, options.shard_size, settings, options.resume)
        if shards.finished:
            print(f"{options.output} is finished: nothing to resume")
            return 0
        failed = shards.write(results(shards.remaining(paths), len(paths)))
        print(f"written:  {options.output}")
        return 1 if failed else 0

    def write(own: Iterable[Path], total: int, out: TextIO, header: bool) -> int:
        return predict_files(results(own, total), names, options.format, out, header, options.excel)

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return 1 if _write_together(paths, options.output, write) else 0
    with _opened(options.output) as out:
        return 1 if write(paths, len(paths), out, True) else 0


def _check(options: argparse.Namespace) -> None:
    if options.batch_size < 1 or (options.num_workers is not None and options.num_workers < 1):
        raise AimonkError("--batch-size and --num-workers must be at least 1")
    if options.excel and options.format != "csv":
        raise AimonkError("--excel is about CSV files: add --format csv, or leave it out")
    if not options.inputs and not options.list:
        raise AimonkError("predict needs images, folders, or --list FILE with one path a line")
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if options.format == "parquet":
        if options.output is None or options.shard_size < 1:
            raise AimonkError("--format parquet needs --output DIR, and a --shard-size of at least 1")
        if several:
            raise AimonkError("--format parquet is written by one process: split the input, one --output for each part")
    elif options.resume:
        raise AimonkError("--resume continues Parquet files: add --format parquet")
    elif several and options.output is None:
        raise AimonkError("Several processes need --output FILE: their lines would mix on the terminal")


@contextmanager
def _opened(path: Path | None) -> Iterator[TextIO]:
    """Yield the terminal, or a file that appears whole."""
    if path is None:
        yield sys.stdout
        return
    make_folder(path.parent)
    with atomic_path(path) as temporary, _text_file(temporary) as file:
        yield file


def _text_file(path: Path) -> TextIO:
    return open(path, "w", encoding="utf-8", errors="surrogateescape", newline="")


def _write_together(
    paths: "ImageFiles", output: Path, write: Callable[[Iterable[Path], int, TextIO, bool], int]
) -> int:
    """Let each process of a launch write its share of the paths, and the first one join them; return all failures."""
    import torch.distributed as dist

    from aimonk_hf.modeling.devices import is_out_of_memory

    dist.init_process_group("gloo")
    rank, n_processes = dist.get_rank(), dist.get_world_size()
    make_folder(output.parent)
    parts = [output.with_name(f".{output.name}.part-{number}") for number in range(n_processes)]
    # contiguous shares, so that joining keeps the order of the images
    first, end = (len(paths) * number // n_processes for number in (rank, rank + 1))
    try:
        with _text_file(parts[rank]) as file:
            failed = write(islice(paths, first, end), end - first, file, rank == 0)
        failures = [0] * n_processes
        dist.all_gather_object(failures, failed)
        if rank == 0:
            with atomic_path(output) as temporary, open(temporary, "wb") as joined:
                for part in parts:
                    with open(part, "rb") as written:
                        shutil.copyfileobj(written, joined)
        dist.barrier()  # the first process needs every part until it has joined them
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        reason = f"another process ended before its part of {output} was written: its own message says why"
        raise AimonkError(reason) from error
    except OSError as error:
        raise AimonkError(f"Cannot write {parts[rank]}: {error.strerror or error}") from error
    finally:
        parts[rank].unlink(missing_ok=True)
        dist.destroy_process_group()
    return sum(failures)


def _app(options: argparse.Namespace) -> int:
    if not 0 < options.port < 65536:
        raise AimonkError(f"--port must lie between 1 and 65535, found {options.port}")
    from aimonk_hf.app import serve

    serve(**{name: value for name, value in vars(options).items() if name != "run"})
    return 0
