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
    export = command("export", _export, "write ONNX files for onnxruntime and Transformers.js")
    add_model_flag(export)
    target = "the model folder itself, or a new one"
    export.add_argument("--output", required=True, type=Path, metavar="DIR", help=target)
    export.add_argument("--int8", action="store_true", help="also a smaller file with 8-bit weights")
    add_data_flags(export, required=False, help="labelled images on which the ONNX files are compared with torch")

    flag = command("convert", _convert, "make a model folder of a torchvision state dict (.pth)").add_argument
    flag("checkpoint", metavar="CHECKPOINT")
    known = "resnet18, resnet34, resnet50, efficientnet_b0, or another timm name"
    flag("--architecture", required=True, help=known)
    flag("--attributes", type=names, metavar="A,B,C", help="names of the outputs; Attr1,Attr2,... by default")
    flag("--output", required=True, type=Path, metavar="DIR")
    flag("--image-size", type=int, default=224, help="pixels per side (224)")
    flag("--crop-mode", choices=("squash", "center", "border"), default="squash", help="way to a square (squash)")
    flag("--crop-pct", type=float, default=1.0, help="share of the resized image that the crop keeps (1.0)")
    flag("--interpolation", choices=("bilinear", "bicubic", "nearest"), default="bilinear")
    mean = "subtracted from the pixels in [0, 1]; ImageNet's by default"
    flag("--mean", type=_numbers, metavar="R,G,B", help=mean)
    flag("--std", type=_numbers, metavar="R,G,B", help="by which they are divided; ImageNet's by default")

    push = command("push", _push, "upload a model to the Hugging Face Hub")
    add_model_flag(push)
    push.add_argument("--repo-id", required=True, metavar="USER/NAME", help="created where it does not exist")
    push.add_argument("--private", **private)
    branch = "branch to push to, created where it does not exist; main by default"
    push.add_argument("--revision", metavar="BRANCH", help=branch)
    push.add_argument("--commit-message", metavar="TEXT")
    push.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")

    space = command("push-space", _push_space, "upload a Hugging Face Space that serves a model, or write its folder")
    add_model_flag(space, "model folder, which is copied into the Space, or Hub repository")
    space.add_argument("--repo-id", metavar="USER/NAME", help="the Space, created where it does not exist")
    local = "write the Space's folder there; without --repo-id nothing is uploaded"
    space.add_argument("--output", type=Path, metavar="DIR", help=local)
    space.add_argument("--title", help="of the page; the model's name by default")
    space.add_argument("--private", **private)


def _numbers(text: str) -> list[float]:
    numbers = [float(part) for part in text.split(",")]
    if len(numbers) != 3:
        raise argparse.ArgumentTypeError(f"three numbers are wanted, one per colour, found {text!r}")
    return numbers


def _export(options: argparse.Namespace) -> int:
    from aimonk_hf.console import figure, table
    from aimonk_hf.evaluation.onnx_comparison import compare_metrics
    from aimonk_hf.modeling.model import AimonkModel
    from aimonk_hf.modeling.onnx import COMPARISON_FILE, export_folder
    from aimonk_hf.storage import write_json

    dataset = read_data(options) if options.data_dir else None
    model = AimonkModel.from_pretrained(options.model)
    if dataset is not None:
        dataset = dataset.match(model.config.attributes)  # refused before anything is written
    files = export_folder(model, options.output, options.int8)
    for file in files:
        print(f"written:  {file}  ({file.stat().st_size / 1e6:.1f} MB)")
    if dataset is not None:
        report = compare_metrics(model, files, dataset)
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

    if (options.output / CONFIG_FILE).exists():
        raise AimonkError(f"{options.output} holds a model already: name another --output")
    if options.image_size < 8:
        raise AimonkError(f"--image-size must be at least 8, found {options.image_size}")
    if not 0 < options.crop_pct <= 1:
        raise AimonkError(f"--crop-pct must lie above 0 and not above 1, found {options.crop_pct}")
    keys = ("crop_mode", "crop_pct", "interpolation", "mean", "std")
    preprocessing = {key: getattr(options, key) for key in keys if getattr(options, key)}
    preprocessing["input_size"] = [3, options.image_size, options.image_size]
    model = convert_checkpoint(options.checkpoint, options.architecture, options.attributes, preprocessing)
    model.save_pretrained(options.output)
    print(f"model:    {options.output}  ({', '.join(model.config.attributes)}; thresholds 0.5)")
    print(f"predict:  aimonk-hf predict IMAGE --model {options.output}")
    return 0


def _push(options: argparse.Namespace) -> int:
    from aimonk_hf.modeling.hub import push_model_folder
    from aimonk_hf.modeling.model import AimonkModel

    model = AimonkModel.from_pretrained(options.model)  # refused here if it does not load
    with TemporaryDirectory() as copy:
        folder = Path(options.model)
        if not folder.is_dir():
            folder = Path(copy)
            model.save_pretrained(folder)
        pushed = push_model_folder(
            folder,
            options.repo_id,
            private=options.private or None,
            revision=options.revision,
            commit_message=options.commit_message,
            create_pr=options.create_pr,
        )
    print(f"pushed:    {pushed.url}" if pushed.changed else f"unchanged: {pushed.url}")
    if not options.create_pr:
        print(f"predict:   aimonk-hf predict IMAGE --model {pushed.repo_id}")
    return 0


def _push_space(options: argparse.Namespace) -> int:
    from aimonk_hf.app.space import push_space, write_space
    from aimonk_hf.modeling.model import AimonkModel

    if not options.repo_id and not options.output:
        raise AimonkError("push-space needs --repo-id USER/NAME to upload the Space, or --output DIR to write it")
    AimonkModel.from_pretrained(options.model)  # refused here if it does not load
    with TemporaryDirectory() as copy:
        folder = options.output or Path(copy)
        write_space(folder, options.model, options.title)
        if options.output:
            print(f"written:   {folder}  (start it with: cd {folder} && python app.py)")
        if options.repo_id:
            pushed = push_space(folder, options.repo_id, options.private or None)
            print(f"pushed:    {pushed.url}" if pushed.changed else f"unchanged: {pushed.url}")
    return 0
