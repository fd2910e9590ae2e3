"""Flags that several commands share, and those made from the fields of TrainConfig."""

import argparse
import csv
import sys
from collections.abc import Callable
from dataclasses import fields
from types import UnionType
from typing import Any, cast, get_args, get_origin

from aimonk_hf.errors import AimonkError

Run = Callable[[argparse.Namespace], int]
# makes the parser of a command from its name, its function and its help
Command = Callable[[str, Run, str], argparse.ArgumentParser]


def names(text: str) -> list[str]:
    """Read the names in a comma-separated list; a name that holds a comma is in double quotes."""
    return [name.strip() for name in next(csv.reader([text], skipinitialspace=True), [])] or [""]


def add_model_flag(parser: argparse.ArgumentParser, help: str = "model folder or Hub repository") -> None:
    """Add the required --model."""
    parser.add_argument("--model", required=True, help=help)


def add_predictor_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that choose what computes scores."""
    flag = parser.add_argument
    by = "auto: onnxruntime on a CPU where the model has onnx/model.onnx, else torch (auto)"
    flag("--backend", choices=("auto", "onnx", "torch"), default="auto", help=by)
    place = "auto, cpu, cuda, cuda:1 or mps; auto is the accelerator that torch has (auto)"
    flag("--device", default="auto", help=place)
    formats = ("auto", "float32", "bf16", "fp16", "int8")
    less = "bf16 and fp16 are faster on new hardware, and less exact; int8 needs export --int8 (float32)"
    flag("--precision", choices=formats, default="float32", help=less)


def computing_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `AimonkPredictor.from_pretrained` that the flags of `add_predictor_flags` name."""
    return {name: getattr(options, name) for name in ("backend", "device", "precision")}


def load_predictor(options: argparse.Namespace, model: str | None = None) -> Any:
    """Return the `AimonkPredictor` of a model, by default of --model, and say on which device it computes."""
    from aimonk_hf.modeling.predictor import AimonkPredictor

    predictor = AimonkPredictor.from_pretrained(model or options.model, **computing_options(options))
    print(predictor.computing_line, file=sys.stderr)
    return predictor


def add_threshold_flag(parser: argparse.ArgumentParser) -> None:
    """Add the repeatable --threshold."""
    every: dict[str, Any] = {"action": "append", "default": [], "metavar": "[ATTRIBUTE=]NUMBER"}
    parser.add_argument("--threshold", **every, help="replaces the stored ones; repeatable with attributes")


def read_thresholds(given: list[str]) -> float | dict[str, float] | None:
    """Read `--threshold 0.5` and repeated `--threshold name=0.3`."""
    values: dict[str, float] = {}
    for text in given:
        name, _, number = text.rpartition("=")
        try:
            values[name] = float(number)
        except ValueError:
            raise AimonkError(f"--threshold {text}: {number!r} is not a number") from None
    if "" in values and len(values) > 1:
        raise AimonkError("--threshold takes one number for all attributes, or ATTRIBUTE=NUMBER repeatedly, not both")
    return values.get("", values or None)


def add_data_flags(parser: argparse.ArgumentParser, required: bool = True, help: str | None = None) -> None:
    """Add the flags that name labelled images, and those of reading their labels."""
    parser.add_argument("--data-dir", required=required, help=help)
    parser.add_argument("--labels", help="label file (.csv, .tsv, .txt, .jsonl, .parquet), if not the folder's own")
    parser.add_argument("--images-dir", help="folder of the images, if not images/ beside the labels")
    add_reading_flags(parser)


def add_reading_flags(parser: argparse.ArgumentParser) -> None:
    """Make every field of ReadOptions a flag."""
    from aimonk_hf.data.read_options import ReadOptions

    for option in fields(ReadOptions):
        name, help = "--" + option.name.replace("_", "-"), option.metadata["help"]
        if option.type is bool:
            parser.add_argument(name, action=argparse.BooleanOptionalAction, default=option.default, help=help)
        else:
            parser.add_argument(name, type=_reader_of(option.type), metavar=option.name.upper(), help=help)


def read_data(options: argparse.Namespace) -> Any:
    """Return the `AttributeDataset` that the flags of `add_data_flags` name, and print how its labels were read."""
    from aimonk_hf.data.dataset import AttributeDataset
    from aimonk_hf.data.read_options import ReadOptions
    from aimonk_hf.modeling.hub import data_folder

    place = data_folder(options.data_dir), options.labels, options.images_dir
    parts = (getattr(options, name, None) for name in ("val_labels", "report_labels"))
    dataset = AttributeDataset.from_folder(*place, None, None, ReadOptions.of(options), *parts)
    print(f"labels:   {dataset.labels.told}", file=sys.stderr)
    return dataset


def add_train_flags(parser: argparse.ArgumentParser) -> None:
    """Make every field of TrainConfig a flag, in its order and with its help; flags left out are left to the recipe."""
    from aimonk_hf.training.settings import TrainConfig

    for setting in fields(TrainConfig):
        options: dict[str, Any] = {"dest": setting.name, "default": argparse.SUPPRESS, "help": setting.metadata["help"]}
        if setting.type is bool:
            options["action"] = "store_true" if setting.default is False else argparse.BooleanOptionalAction
        else:
            if setting.default not in ("", None):
                options["help"] += f" ({setting.default})".replace("%", "%%")
            choices = setting.metadata["choices"]  # checked by TrainConfig, which also knows old spellings
            options["metavar"] = "{" + ",".join(choices) + "}" if choices else setting.name.upper()
            options |= {"type": _reader_of(setting.type), "required": setting.metadata["required"]}
        parser.add_argument("--" + setting.name.replace("_", "-"), **options)


def _reader_of(kind: Any) -> Callable[[str], Any]:
    """Return the function from a flag's text to a value of the field's type; lists are split at commas."""
    if get_origin(kind) is UnionType:
        kind = next(part for part in get_args(kind) if part is not type(None))
    if get_origin(kind) is not list:
        return cast("Callable[[str], Any]", kind)
    (element,) = get_args(kind)

    def values(text: str) -> list[Any]:
        return [element(part) for part in names(text)]

    values.__name__ = f"comma-separated {element.__name__}"  # argparse names it where a value is refused
    return values
