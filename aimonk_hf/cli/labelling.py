"""The commands import and label."""

import argparse
import getpass
import sys
from functools import partial
from pathlib import Path
from typing import Any

from aimonk_hf.cli import flags
from aimonk_hf.errors import AimonkError, near_names
from aimonk_hf.storage import make_folder

FORMAT_NAMES = [
    *("celeba", "chexpert", "coco", "folders", "hub", "label-studio", "mat", "roboflow", "table", "tags", "xlsx")
]


def add_labelling_commands(command: flags.Command) -> None:
    """Add the commands to the parser."""
    importer = command("import", _import, "make a data folder of another tool's labels")
    flag = importer.add_argument
    flag("source", metavar="SOURCE", help="file or folder of the labels, or hf://datasets/user/name")
    flag("--output", type=Path, required=True, metavar="DATA", help="new data folder: labels.csv and import.md")
    flag("--format", metavar="NAME", help=f"{', '.join(FORMAT_NAMES)} (recognised by names and content)")
    flag("--images-dir", type=Path, metavar="DIR", help="folder below which the images are (that of SOURCE)")
    flag("--copy", action="store_true", help="copy the images into DATA/images instead of referring to them")
    flag("--blank", choices=("absent", "missing"), help="chexpert: how to take a blank cell")
    flag("--uncertain", choices=("missing", "present", "absent"), help="chexpert: how to take -1")
    listed = "coco, tags, folders, hub, label-studio: how to take an attribute that an image does not list"
    flag("--unlisted", choices=("absent", "missing"), help=listed)
    flag("--tag-separator", metavar="SIGN", help="tags: the sign between two tags of one cell")
    votes = "several annotators: NA where fewer than N agree; ties are NA in any case (1)"
    flag("--min-votes", type=int, default=1, metavar="N", help=votes)
    flags.add_reading_flags(importer)

    label = command("label", _label, "mend labels in the browser, in the order in which answers help most")
    flags.add_data_flags(label, required=False)
    flags.add_predictor_flags(label)
    flag = label.add_argument
    flag("--images", type=Path, metavar="FOLDER", help="start from nothing: a labels.csv of these images, all missing")
    flag("--model", help="model whose scores are suggestions, and whose features suggestions are learned on")
    flag("--scores", type=Path, metavar="CSV", help="out-of-fold scores as suggestions, such as a run's oof.csv")
    learned = "backbone on whose features suggestions are learned: timm name, hf-hub:user/repo, local-dir:PATH"
    flag("--architecture", help=f"{learned}; by default the model's")
    flag("--split", type=Path, metavar="CSV", help="split.csv of a run: images of its report part have their own queue")
    flag("--who", default=_user(), help="name that is written beside answers (the user's)")
    forget = "remove this image (its name, its hash, or a copy) with its row and its answers, and end"
    flag("--forget", metavar="IMAGE", help=forget)
    flag("--host", default="127.0.0.1")
    flag("--port", type=int, default=7861)
    proxied: dict[str, Any] = {"action": "append", "default": [], "metavar": "NAME"}
    flag("--allowed-host", **proxied, help="host name under which a proxy offers the page; repeatable, * for any")


def _import(options: argparse.Namespace) -> int:
    from aimonk_hf.data.agreement import agreement_table, describe_agreement
    from aimonk_hf.data.importers.rows import Told
    from aimonk_hf.data.imports import import_labels, train_command
    from aimonk_hf.data.labels import labels_table
    from aimonk_hf.data.read_options import ReadOptions

    if options.format not in (None, *FORMAT_NAMES):
        hint = near_names(options.format, FORMAT_NAMES)
        raise AimonkError(f"--format {options.format} is unknown{hint}; known are {', '.join(FORMAT_NAMES)}")
    if options.min_votes < 1:
        raise AimonkError("--min-votes must be at least 1")
    decided = options.blank, options.uncertain, options.unlisted, options.tag_separator
    told = Told(options.source, *decided, ReadOptions.of(options))
    done = import_labels(told, options.output, options.format, options.images_dir, options.min_votes, options.copy)
    print(labels_table(done.labels))
    if done.agreement:
        print(agreement_table(done.agreement))
        print(describe_agreement(done.agreement))
    print(f"written:  {len(done.labels)} images in {done.labels.source}; {options.output / 'import.md'} says how")
    print(f"train:    {train_command(options.output, done.labels)}")
    for reason in done.refused:
        print(f"refused:  {reason}", file=sys.stderr)
    return 1 if done.refused else 0


def _label(options: argparse.Namespace) -> int:
    if options.forget is not None:
        return _forget(options)
    from aimonk_hf.app.labelling import serve_labelling
    from aimonk_hf.audit.label_session import LabelSession, session_of_model
    from aimonk_hf.audit.learner import cached_features
    from aimonk_hf.audit.suspects import read_scores
    from aimonk_hf.data.dataset import content_hash
    from aimonk_hf.evaluation.split_file import read_parts

    if options.model and options.scores:
        raise AimonkError("--model and --scores both name scores: give one of them")
    if options.images:
        _begin(options)
    if not options.data_dir:
        raise AimonkError("label needs --data-dir DATA, or --images FOLDER with --attributes a,b,c")
    dataset = flags.read_data(options)
    learned_on = partial(cached_features, options.architecture, dataset.paths, options.device)
    features = learned_on if options.architecture else None
    if options.model:
        session = session_of_model(flags.load_predictor(options), dataset, features)
    else:
        scores = options.scores and read_scores(options.scores, dataset.labels.images, dataset.attributes)
        session = LabelSession(dataset, scores, _in_report(dataset.labels.parts), features)
    if options.split:
        part_of = {key: part for image, part, digest in read_parts(options.split) for key in (image, digest) if key}
        keys = zip(dataset.labels.images, map(content_hash, dataset.paths), strict=True)
        parts = [part_of.get(digest) or part_of.get(image, "") for image, digest in keys]
        if not any(parts):
            raise AimonkError(f"--split {options.split} names none of these images, by name or content")
        session.report = _in_report(parts)
    serve_labelling(session, options.who, options.host, options.port, options.allowed_host)
    return 0


def _forget(options: argparse.Namespace) -> int:
    from aimonk_hf.data.collected import forget_image

    if not options.data_dir or options.labels or options.images_dir or options.images:
        raise AimonkError("--forget removes an image of --data-dir DATA, its labels.csv and images/: name no other")
    print(f"removed:  {forget_image(Path(options.data_dir), options.forget)}")
    return 0


def _begin(options: argparse.Namespace) -> None:
    """Write a labels.csv with everything missing, of the images in a folder, unless there is one."""
    import numpy as np

    from aimonk_hf.data.images import is_image_name
    from aimonk_hf.data.labels import Labels, write_labels

    beside = options.images.parent if options.images.name == "images" else options.images
    options.data_dir, options.images_dir = options.data_dir or str(beside), str(options.images)
    path = make_folder(Path(options.data_dir)) / "labels.csv"
    if path.exists():
        return
    if not options.attributes:
        raise AimonkError("--images starts a new labels.csv: name its columns with --attributes a,b,c")
    found = (path for path in sorted(options.images.rglob("*")) if is_image_name(path.name))
    names = [path.relative_to(options.images).as_posix() for path in found]
    if not names:
        raise AimonkError(f"{options.images} holds no images")
    missing = np.full((len(names), len(options.attributes)), np.nan, np.float32)
    write_labels(path, Labels(names, options.attributes, missing))
    print(f"written:  {path}, {len(names)} images with every label missing")


def _in_report(parts: list[str] | None) -> Any:
    """Return the mask [N] of the report part, or None where no parts are known."""
    import numpy as np

    return None if parts is None else np.array([part == "report" for part in parts])


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may have no user
        return ""
