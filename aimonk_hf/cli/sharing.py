"""The commands that hand a model to other programs and places: export, convert, push, push-space."""

import argparse
from collections.abc import Callable
from pathlib import Path

from aimonk_hf.errors import AimonkError

Run = Callable[[argparse.Namespace], int]


def add_sharing_commands(command: Callable[[str, Run, str], argparse.ArgumentParser]) -> None:
    """Add the commands; `command` makes the parser of a name, a function and a help text."""
    export = command("export", _export, "write ONNX files for onnxruntime and Transformers.js")
    export.add_argument("--model", required=True, help="model folder or Hub repository")
    export.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="the model folder itself, or a new one"
    )
    export.add_argument("--int8", action="store_true", help="also a smaller file with 8-bit weights")
    export.add_argument("--data-dir", help="labelled images on which the ONNX files are compared with torch")
    export.add_argument("--labels", help="label file other than labels.csv or labels.txt")
    export.add_argument("--images-dir", help="where the images lie, if not in images/")
    export.add_argument("--attributes", type=_names, metavar="A,B,C", help="names of the columns of a labels.txt")

    convert = command("convert", _convert, "make a model folder of a torchvision state dict (.pth)")
    convert.add_argument("checkpoint", metavar="CHECKPOINT")
    convert.add_argument(
        "--architecture", required=True, help="resnet18, resnet34, resnet50, efficientnet_b0, or another timm name"
    )
    convert.add_argument(
        "--attributes", type=_names, metavar="A,B,C", help="names of the outputs; Attr1,Attr2,... by default"
    )
    convert.add_argument("--output", required=True, type=Path, metavar="DIR")
    convert.add_argument("--image-size", type=int, default=224, help="pixels per side (224)")
    convert.add_argument(
        "--crop-mode", choices=("squash", "center", "border"), default="squash", help="way to a square (squash)"
    )
    convert.add_argument(
        "--crop-pct", type=float, default=1.0, help="share of the resized picture that the crop keeps (1.0)"
    )
    convert.add_argument("--interpolation", choices=("bilinear", "bicubic", "nearest"), default="bilinear")
    convert.add_argument(
        "--mean", type=_numbers, metavar="R,G,B", help="subtracted from the pixels in [0, 1]; ImageNet's by default"
    )
    convert.add_argument(
        "--std", type=_numbers, metavar="R,G,B", help="by which they are divided; ImageNet's by default"
    )

    push = command("push", _push, "upload a model to the Hugging Face Hub")
    push.add_argument("--model", required=True, help="model folder or Hub repository")
    push.add_argument("--repo-id", required=True, metavar="USER/NAME", help="created where it does not exist")
    push.add_argument("--private", action="store_true", help="create it private; a public one is refused")
    push.add_argument(
        "--revision", metavar="BRANCH", help="branch to push to, created where it does not exist; main by default"
    )
    push.add_argument("--commit-message", metavar="TEXT")
    push.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")

    space = command("push-space", _push_space, "upload a Hugging Face Space that serves a model, or write its folder")
    space.add_argument("--model", required=True, help="model folder, which is copied into the Space, or Hub repository")
    space.add_argument("--repo-id", metavar="USER/NAME", help="the Space, created where it does not exist")
    space.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="write the Space's folder there; without --repo-id nothing is uploaded",
    )
    space.add_argument("--title", help="of the page; the model's name by default")
    space.add_argument("--private", action="store_true", help="create it private; a public one is refused")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _export(options: argparse.Namespace) -> int:
    from aimonk_hf.console import figure, table
    from aimonk_hf.data.dataset import AttributeDataset
    from aimonk_hf.evaluation.onnx_comparison import compare_metrics
    from aimonk_hf.modeling.model import AimonkModel
    from aimonk_hf.modeling.onnx import COMPARISON_FILE, export_folder
    from aimonk_hf.storage import write_json

    labelled = (options.data_dir, options.labels, options.images_dir, options.attributes)
    dataset = AttributeDataset.from_folder(*labelled) if options.data_dir else None
    model = AimonkModel.from_pretrained(options.model)
    if dataset is not None:
        dataset = dataset.match(model.config.attributes)  # refused before anything is written
    files = export_folder(model, options.output, options.int8)
    for file in files:
        print(f"written:  {file}  ({file.stat().st_size / 1e6:.1f} MB)")
    if dataset is not None:
        report = compare_metrics(model, files, dataset)
        write_json(options.output / COMPARISON_FILE, report)
        rows = {name: row for name, row in report.items() if name != "n_images"}
        header = ["", "F1", "avg precision", "AUROC", "largest score difference"]
        keys = ("f1", "average_precision", "auroc", "largest_score_difference")
        print(table(header, [[name, *(figure(row[key]) for key in keys)] for name, row in rows.items()]))
        print(f"{report['n_images']} images; written: {options.output / COMPARISON_FILE}")
    elif options.int8:
        print("8 bits can cost accuracy: --data-dir measures how much")
    return 0


def _numbers(text: str) -> list[float]:
    numbers = [float(part) for part in text.split(",")]
    if len(numbers) != 3:
        raise argparse.ArgumentTypeError(f"three numbers are wanted, one per colour, found {text!r}")
    return numbers


def _convert(options: argparse.Namespace) -> int:
    from aimonk_hf.modeling.convert import convert_checkpoint
    from aimonk_hf.modeling.hub import CONFIG_FILE

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
    print(f"predict:  aimonk-hf predict PICTURE --model {options.output}")
    return 0


def _push(options: argparse.Namespace) -> int:
    from tempfile import TemporaryDirectory

    from aimonk_hf.modeling.hub import push_model_folder
    from aimonk_hf.modeling.model import AimonkModel

    model = AimonkModel.from_pretrained(options.model)  # what does not load is not pushed
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
        print(f"predict:   aimonk-hf predict PICTURE --model {pushed.repo_id}")
    return 0


def _push_space(options: argparse.Namespace) -> int:
    from tempfile import TemporaryDirectory

    from aimonk_hf.app.space import push_space, write_space
    from aimonk_hf.modeling.model import AimonkModel

    if not options.repo_id and not options.output:
        raise AimonkError(
            "push-space needs --repo-id USER/NAME to upload the Space, or --output DIR to write its folder"
        )
    AimonkModel.from_pretrained(options.model)  # what does not load cannot be served
    with TemporaryDirectory() as copy:
        folder = options.output or Path(copy)
        write_space(folder, options.model, options.title)
        if options.output:
            print(f"written:   {folder}  (start it with: cd {folder} && python app.py)")
        if options.repo_id:
            pushed = push_space(folder, options.repo_id, options.private or None)
            print(f"pushed:    {pushed.url}" if pushed.changed else f"unchanged: {pushed.url}")
    return 0
