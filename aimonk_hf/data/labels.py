"""Label tables {0, 1, NaN}: read them from files, write them, merge accepted suggestions into them."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aimonk_hf.console import table
from aimonk_hf.data.formats import FORMATS, csv_rows, format_of
from aimonk_hf.data.images import shown_name
from aimonk_hf.data.label_checks import count_labels
from aimonk_hf.data.read_options import NO_OPTIONS, ReadOptions
from aimonk_hf.errors import AimonkError, near_names
from aimonk_hf.storage import is_text, write_csv

SUGGESTION_COLUMNS = ("image", "attribute", "label", "suggested", "score", "kind", "accept")
_YES = ("1", "y", "yes", "x", "true")


@dataclass
class Labels:
    """A table of labels: `values` is float32 [N, K], 1 present, 0 absent, NaN missing; row i belongs to `images[i]`.

    `groups` holds the group of each row ("" where unknown), `parts` its given part (train, validation, report or "").
    `notes` says in lines how a file was read.
    """

    images: list[str]
    attributes: list[str]
    values: NDArray[np.float32]
    source: str = ""
    groups: list[str] | None = None
    parts: list[str] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def select(self, rows: Iterable[int]) -> "Labels":
        """Return the given rows, in the given order."""
        rows = list(rows)
        groups, parts = ([column[row] for row in rows] if column else column for column in (self.groups, self.parts))
        images = [self.images[row] for row in rows]
        return replace(self, images=images, values=self.values[rows], groups=groups, parts=parts)

    def check_observed(self, what: str) -> None:
        """Raise `AimonkError` where every label is missing."""
        if np.isnan(self.values).all():
            told = f"none of the {len(self)} {what} has a label (all are NA): label some with 1 or 0"
            raise AimonkError(f"{self.source}: {told}")


def read_labels(path: str | Path, attributes: list[str] | None = None, options: ReadOptions = NO_OPTIONS) -> Labels:
    """Read a label file, or that of a folder: labels.csv, labels.txt or metadata.csv (`formats.FORMATS`).

    `attributes` names the columns of a labels.txt (Attr1..AttrK otherwise) and chooses columns, by name, of the others.
    Raises `AimonkError` with file and line for a row of another width, a value outside {1, 0, NA}, a repeated file
    name, an attribute name that is no text, or an empty file.
    """
    path, attributes = Path(path), attributes or options.attributes
    if path.is_dir():
        path = find_labels(path)
    kind = format_of(path)
    rows = kind.rows(path)
    line, header = next(rows, (1, []))
    image = next((place for place, name in enumerate(header) if name.lower() == kind.image_column), None)
    if image is None or len(header) < 2:
        told = f"the header must be {kind.image_column},<attribute>,... (found {','.join(header)[:60]!r})"
        raise AimonkError(f"{path}:{line}: {told}")
    names = header[:image] + header[image + 1 :]
    chosen = _choose_columns(path, names, attributes, kind.has_names)
    names = [names[column] for column in chosen] if kind.has_names else attributes or names
    _check_names(path, line, names)
    seen: dict[str, int] = {}
    values = array("f")  # a list of lists would take eight bytes a label, and the table four more
    for line, cells in rows:
        name = cells.pop(image)
        if not name or name in seen:
            told = f"{shown_name(name)} stands already in line {seen[name]}" if name else "the image name is empty"
            raise AimonkError(f"{path}:{line}: {told}")
        seen[name] = line
        try:
            values.extend([kind.values[cells[column]] for column in chosen])
        except KeyError as error:
            cell = error.args[0]
            column = next(column for own, column in zip(chosen, names, strict=True) if cells[own] == cell)
            advice = "use 1, 0 or NA (--attributes a,b,c names the columns that hold labels)"
            raise AimonkError(f"{path}:{line}: {cell[:40]!r} in column {column} is not a label; {advice}") from None
    if not seen:
        raise AimonkError(f"{path} has a header but no rows")
    return Labels(list(seen), list(names), np.frombuffer(values, np.float32).reshape(len(seen), -1), str(path))


def find_labels(data_dir: Path) -> Path:
    """Return the folder's label file, the first of `formats.FORMATS` that is there."""
    for name in FORMATS:
        if (data_dir / name).is_file():
            return data_dir / name
    if not data_dir.is_dir():
        raise AimonkError(f"there is no data folder {data_dir}")
    raise AimonkError(f"neither {' nor '.join(FORMATS)} lies in {data_dir}: name another file with --labels")


def _choose_columns(path: Path, names: list[str], attributes: list[str] | None, by_name: bool) -> list[int]:
    """Return the columns of the attributes; all of them where none were named."""
    if attributes and by_name:
        if unknown := [name for name in attributes if name not in names]:
            raise AimonkError(f"{path} has no attribute {unknown[0]!r}{near_names(unknown[0], names)}")
        return [column for name in attributes for column, own in enumerate(names) if own == name]
    if attributes and len(attributes) != len(names):
        told = f"{len(names)} values a row but {len(attributes)} attributes were named: {', '.join(attributes)}"
        raise AimonkError(f"{path} has {told}")
    return list(range(len(names)))


def _check_names(path: Path, line: int, names: list[str]) -> None:
    for place, name in enumerate(names):
        problem = "is empty" if not name else "stands twice" if name in names[:place] else ""
        if not is_text(name):
            problem = "is no plain text: save the file as UTF-8"
        if problem:
            raise AimonkError(f"{path}:{line}: the attribute {name[:40]!r} {problem}")


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
    rows = csv_rows(path)
    _, header = next(rows, (1, []))
    if not set(SUGGESTION_COLUMNS) <= set(header):
        raise AimonkError(f"{path} is no list of suggestions: its header must be {','.join(SUGGESTION_COLUMNS)}")
    values, accepted = labels.values.copy(), 0
    row_of = {image: row for row, image in enumerate(labels.images)}
    for line, cells in rows:
        one = dict(zip(header, cells, strict=True))
        if one["accept"].lower() not in _YES:
            continue
        image, attribute, suggested = one["image"], one["attribute"], one["suggested"]
        if image not in row_of or attribute not in labels.attributes or suggested not in ("0", "1"):
            raise AimonkError(f"{path}:{line}: {image}, {attribute} = {suggested} does not fit {labels.source}")
        place = row_of[image], labels.attributes.index(attribute)
        if (now := cell_text(labels.values[place])) != one["label"]:
            raise AimonkError(f"{path}:{line}: the label is now {now}, not {one['label']}: audit again")
        values[place] = float(suggested)
        accepted += 1
    return replace(labels, values=values), accepted


def labels_table(labels: Labels) -> str:
    """Return positives, negatives, missing labels and prevalence of each attribute."""
    rows = []
    for name, (positive, negative, missing) in zip(labels.attributes, count_labels(labels.values), strict=True):
        share = f"{positive / (positive + negative):.1%}" if positive + negative else "n/a"
        rows.append([name, str(positive), str(negative), str(missing), share])
    return table(["attribute", "positive", "negative", "NA", "prevalence"], rows)
