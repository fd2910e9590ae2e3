"""Formats of annotation tools: Label Studio, COCO; one folder per tag."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from aimonk_hf.data.formats import headed_rows
from aimonk_hf.data.image_paths import image_files
from aimonk_hf.data.images import is_image_name
from aimonk_hf.data.importers.rows import PARTS, Row, Table, Told, listing, read_json_file
from aimonk_hf.errors import AimonkError, reason_of

_WORDS = dict.fromkeys(("yes", "true", "present"), "listed") | dict.fromkeys(("no", "false", "absent"), "no")
_NO_CHOICES = {"annotation_id", "annotator", "created_at", "updated_at", "lead_time", "id", "agreement", "history"}


class _Annotation(NamedTuple):
    """The choices of one annotator about one image, by the name of their control."""

    file: Path
    line: int | str
    image: str
    annotator: str
    choices: dict[str, list[str]]


def label_studio(files: list[Path], told: Told) -> Table:
    """Read a Label Studio export as JSON, JSON_MIN or CSV; a choice is an attribute, or a control of yes and no.

    A choice that an annotator left open is absent, unless --unlisted says otherwise; a task without annotation has
    missing labels.
    """
    annotations = [one for path in files for one in _label_studio_annotations(path, told)]
    choices: dict[str, dict[str, None]] = {}
    for one in annotations:
        for control, ticked in one.choices.items():
            choices.setdefault(control, {}).update(dict.fromkeys(ticked))
    columns: dict[str, tuple[str, str]] = {}  # attribute -> control and choice, no choice for a control of yes and no
    for control, known in choices.items():
        if known and all(choice.lower() in _WORDS for choice in known):
            columns[control] = control, ""
            continue
        for choice in known:
            is_clear = sum(choice in others for others in choices.values()) == 1
            columns[choice if is_clear else f"{control}: {choice}"] = control, choice

    def cell(one: _Annotation, control: str, choice: str) -> str:
        ticked = one.choices.get(control, [])
        if not one.annotator or choice:
            return "missing" if not one.annotator else "listed" if choice in ticked else "unlisted"
        answers = {_WORDS[word.lower()] for word in ticked}
        return answers.pop() if len(answers) == 1 else "missing"

    rows = (
        Row(*one[:3], [cell(one, *column) for column in columns.values()], annotator=one.annotator)
        for one in annotations
    )
    return Table(list(columns), told.tags("absent") | {"no": 0.0}, rows)


def _label_studio_annotations(path: Path, told: Told) -> Iterator[_Annotation]:
    if path.suffix.lower() == ".json":
        tasks = enumerate(read_json_file(path, list, "a Label Studio export"), start=1)
        items: Any = ((f"task {number}", task) for number, task in tasks)
    else:
        items = headed_rows(path, ("annotation_id", "annotator"), told.options.encoding)
    for line, task in items:
        try:
            found = [*_annotations_of_task(task)] if "data" in task else [_flat_annotation(task, told)]
            for image, annotator, choices in found:
                yield _Annotation(path, line, image, annotator, choices)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise AimonkError(f"{path}:{line}: not a task of Label Studio ({reason_of(error)})") from error


def _annotations_of_task(task: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, list[str]]]]:
    image = _image_of(task["data"])
    done = [one for one in task["annotations"] if not one.get("was_cancelled")]  # skipped
    for one in done:
        who = one.get("completed_by")
        annotator = str(who.get("email") or who["id"]) if isinstance(who, dict) else str(who)
        results = [result for result in one["result"] if result.get("type") == "choices"]
        yield image, annotator, {result["from_name"]: list(result["value"]["choices"]) for result in results}
    if not done:
        yield image, "", {}


def _flat_annotation(row: dict[str, Any], told: Told) -> tuple[str, str, dict[str, list[str]]]:
    image, ignored = _image_of(row), told.options.ignore_columns or []
    own = {name: value for name, value in row.items() if value not in (None, "", image)}
    annotator = str(own.get("annotator", ""))
    return image, annotator, {name: _ticked(name, own[name]) for name in own if name not in {*_NO_CHOICES, *ignored}}


def _ticked(name: str, value: Any) -> list[str]:
    if isinstance(value, str) and value[:1] in ("{", "["):
        value = json.loads(value)
    if isinstance(value, dict):
        return list(value["choices"])
    if isinstance(value, list):
        raise ValueError(f"{name} holds no choices, --ignore-columns {name} leaves it out")
    return [str(value)]


def _image_of(data: dict[str, Any]) -> str:
    """Return the value that names the image; files on a server are named behind `?d=`."""
    texts = {name: value for name, value in data.items() if isinstance(value, str)}
    texts |= {name: unquote(text.split("?d=")[1]) for name, text in texts.items() if "?d=" in text}
    return next((text for text in texts.values() if is_image_name(text)), texts.get("image", ""))


def coco(files: list[Path], told: Told) -> Table:
    """Read COCO JSON: a category with an annotation in an image is an attribute of it."""
    contents = {path: _coco_content(path) for path in files}
    attributes = list(dict.fromkeys(name for names, _, _ in contents.values() for name in names.values()))

    def rows() -> Iterator[Row]:
        for path, (names, images, pairs) in contents.items():
            words = [path.parent.name.lower(), *re.findall("[a-z]+", path.stem.lower())]
            part = next((PARTS[word] for word in reversed(words) if word in PARTS), "")
            listed: dict[Any, set[str]] = {identity: set() for identity in images}
            for number, (image, category) in enumerate(pairs):
                if image in images and category in names:
                    listed[image].add(names[category])
                else:
                    unknown = f"category {category}" if image in images else f"image {image}"
                    yield Row(path, f"annotations[{number}]", "", problem=f"there is no {unknown}")
            for identity, name in images.items():
                yield Row(path, f"image {identity}", name, listing(listed[identity], attributes), part)

    return Table(attributes, told.tags(), rows())


def _coco_content(path: Path) -> tuple[dict[Any, str], dict[Any, str], list[tuple[Any, Any]]]:
    """Return the names of categories and images by their id, and the pairs of image and category."""
    content = read_json_file(path, dict, "COCO JSON")
    try:
        names = {one["id"]: str(one["name"]) for one in content["categories"]}
        images = {one["id"]: str(one["file_name"]) for one in content["images"]}
        return names, images, [(one["image_id"], one["category_id"]) for one in content["annotations"]]
    except (KeyError, TypeError) as error:
        told = "categories, images and annotations with their ids are expected"
        raise AimonkError(f"{path} is not COCO JSON: {told} ({reason_of(error)})") from error


def folders(files: list[Path], told: Told) -> Table:
    """Read SOURCE/<tag>/<image> or SOURCE/train/<tag>/<image>; equal files in several folders are one image."""
    from aimonk_hf.data.dataset import duplicate_groups

    root = Path(told.source)
    paths = sorted(root / file for file in image_files(root))
    places = [path.relative_to(root).parts for path in paths]
    depth = int(all(place[0].lower() in PARTS for place in places))
    tags_of: dict[tuple[int, str], set[str]] = {}
    first: dict[tuple[int, str], Path] = {}
    for path, place, copy in zip(paths, places, duplicate_groups(paths).tolist(), strict=True):
        image = copy, PARTS[place[0].lower()] if depth else ""
        first.setdefault(image, path)
        tags_of.setdefault(image, set()).update(place[depth:-1][:1])
    attributes = sorted(set().union(*tags_of.values()))
    if not attributes:
        raise AimonkError(f"{root} has no folders with images: one folder per tag is expected")
    rows = (
        Row(root, first[image].relative_to(root).as_posix(), str(first[image]), listing(tags, attributes), image[1])
        for image, tags in tags_of.items()
    )
    return Table(attributes, told.tags(), rows)
