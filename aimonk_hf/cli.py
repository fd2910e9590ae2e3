"""The command line: each command parses its flags, calls the library and prints; expected errors are one line and exit status 2."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TextIO, get_args

from aimonk_hf import __version__
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
        print(f"{PROG}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROG}: stopped" + ("; --resume goes on from the last epoch" if options.run is _train else ""), file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone; nothing more can be said to it
        return 1
    return status


def train_main() -> int:
    """Run `train.py`: the train command's flags without its name."""
    return main(["train", *sys.argv[1:]])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(PROG, description="Multi-label image attributes with missing labels.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"{PROG} {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
        sub.set_defaults(run=run)
        return sub

    _add_train_flags(command("train", _train, "train a model on a data folder"))

    predict = command("predict", _predict, "print the attributes of images")
    predict.add_argument("inputs", nargs="+", metavar="IMAGE_OR_FOLDER")
    predict.add_argument("--model", required=True, help="model folder or Hub repository")
    predict.add_argument(
        "--threshold", action="append", default=[], metavar="[ATTRIBUTE=]NUMBER", help="repeatable; replaces the stored ones"
    )
    predict.add_argument("--format", choices=("text", "json", "csv"), default="text")
    predict.add_argument("--output", type=Path, metavar="FILE", help="write there instead of to the terminal")
    predict.add_argument("--tta", action="store_true", help="average with the mirrored picture")
    predict.add_argument("--batch-size", type=int, default=32)
    predict.add_argument("--num-workers", type=int, help="threads that decode images; by default one a core, at most 8")

    evaluate = command("evaluate", _evaluate, "judge a model on labelled images, beside the trivial predictors")
    evaluate.add_argument("--model", required=True, help="model folder or Hub repository")
    evaluate.add_argument("--data-dir", required=True)
    evaluate.add_argument("--labels", help="label file other than labels.csv or labels.txt")
    evaluate.add_argument("--images-dir", help="where the images lie, if not in images/")
    evaluate.add_argument("--attributes", type=_names, metavar="A,B,C", help="names of the columns of a labels.txt")
    evaluate.add_argument("--output", type=Path, metavar="DIR", help="write metrics.json there")

    sample = command("sample-data", _sample_data, "write a drawn dataset: garments with four attributes")
    sample.add_argument("folder", metavar="DIR")
    sample.add_argument("--images", type=int, default=600)
    sample.add_argument("--seed", type=int, default=0)

    convert = command("convert", _convert, "make a model folder of a torchvision state dict (.pth)")
    convert.add_argument("checkpoint", metavar="CHECKPOINT")
    convert.add_argument("--architecture", required=True, help="resnet18, resnet34, resnet50, efficientnet_b0, or another timm name")
    convert.add_argument("--attributes", type=_names, metavar="A,B,C", help="names of the outputs; Attr1,Attr2,... by default")
    convert.add_argument("--output", required=True, type=Path, metavar="DIR")
    convert.add_argument("--image-size", type=int, default=224, help="pixels per side (224)")
    convert.add_argument("--crop-mode", choices=("squash", "center", "border"), default="squash", help="how pictures become square (squash)")
    convert.add_argument("--crop-pct", type=float, default=1.0, help="share of the resized picture that the crop keeps (1.0)")
    convert.add_argument("--interpolation", choices=("bilinear", "bicubic", "nearest"), default="bilinear")
    convert.add_argument("--mean", type=_numbers, metavar="R,G,B", help="subtracted from the pixels in [0, 1]; ImageNet's by default")
    convert.add_argument("--std", type=_numbers, metavar="R,G,B", help="by which they are divided; ImageNet's by default")

    push = command("push", _push, "upload a model to the Hugging Face Hub")
    push.add_argument("--model", required=True, help="model folder or Hub repository")
    push.add_argument("--repo-id", required=True, metavar="USER/NAME", help="created where it does not exist")
    push.add_argument("--private", action="store_true", help="create it private; a public one is refused")
    push.add_argument("--revision", metavar="BRANCH", help="branch to push to, created where it does not exist; main by default")
    push.add_argument("--commit-message", metavar="TEXT")
    push.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")

    command("recipes", _recipes, "list the named training settings")

    app = command("app", _app, "serve a model as a web page")
    app.add_argument("--model", help="model folder or Hub repository; $AIMONK_MODEL, else outputs/demo")
    app.add_argument("--host", default="127.0.0.1")
    app.add_argument("--port", type=int, default=7860)
    app.add_argument("--share", action="store_true", help="make a public link through Gradio")
    app.add_argument("--allow-save", action="store_true", help="let visitors write thresholds into the local model folder")
    app.add_argument("--max-file-size", type=int, default=100, metavar="MB", help="refuse larger uploads (100)")
    return parser


def _add_train_flags(parser: argparse.ArgumentParser) -> None:
    """Make every field of TrainConfig a flag, in its order and with its help; flags left out are left to the recipe."""
    from aimonk_hf.train_config import TrainConfig

    for setting in fields(TrainConfig):
        flag = "--" + setting.name.replace("_", "-")
        options: dict[str, Any] = {"dest": setting.name, "default": argparse.SUPPRESS, "help": setting.metadata["help"]}
        if setting.default not in (MISSING, None, True, False):
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
    inner = next((part for part in get_args(kind) if part is not type(None)), kind)
    return inner if inner in (int, float, str) else _names


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _train(options: argparse.Namespace) -> int:
    from aimonk_hf.train_config import TrainConfig

    config = TrainConfig(**{key: value for key, value in vars(options).items() if key != "run"})
    from aimonk_hf.run_folder import LOSS_CURVE, SAMPLE_PREDICTIONS
    from aimonk_hf.training import train

    train(config)
    if os.environ.get("RANK", "0") == "0":
        folder = Path(config.output_dir)
        print(f"model:    {folder}")
        print(f"plots:    {folder / LOSS_CURVE}, {folder / SAMPLE_PREDICTIONS}")
        print(f"predict:  {PROG} predict PICTURE --model {folder}")
        print(f"serve:    {PROG} app --model {folder}")
    return 0


def _predict(options: argparse.Namespace) -> int:
    from aimonk_hf.modeling import AimonkModel
    from aimonk_hf.predict_files import list_images, predict_files

    if options.batch_size < 1 or (options.num_workers is not None and options.num_workers < 1):
        raise AimonkError("--batch-size and --num-workers must be at least 1")
    paths = list_images([Path(text) for text in options.inputs])
    thresholds = _thresholds(options.threshold)
    model = AimonkModel.from_pretrained(options.model)
    with _opened(options.output) as out:
        stream = model.stream(paths, thresholds, options.batch_size, options.tta, options.num_workers)
        failed = predict_files(stream, model.config.attributes, len(paths), options.format, out)
    return 1 if failed else 0


@contextmanager
def _opened(path: Path | None) -> Iterator[TextIO]:
    """Yield the terminal, or a file that appears whole."""
    if path is None:
        yield sys.stdout
        return
    from aimonk_hf.storage import atomic_path, make_folder

    make_folder(path.parent)
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
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
        raise AimonkError("--threshold takes one number for all attributes, or ATTRIBUTE=NUMBER as often as needed, not both")
    return by_name or for_all


def _evaluate(options: argparse.Namespace) -> int:
    from aimonk_hf.console import metrics_table
    from aimonk_hf.data import AttributeDataset
    from aimonk_hf.evaluation import evaluate
    from aimonk_hf.modeling import AimonkModel
    from aimonk_hf.storage import make_folder, write_json

    dataset = AttributeDataset.from_folder(options.data_dir, options.labels, options.images_dir, options.attributes)
    report = evaluate(AimonkModel.from_pretrained(options.model), dataset, progress=True)
    print(metrics_table(report))
    if options.output:
        write_json(make_folder(options.output) / "metrics.json", report)
        print(f"written:  {options.output / 'metrics.json'}")
    return 0


def _numbers(text: str) -> list[float]:
    numbers = [float(part) for part in text.split(",")]
    if len(numbers) != 3:
        raise argparse.ArgumentTypeError(f"three numbers are wanted, one per colour, found {text!r}")
    return numbers


def _convert(options: argparse.Namespace) -> int:
    from aimonk_hf.convert import convert_checkpoint
    from aimonk_hf.persistence import CONFIG_FILE

    if (options.output / CONFIG_FILE).exists():
        raise AimonkError(f"{options.output} holds a model already: name another --output")
    if options.image_size < 8:
        raise AimonkError(f"--image-size must be at least 8, found {options.image_size}")
    if not 0 < options.crop_pct <= 1:
        raise AimonkError(f"--crop-pct must lie above 0 and not above 1, found {options.crop_pct}")
    preprocessing = {"input_size": [3, options.image_size, options.image_size]}
    preprocessing |= {key: getattr(options, key) for key in ("crop_mode", "crop_pct", "interpolation")}
    preprocessing |= {key: getattr(options, key) for key in ("mean", "std") if getattr(options, key)}
    model = convert_checkpoint(options.checkpoint, options.architecture, options.attributes, preprocessing)
    model.save_pretrained(options.output)
    print(f"model:    {options.output}  ({', '.join(model.config.attributes)}; thresholds 0.5)")
    print(f"predict:  {PROG} predict PICTURE --model {options.output}")
    return 0


def _push(options: argparse.Namespace) -> int:
    from tempfile import TemporaryDirectory

    from aimonk_hf.hub_push import push_model_folder
    from aimonk_hf.modeling import AimonkModel

    model = AimonkModel.from_pretrained(options.model)  # what does not load is not pushed
    with TemporaryDirectory() as copy:
        folder = Path(options.model)
        if not folder.is_dir():
            folder = Path(copy)
            model.save_pretrained(folder)
        given = (options.private or None, None, options.revision, options.commit_message, options.create_pr)
        pushed = push_model_folder(folder, options.repo_id, *given)
    print(f"pushed:    {pushed.url}" if pushed.changed else f"unchanged: {pushed.url}")
    if not options.create_pr:
        print(f"predict:   {PROG} predict PICTURE --model {pushed.repo_id}")
    return 0


def _sample_data(options: argparse.Namespace) -> int:
    from aimonk_hf.sample_data import write_sample_data

    if options.images < 1 or options.seed < 0:
        raise AimonkError("--images must be at least 1 and --seed not negative")
    print(f"written:  {options.images} images and labels.csv in {write_sample_data(options.folder, options.images, options.seed)}")
    return 0


def _recipes(options: argparse.Namespace) -> int:
    from aimonk_hf.recipes import list_recipes

    for recipe in list_recipes():
        print(f"{recipe.name}: {recipe.system}")
        print("  " + ", ".join(f"{key} {value}" for key, value in recipe.settings.items()))
    return 0


def _app(options: argparse.Namespace) -> int:
    from aimonk_hf.app import serve

    serve(options.model, options.host, options.port, options.share, options.allow_save, options.max_file_size)
    return 0
