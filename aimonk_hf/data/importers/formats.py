"""Table of all import formats; to add one, write a function that returns its `Table`, and name it here."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from aimonk_hf.data.formats import FORMATS as LABEL_FILES
from aimonk_hf.data.images import is_image_name
from aimonk_hf.data.importers.annotations import coco, folders, label_studio
from aimonk_hf.data.importers.arrays import hub, mat
from aimonk_hf.data.importers.rows import Table, Told
from aimonk_hf.data.importers.tables import celeba, chexpert, plain, roboflow, tags
from aimonk_hf.errors import AimonkError
from aimonk_hf.storage import read_head

_TAG_HEADER = r'[^\n]*[,;\t"](tags|labels|categories|classes)"?\s*[,;\t\r\n]'
_NO_HEADER = r'[^,;\n]+\.(jpe?g|png|webp)"?[,;] *"?[^\W\d]'


class Format(NamedTuple):
    """The function that reads a format, and the names and first characters of files by which it is recognised."""

    read: Callable[[list[Path], Told], Table]
    names: tuple[str, ...] = ()
    head: str = ""


FORMATS = {
    "celeba": Format(celeba, ("list_attr_celeba.*", "Anno/list_attr_celeba.*")),
    "chexpert": Format(chexpert, ("*.csv", "*.csv.gz"), r"[^\n]*Enlarged Cardiomediastinum"),
    "roboflow": Format(roboflow, ("_classes.csv", "*/_classes.csv")),
    "label-studio": Format(label_studio, ("*.json", "*.csv"), r"\s*\[|[^\n]*annotation_id"),
    "coco": Format(coco, ("*.json", "*/*.json"), r"\s*\{"),
    "tags": Format(tags, ("*.csv", "*.tsv"), f"(?i){_TAG_HEADER}|{_NO_HEADER}"),
    "mat": Format(mat, ("*.mat",)),
    "hub": Format(hub, ("*.parquet", "*/*.parquet")),
    "xlsx": Format(plain, ("*.xlsx",)),
    "table": Format(plain, tuple(LABEL_FILES)),
    "folders": Format(folders),
}


def recognise(source: str, wanted: str | None) -> tuple[str, list[Path]]:
    """Return the format of a source and the files that it is read from; raise `AimonkError` where several fit."""
    path = Path(source)
    if source.startswith("hf://"):
        return "hub", []
    if not path.exists():
        raise AimonkError(f"There is no {source}; a dataset of the Hub is named hf://datasets/user/name")
    formats = [wanted] if wanted else list(FORMATS)
    found = {name: files for name in formats if (files := _files(path, FORMATS[name], check=not wanted))}
    if wanted == "folders" or (not found and _has_folders_of_images(path)):
        return "folders", []
    if not found and path.is_file() and not wanted:
        return "table", [path]
    if len(found) > 1:
        found.pop("table", None)
    if len(found) != 1:
        several = f"may be {' or '.join(found)}" if found else f"holds no labels of {' or '.join(formats)}"
        raise AimonkError(f"{source} {several}: name the file, and its format with --format")
    return found.popitem()


def _files(path: Path, form: Format, check: bool) -> list[Path]:
    """Return the files of a format; `check` looks at names and first characters."""
    if path.is_dir():
        files = sorted(file for pattern in form.names for file in path.glob(pattern) if file.name[:2] != "._")
    else:
        files = [path] if not check or any(path.match(pattern) for pattern in form.names) else []
    return [
        file for file in files if not check or re.match(form.head, read_head(file, 4096).decode("utf-8-sig", "replace"))
    ]


def _has_folders_of_images(path: Path) -> bool:
    return path.is_dir() and any(is_image_name(file.name) for depth in ("*/*", "*/*/*") for file in path.glob(depth))
