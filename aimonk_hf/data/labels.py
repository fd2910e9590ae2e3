"""Label tables {0, 1, NaN}: read them from files, write them, merge accepted suggestions into them."""

import csv
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aimonk_hf.console import table
from aimonk_hf.data.formats import FORMATS, format_of
from aimonk_hf.data.images import shown_name
from aimonk_hf.data.label_checks import count_labels
from aimonk_hf.errors import AimonkError
from aimonk_hf.storage import explained, is_text, write_csv

SUGGESTION_COLUMNS = ("image", "attribute", "label", "suggested", "score", "kind", "accept")
_VALUES = {"1": 1.0, "1.0": 1.0, "0": 0.0, "0.0": 0.0, "NA": np.nan, "": np.nan}
_YES = ("1", "y", "yes", "x", "true")


@dataclass
class Labels:
    """A table of labels: `values` is float32 [N, K], 1 present, 0 absent, NaN missing; row i belongs to `images[i]`."""

    images: list[str]
    attributes: list[str]
    values: NDArray[np.float32]
    source: str = ""

    def __len__(self) -> int:
        return len(self.images)

    def select(self, rows: Iterable[int]) -> "Labels":
        """Return the given rows, in the given order."""
        rows = list(rows)
        return replace(self, images=[self.images[row] for row in rows], values=self.values[rows])

    def check_observed(self, what: str) -> None:
        """Raise `AimonkError` where every label is missing."""
        if np.isnan(self.values).all():
            raise AimonkError(
                f"{self.source}: none of the {len(self)} {what} has a label (all are NA): label some with 1 or 0"
            )


def read_labels(path: str | Path, attributes: list[str] | None = None) -> Labels:
    """Read a label file, or that of a folder: labels.csv, labels.txt or metadata.csv (`formats.FORMATS`).

    `attributes` names the columns of a labels.txt (Attr1..AttrK otherwise) and chooses columns, by name, of the others.
    Spaces around names and values are layout. Raises `AimonkError` with file and line for a row of another width, a
    value outside {1, 0, NA}, a repeated file name, an attribute name that is no text, or an empty file.
    """
    path = Path(path)
    if path.is_dir():
        path = find_labels(path)
    rows = format_of(path).read(path, _read_text(path), attributes)
    line, _, names = next(rows)
    _check_names(path, line, names)
    seen: dict[str, int] = {}
    values = array("f")  # a list of lists would take eight bytes a label, and the table four more
    for line, image, cells in rows:
        if not image:
            raise AimonkError(f"{path}:{line}: the image name is empty")
        if image in seen:
            told = f"{shown_name(image)} stands already in line {seen[image]}"
            raise AimonkError(f"{path}:{line}: {told}; keep one of the two rows")
        try:
            values.extend([_VALUES[cell] for cell in cells])
        except KeyError as error:
            column = names[cells.index(error.args[0])]
            raise AimonkError(
                f"{path}:{line}: {error.args[0][:40]!r} in column {column} is not a label; use 1, 0 or NA "
                "(--attributes a,b,c names the columns that hold labels)"
            ) from None
        seen[image] = line
    if not seen:
        raise AimonkError(f"{path} has a header but no rows")
    return Labels(list(seen), list(names), np.frombuffer(values, np.float32).reshape(len(seen), -1), str(path))


def find_labels(data_dir: Path) -> Path:
    """Return the folder's label file, the first of `formats.FORMATS` that is there."""
    names = [one.file_name for one in FORMATS]
    for name in names:
        if (data_dir / name).is_file():
            return data_dir / name
    if not data_dir.is_dir():
        raise AimonkError(f"there is no data folder {data_dir}")
    raise AimonkError(f"neither {' nor '.join(names)} lies in {data_dir}: name another file with --labels")


def _read_text(path: Path) -> str:
    """Return the file's text with its line ends; bytes that are not UTF-8, as in file names, become surrogates."""
    with explained(f"read the labels {path}"):
        content = path.read_bytes()
    if (place := content.find(b"\0")) >= 0:
        number = content.count(b"\n", 0, place) + 1
        raise AimonkError(f"{path}:{number}: a zero byte: this is no text file, or one in UTF-16; save it as UTF-8")
    text = content.decode("utf-8-sig", "surrogateescape")
    if not text or text.isspace():
        raise AimonkError(f"{path} is empty: a row is an image name and one value (1, 0 or NA) per attribute")
    return text


def _check_names(path: Path, line: int, names: list[str]) -> None:
    for name, count in Counter(names).items():
        if not name:
            raise AimonkError(f"{path}:{line}: an attribute name is empty")
        if not is_text(name):
            raise AimonkError(f"{path}:{line}: the attribute {name[:40]!r} is no plain text: save the file as UTF-8")
        if count > 1:
            raise AimonkError(f"{path}:{line}: the attribute {name!r} stands twice")


def write_labels(path: Path, labels: Labels) -> None:
    """Write a table as labels.csv, for `train --labels`."""
    rows = ([image, *map(cell_text, row)] for image, row in zip(labels.images, labels.values, strict=True))
    write_csv(path, ["image", *labels.attributes], rows)


def cell_text(value: float) -> str:
    """Return a label as it stands in a file."""
    return "NA" if np.isnan(value) else str(int(value))


def accept_suggestions(path: Path, labels: Labels) -> tuple[Labels, int]:
    """Return the labels with the rows of a suggestions CSV whose `accept` says yes (1, y, yes, x), and their number.

    Raises `AimonkError` for another header, an unknown image or attribute, or a label that has changed since.
    """
    with explained(f"read {path}"), path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = list(csv.DictReader(file))
    if rows and not set(SUGGESTION_COLUMNS) <= set(rows[0]):
        raise AimonkError(f"{path} is no list of suggestions: its header must be {','.join(SUGGESTION_COLUMNS)}")
    values = labels.values.copy()
    row_of = {image: row for row, image in enumerate(labels.images)}
    column_of = {attribute: column for column, attribute in enumerate(labels.attributes)}
    accepted = [(line, one) for line, one in enumerate(rows, 2) if (one["accept"] or "").strip().lower() in _YES]
    for line, one in accepted:
        place = row_of.get(one["image"], -1), column_of.get(one["attribute"], -1)
        if min(place) < 0 or one["suggested"] not in ("0", "1"):
            told = f"{one['image']}, {one['attribute']} = {one['suggested']}"
            raise AimonkError(f"{path}:{line}: {told} does not fit {labels.source}")
        if (now := cell_text(labels.values[place])) != one["label"]:
            raise AimonkError(f"{path}:{line}: the label is now {now}, not {one['label']}: audit again")
        values[place] = float(one["suggested"])
    return replace(labels, values=values), len(accepted)


def labels_table(labels: Labels) -> str:
    """Return positives, negatives, missing labels and prevalence of each attribute."""
    rows = []
    for name, column in zip(labels.attributes, labels.values.T, strict=True):
        positive, negative, missing = count_labels(column)
        share = f"{positive / (positive + negative):.1%}" if positive + negative else "n/a"
        rows.append([name, str(positive), str(negative), str(missing), share])
    return table(["attribute", "positive", "negative", "NA", "prevalence"], rows)
