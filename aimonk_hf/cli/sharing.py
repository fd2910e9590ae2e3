"""The commands that hand a model to other programs and places: export, convert, push, push-space."""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from aimonk_hf.cli import flags
from aimonk_hf.errors import AimonkError


def add_sharing_commands(command: flags.Command) -> None:
    """Add the commands to the parser."""
    private: dict[str, Any] = {"action": "store_true", "help": "create it private; a public one is refused"}
    folder: dict[str, Any] = {"type": Path, "metavar": "DIR"}
    export = command("export", _export, "write ONNX files for onnxruntime and Transformers.js")
    flags.add_model_flag(export)
    export.add_argument("--output", required=True, **folder, help="the model folder itself, or a new one")
    export.add_argument("--int8", action="store_true", help="also a smaller file with 8-bit weights")
    flags.add_data_flags(export, required=False, help="labelled images on which the ONNX files are compared with torch")

    convert = command("convert", _convert, "make a model folder of a checkpoint, or of what timm or a tagger saved")
    flag = convert.add_argument
    told = "checkpoint (.pth, .safetensors) with --architecture; or a folder or Hub repository with a config.json"
    flag("checkpoint", metavar="CHECKPOINT_OR_FOLDER", help=told)
    flag("--architecture", help="of a checkpoint: resnet18, resnet50, efficientnet_b0, or another timm name")
    flag("--attributes", type=flags.names, metavar="A,B,C", help="names of the outputs, where the folder has none")
    flag("--output", required=True, **folder)
    own = "config.json's, or for a checkpoint "
    flag("--image-size", type=int, help=f"pixels per side ({own}224)")
    flag("--crop-mode", choices=("squash", "center", "border"), help=f"way to a square ({own}squash)")
    flag("--crop-pct", type=float, help=f"share of the resized image that the crop keeps ({own}1.0)")
    flag("--interpolation", choices=("bilinear", "bicubic", "nearest"), help=f"({own}bilinear)")
    flag("--mean", type=_numbers, metavar="R,G,B", help=f"subtracted from pixels in [0, 1] ({own}ImageNet's)")
    flag("--std", type=_numbers, metavar="R,G,B", help=f"by which they are divided ({own}ImageNet's)")
    flag("--bgr", action=argparse.BooleanOptionalAction, help="a folder's network takes BGR pixels (wd-tagger's do)")
    flags.add_threshold_flag(convert)
    flag("--no-onnx", action="store_true", help="write no onnx/model.onnx")

    push = command("push", _push, "upload a model to the Hugging Face Hub")
    flags.add_model_flag(push)
    flag = push.add_argument
    flag("--repo-id", required=True, metavar="USER/NAME", help="created where it does not exist")
    flag("--private", **private)
    flag("--revision", metavar="BRANCH", help="branch, created where it does not exist; main by default")
    flag("--commit-message", metavar="TEXT")
    flag("--license", metavar="ID", help="license of the model, in its card: an id of the Hub, or other:NAME[:ADDRESS]")
    flag("--tags", type=flags.names, metavar="A,B", help="tags that are added to the card")
    flag("--create-pr", action="store_true", help="open a pull request instead of committing")
    flag("--handler", action="store_true", help="add handler.py and this library, for Inference Endpoints")

    space = command("push-space", _push_space, "upload a Hugging Face Space that serves a model, or write its folder")
    flags.add_model_flag(space, "model folder, which is copied into the Space, or Hub repository")
    flag = space.add_argument
    flag("--repo-id", metavar="USER/NAME", help="the Space, created where it does not exist")
    flag("--output", **folder, help="write the Space's folder there; without --repo-id nothing is uploaded")
    without = "auto: without torch where the model has onnx/model.onnx (auto)"
    flag("--backend", choices=("auto", "onnx", "torch"), default="auto", help=without)
    flag("--title", help="of the page; the model's name by default")
    flag("--hardware", metavar="NAME", help="of the Space, such as cpu-basic, t4-small or zero-a10g (ZeroGPU)")
    flag("--secret", action="append", default=[], metavar="NAME", help="hand on this environment variable (repeatable)")
    flag("--variable", action="append", default=[], metavar="NAME=VALUE", help="public variable (repeatable)")
    flag("--private", **private)


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _export(options: argparse.Namespace) -> int:
    from aimonk_hf.console import figure, table
    from aimonk_hf.evaluation.report import compare_metrics
    from aimonk_hf.modeling.model import AimonkModel
    from aimonk_hf.modeling.onnx_export import COMPARISON_FILE, export_folder
    from aimonk_hf.storage import write_json

    dataset = flags.read_data(options) if options.data_dir else None
    model = AimonkModel.from_pretrained(options.model)
    if dataset is not None:
        dataset = dataset.match(model.config.attributes)  # refused before anything is written
    files = export_folder(model, options.output, options.int8)
    for file in files:
        print(f"written:  {file}  ({file.stat().st_size / 1e6:.1f} MB)")
    if dataset is not None:
        report = compare_metrics(options.output, dataset)
        write_json(options.output / COMPARISON_FILE, report)
        n_images = report.pop("n_images")
        keys = ("f1", "average_precision", "auroc", "largest_score_difference")
        rows = [[name, *(figure(row[key]) for key in keys)] for name, row in report.items()]
        print(table(["", "F1", "avg precision", "AUROC", "largest score difference"], rows))
        print(f"{n_images} images; written: {options.output / COMPARISON_FILE}")
    elif options.int8:
        print("8 bits can cost accuracy: --data-dir measures how much")
    return 0


def _convert(options: argparse.Namespace) -> int:
    from aimonk_hf.console import listed
    from aimonk_hf.modeling.config import resolve_thresholds
    from aimonk_hf.modeling.convert import convert_checkpoint, convert_folder
    from aimonk_hf.modeling.hub import CONFIG_FILE
    from aimonk_hf.modeling.onnx_export import onnx_line

    source, asked = options.checkpoint, flags.read_thresholds(options.threshold)
    if (options.output / CONFIG_FILE).exists():
        raise AimonkError(f"{options.output} holds a model already: name another --output")
    if options.architecture and options.bgr is not None:
        raise AimonkError("--bgr is about a folder with a config.json: leave out --architecture, or --bgr")
    if not options.architecture and Path(source).is_file():
        raise AimonkError(f"{source} does not tell its network: add --architecture, such as resnet18")
    keys = ("crop_mode", "crop_pct", "interpolation", "mean", "std")
    preprocessing = {key: getattr(options, key) for key in keys if getattr(options, key)}
    if options.image_size:
        preprocessing["input_size"] = [3, options.image_size, options.image_size]
    if options.architecture:
        model = convert_checkpoint(source, options.architecture, options.attributes, preprocessing)
    else:
        model = convert_folder(source, options.attributes, preprocessing, options.bgr)
    attributes, stored = model.config.attributes, set(model.config.thresholds.values())
    model.config.thresholds = resolve_thresholds(attributes, model.config.thresholds, asked)
    model.save_pretrained(options.output)
    if not options.no_onnx:
        print(onnx_line(model, options.output))
    found = "thresholds 0.5" if asked is None and stored == {0.5} else "with its thresholds"
    print(f"model:    {options.output}  ({listed(attributes)}; {found})")
    if found == "thresholds 0.5":
        print(f"better:   aimonk-hf tune --model {options.output} --data-dir DATA, or convert with --threshold")
    print(f"predict:  aimonk-hf predict IMAGE --model {options.output}")
    return 0


def _push(options: argparse.Namespace) -> int:
    from aimonk_hf.modeling.endpoint import endpoint_files
    from aimonk_hf.modeling.hub import push_model_folder
    from aimonk_hf.modeling.model import AimonkModel

    keys = ("revision", "commit_message", "create_pr", "license", "tags")
    wishes = {key: getattr(options, key) for key in keys} | {"private": options.private or None}
    model = AimonkModel.from_pretrained(options.model)  # refused here if it does not load
    with TemporaryDirectory() as copy:
        folder = Path(options.model)
        if not folder.is_dir():
            folder = Path(copy)
            model.save_pretrained(folder)
        pushed = push_model_folder(folder, options.repo_id, endpoint_files() if options.handler else None, **wishes)
    print(f"{'pushed:   ' if pushed.changed else 'unchanged:'} {pushed.url}")
    if not options.create_pr:
        print(f"predict:   aimonk-hf predict IMAGE --model {pushed.repo_id}")
    return 0


def _push_space(options: argparse.Namespace) -> int:
    from aimonk_hf.app.space import push_space, read_settings, write_space
    from aimonk_hf.modeling.model import AimonkModel

    if not options.repo_id and not options.output:
        raise AimonkError("push-space needs --repo-id USER/NAME to upload the Space, or --output DIR to write it")
    settings = read_settings(options.hardware, options.secret, options.variable)
    if not options.repo_id and (options.secret or options.variable):
        raise AimonkError("--secret and --variable are of a Space on the Hub: give --repo-id USER/NAME")
    AimonkModel.from_pretrained(options.model)  # refused here if it does not load
    with TemporaryDirectory() as copy:
        folder = options.output or Path(copy)
        write_space(folder, options.model, options.title, options.backend, options.hardware)
        if options.output:
            print(f"written:   {folder}  (start it with: cd {folder} && python app.py)")
        if options.repo_id:
            pushed = push_space(folder, options.repo_id, options.private or None, settings)
            print(f"{'pushed:   ' if pushed.changed else 'unchanged:'} {pushed.url}")
    return 0
