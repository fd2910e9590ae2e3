"""The commands that hand a model to other programs and places: export, convert, push, push-space."""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from aimonk_hf.cli.flags import Command, add_data_flags, add_model_flag, names, read_data
from aimonk_hf.errors import AimonkError


def add_sharing_commands(command: Command) -> None:
    """Add the commands to the parser."""
    private: dict[str, Any] = {"action": "store_true", "help": "create it private; a public one is refused"}
    folder: dict[str, Any] = {"type": Path, "metavar": "DIR"}
    export = command("export", _export, "write ONNX files for onnxruntime and Transformers.js")
    add_model_flag(export)
    export.add_argument("--output", required=True, **folder, help="the model folder itself, or a new one")
    export.add_argument("--int8", action="store_true", help="also a smaller file with 8-bit weights")
    add_data_flags(export, required=False, help="labelled images on which the ONNX files are compared with torch")

    flag = command("convert", _convert, "make a model folder of a torchvision state dict (.pth)").add_argument
    flag("checkpoint", metavar="CHECKPOINT")
    flag("--architecture", required=True, help="resnet18, resnet34, resnet50, efficientnet_b0, or another timm name")
    flag("--attributes", type=names, metavar="A,B,C", help="names of the outputs; Attr1,Attr2,... by default")
    flag("--output", required=True, **folder)
    flag("--image-size", type=int, default=224, help="pixels per side (224)")
    flag("--crop-mode", choices=("squash", "center", "border"), default="squash", help="way to a square (squash)")
    flag("--crop-pct", type=float, default=1.0, help="share of the resized image that the crop keeps (1.0)")
    flag("--interpolation", choices=("bilinear", "bicubic", "nearest"), default="bilinear")
    flag("--mean", type=_numbers, metavar="R,G,B", help="subtracted from pixels in [0, 1]; ImageNet's by default")
    flag("--no-onnx", action="store_true", help="write no onnx/model.onnx")
    flag("--std", type=_numbers, metavar="R,G,B", help="by which they are divided; ImageNet's by default")

    push = command("push", _push, "upload a model to the Hugging Face Hub")
    add_model_flag(push)
    flag = push.add_argument
    flag("--repo-id", required=True, metavar="USER/NAME", help="created where it does not exist")
    flag("--private", **private)
    flag("--revision", metavar="BRANCH", help="branch, created where it does not exist; main by default")
    flag("--commit-message", metavar="TEXT")
    flag("--license", metavar="ID", help="license of the model, in its card: an id of the Hub, or other:NAME[:ADDRESS]")
    flag("--tags", type=names, metavar="A,B", help="tags that are added to the card")
    flag("--create-pr", action="store_true", help="open a pull request instead of committing")

    space = command("push-space", _push_space, "upload a Hugging Face Space that serves a model, or write its folder")
    add_model_flag(space, "model folder, which is copied into the Space, or Hub repository")
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
    from aimonk_hf.evaluation.onnx_comparison import compare_metrics
    from aimonk_hf.modeling.model import AimonkModel
    from aimonk_hf.modeling.onnx_export import COMPARISON_FILE, export_folder
    from aimonk_hf.storage import write_json

    dataset = read_data(options) if options.data_dir else None
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
    from aimonk_hf.modeling.convert import convert_checkpoint
    from aimonk_hf.modeling.hub import CONFIG_FILE
    from aimonk_hf.modeling.onnx_export import onnx_line

    if (options.output / CONFIG_FILE).exists():
        raise AimonkError(f"{options.output} holds a model already: name another --output")
    keys = ("crop_mode", "crop_pct", "interpolation", "mean", "std")
    preprocessing = {key: getattr(options, key) for key in keys if getattr(options, key)}
    preprocessing["input_size"] = [3, options.image_size, options.image_size]
    model = convert_checkpoint(options.checkpoint, options.architecture, options.attributes, preprocessing)
    model.save_pretrained(options.output)
    if not options.no_onnx:
        print(onnx_line(model, options.output))
    print(f"model:    {options.output}  ({', '.join(model.config.attributes)}; thresholds 0.5)")
    print(f"predict:  aimonk-hf predict IMAGE --model {options.output}")
    return 0


def _push(options: argparse.Namespace) -> int:
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
        pushed = push_model_folder(folder, options.repo_id, **wishes)
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
