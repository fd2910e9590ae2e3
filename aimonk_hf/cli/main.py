"""The command line: each command parses its flags, calls the library and prints; expected errors are one line and exit status 2."""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from types import FrameType, UnionType
from typing import Any, NoReturn, TextIO, cast, get_args, get_origin

from aimonk_hf import __version__
from aimonk_hf.cli.evaluation import add_judging_commands
from aimonk_hf.cli.shards import launched_processes, write_shared
from aimonk_hf.cli.sharing import add_sharing_commands
from aimonk_hf.errors import AimonkError

PROG = "aimonk-hf"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: 0 done, 1 some inputs failed, 2 wrong usage or unusable data."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except AimonkError as error:
        print(f"{PROG}: {' '.join(str(error).splitlines())}", file=sys.stderr)  # one line, whatever a file is called
        return 2
    except KeyboardInterrupt:
        print(f"{PROG}: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # the reader has gone; nothing more can be said to it
        return 1
    return status


def train_main() -> int:
    """Run `train.py`: the train command's flags without its name."""
    return main(["train", *sys.argv[1:]])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        PROG, description="Multi-label image attributes with missing labels.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"{PROG} {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
        sub.set_defaults(run=run)
        return sub

    add_train_flags(command("train", _train, "train a model on a data folder"))

    predict = command("predict", _predict, "print the attributes of images")
    predict.add_argument("inputs", nargs="+", metavar="IMAGE_OR_FOLDER")
    predict.add_argument("--model", required=True, help="model folder or Hub repository")
    predict.add_argument(
        "--threshold",
        action="append",
        default=[],
        metavar="[ATTRIBUTE=]NUMBER",
        help="repeatable; replaces the stored ones",
    )
    predict.add_argument("--format", choices=("text", "json", "csv"), default="text")
    predict.add_argument(
        "--excel",
        action="store_true",
        help="with --format csv: mark the file as UTF-8, and put ' before cells that would be formulas",
    )
    predict.add_argument("--output", type=Path, metavar="FILE", help="write there instead of to the terminal")
    predict.add_argument("--tta", action="store_true", help="average with the mirrored picture")
    predict.add_argument("--batch-size", type=int, default=32)
    predict.add_argument("--num-workers", type=int, help="threads that decode images; by default one a core, at most 8")
    predict.add_argument(
        "--precision",
        choices=("auto", "float32", "bf16", "fp16"),
        default="float32",
        help="bf16 and fp16 are faster on new processors and GPUs, less exact",
    )

    add_judging_commands(command)

    sample = command("sample-data", _sample_data, "write a drawn dataset: garments with four attributes")
    sample.add_argument("folder", metavar="DIR")
    sample.add_argument("--images", type=int, default=600)
    sample.add_argument("--seed", type=int, default=0)

    add_sharing_commands(command)

    command("recipes", _recipes, "list the named training settings")

    app = command("app", _app, "serve a model as a web page")
    app.add_argument("--model", help="model folder or Hub repository; $AIMONK_MODEL, else outputs/demo")
    app.add_argument("--host", default="127.0.0.1")
    app.add_argument("--port", type=int, default=7860)
    app.add_argument("--share", action="store_true", help="make a public link through Gradio")
    app.add_argument(
        "--allow-save", action="store_true", help="let visitors write thresholds into the local model folder"
    )
    app.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="host name under which a proxy offers the app (repeatable; * for any)",
    )
    app.add_argument("--max-file-size", type=int, default=100, metavar="MB", help="refuse larger uploads (100)")
    return parser


def add_train_flags(parser: argparse.ArgumentParser) -> None:
    """Make every field of TrainConfig a flag, in its order and with its help; flags left out are left to the recipe."""
    from aimonk_hf.training.settings import TrainConfig

    for setting in fields(TrainConfig):
        flag = "--" + setting.name.replace("_", "-")
        options: dict[str, Any] = {"dest": setting.name, "default": argparse.SUPPRESS, "help": setting.metadata["help"]}
        if setting.type is not bool and setting.default not in (MISSING, None):
            options["help"] += f" ({setting.default})".replace("%", "%%")
        if setting.type is bool:
            options["action"] = "store_true" if setting.default is False else argparse.BooleanOptionalAction
        else:
            options["type"] = _parser_of(setting.type)
            options["required"] = setting.default is MISSING
            if choices := setting.metadata.get("choices"):
                options["choices"] = choices
            else:
                options["metavar"] = setting.name.upper()
        parser.add_argument(flag, **options)


def _parser_of(kind: Any) -> Callable[[str], Any]:
    """Return what turns a flag's text into a value of the field's type; lists are split at commas."""
    inner = (
        next((part for part in get_args(kind) if part is not type(None)), kind)
        if get_origin(kind) is UnionType
        else kind
    )
    if get_origin(inner) is not list:
        return cast("Callable[[str], Any]", inner)
    (element,) = get_args(inner)

    def values(text: str) -> list[Any]:
        return [element(part.strip()) for part in text.split(",")]

    values.__name__ = f"comma-separated {element.__name__}"  # argparse names it where a value is refused
    return values


def _train(options: argparse.Namespace) -> int:
    from aimonk_hf.training.settings import TrainConfig

    config = TrainConfig(**{key: value for key, value in vars(options).items() if key != "run"})
    import torch.distributed as dist

    from aimonk_hf.training.run import train
    from aimonk_hf.training.run_directory import LOSS_CURVE, SAMPLE_PREDICTIONS

    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread:
        before = signal.signal(
            signal.SIGTERM, _end
        )  # as Ctrl-C does: what is half written is removed, other processes are not left waiting
    try:
        train(config)
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
    if os.environ.get("RANK", "0") == "0":
        folder = Path(config.output_dir)
        print(f"model:    {folder}")
        print(f"plots:    {folder / LOSS_CURVE}, {folder / SAMPLE_PREDICTIONS}")
        print(f"predict:  {PROG} predict PICTURE --model {folder}")
        print(f"serve:    {PROG} app --model {folder}")
    return 0


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _predict(options: argparse.Namespace) -> int:
    from aimonk_hf.modeling.model import AimonkModel
    from aimonk_hf.modeling.predict_files import list_images, predict_files

    if options.batch_size < 1 or (options.num_workers is not None and options.num_workers < 1):
        raise AimonkError("--batch-size and --num-workers must be at least 1")
    if options.excel and options.format != "csv":
        raise AimonkError("--excel is about CSV files: add --format csv, or leave it out")
    paths = list_images([Path(text) for text in options.inputs])
    thresholds = _thresholds(options.threshold)
    model = AimonkModel.from_pretrained(options.model)

    def write(own: list[Path], out: TextIO, header: bool) -> int:
        stream = model.stream(own, thresholds, options.batch_size, options.tta, options.num_workers, options.precision)
        return predict_files(stream, model.config.attributes, len(own), options.format, out, header, options.excel)

    if launched_processes() > 1:
        if options.output is None:
            raise AimonkError("several processes need --output FILE: their lines would mix on the terminal")
        return 1 if write_shared(paths, options.output, write) else 0
    with _opened(options.output) as out:
        return 1 if write(paths, out, True) else 0


@contextmanager
def _opened(path: Path | None) -> Iterator[TextIO]:
    """Yield the terminal, or a file that appears whole."""
    if path is None:
        yield sys.stdout
        return
    from aimonk_hf.storage import atomic_path, make_folder

    make_folder(path.parent)
    with (
        atomic_path(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        yield file


def _thresholds(given: list[str]) -> float | dict[str, float] | None:
    """Read `--threshold 0.5` and repeated `--threshold name=0.3`."""
    by_name: dict[str, float] = {}
    for_all: float | None = None
    for text in given:
        name, _, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            raise AimonkError(f"--threshold {text}: {number!r} is not a number") from None
        if name:
            by_name[name] = value
        else:
            for_all = value
    if by_name and for_all is not None:
        raise AimonkError(
            "--threshold takes one number for all attributes, or ATTRIBUTE=NUMBER as often as needed, not both"
        )
    return by_name or for_all


def _sample_data(options: argparse.Namespace) -> int:
    from aimonk_hf.data.sample_data import write_sample_data

    if options.images < 1 or options.seed < 0:
        raise AimonkError("--images must be at least 1 and --seed not negative")
    print(
        f"written:  {options.images} images and labels.csv in {write_sample_data(options.folder, options.images, options.seed)}"
    )
    return 0


def _recipes(options: argparse.Namespace) -> int:
    from aimonk_hf.training.recipes import list_recipes

    for recipe in list_recipes():
        print(f"{recipe.name}: {recipe.system}")
        if recipe.unsaid:
            print(f"  left unsaid, chosen here: {recipe.unsaid}")
        print("  " + ", ".join(f"{key} {value}" for key, value in recipe.settings.items()))
    return 0


def _app(options: argparse.Namespace) -> int:
    if not 0 < options.port < 65536:
        raise AimonkError(f"--port must lie between 1 and 65535, found {options.port}")
    from aimonk_hf.app import serve

    serve(
        options.model,
        options.host,
        options.port,
        options.share,
        options.allow_save,
        options.max_file_size,
        options.allowed_host,
    )
    return 0
