"""The command label."""

import argparse
import getpass
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aimonk_hf.cli.flags import Command, add_data_flags, add_predictor_flags, load_predictor, read_data
from aimonk_hf.errors import AimonkError
from aimonk_hf.storage import make_folder

if TYPE_CHECKING:
    from aimonk_hf.data.dataset import AttributeDataset


def add_label_command(command: Command) -> None:
    """Add the command to the parser."""
    label = command("label", _label, "mend labels in the browser, in the order in which answers help most")
    add_data_flags(label, required=False)
    add_predictor_flags(label)
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


def _label(options: argparse.Namespace) -> int:
    if options.forget is not None:
        return _forget(options)
    from aimonk_hf.app.labelling import serve_labelling
    from aimonk_hf.audit.label_session import LabelSession, session_of_model
    from aimonk_hf.audit.learner import cached_features
    from aimonk_hf.data.dataset import content_hash
    from aimonk_hf.evaluation.split_file import read_parts

    if options.model and options.scores:
        raise AimonkError("--model and --scores both name scores: give one of them")
    if options.images:
        _begin(options)
    if not options.data_dir:
        raise AimonkError("label needs --data-dir DATA, or --images FOLDER with --attributes a,b,c")
    dataset = read_data(options)
    learned_on = partial(cached_features, options.architecture, dataset.paths, options.device)
    features = learned_on if options.architecture else None
    if options.model:
        model = load_predictor(options)
        print(model.computing_line, file=sys.stderr)
        session = session_of_model(model, dataset, features)
    else:
        session = LabelSession(dataset, _scores(options, dataset), _in_report(dataset.labels.parts), features)
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

    from aimonk_hf.data.images import IMAGE_EXTENSIONS
    from aimonk_hf.data.labels import Labels, write_labels

    options.data_dir = options.data_dir or str(
        options.images.parent if options.images.name == "images" else options.images
    )
    options.images_dir = str(options.images)
    path = make_folder(Path(options.data_dir)) / "labels.csv"
    if path.exists():
        return
    if not options.attributes:
        raise AimonkError("--images starts a new labels.csv: name its columns with --attributes a,b,c")
    found = (path for path in sorted(options.images.rglob("*")) if path.suffix.lower() in IMAGE_EXTENSIONS)
    names = [path.relative_to(options.images).as_posix() for path in found if not path.name.startswith("._")]
    if not names:
        raise AimonkError(f"{options.images} holds no images")
    missing = np.full((len(names), len(options.attributes)), np.nan, np.float32)
    write_labels(path, Labels(names, options.attributes, missing))
    print(f"written:  {path}, {len(names)} images with every label missing")


def _scores(options: argparse.Namespace, dataset: "AttributeDataset") -> Any:
    """Return the scores [N, K] of --scores, or None."""
    from aimonk_hf.audit.suspects import read_scores

    return options.scores and read_scores(options.scores, dataset.labels.images, dataset.attributes)


def _in_report(parts: list[str] | None) -> Any:
    """Return the mask [N] of the report part, or None where no parts are known."""
    import numpy as np

    return None if parts is None else np.array([part == "report" for part in parts])


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may have no user
        return ""
