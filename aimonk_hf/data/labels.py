"""Label tables {0, 1, NaN}: read them from files, write them, merge accepted suggestions into them."""

import re
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aimonk_hf.console import table
from aimonk_hf.data.columns import Columns, choose_columns
from aimonk_hf.data.formats import FORMATS, TABLE_ENDINGS, Table, format_of, headed_rows
from aimonk_hf.data.images import shown_name
from aimonk_hf.data.label_checks import count_labels
from aimonk_hf.data.read_options import NO_OPTIONS, ReadOptions
from aimonk_hf.data.reviews import apply_reviews, reviews_path
from aimonk_hf.data.vocabulary import Vocabulary, advice
from aimonk_hf.errors import AimonkError
from aimonk_hf.storage import explained, write_csv

SUGGESTION_COLUMNS = ("image", "attribute", "label", "suggested", "score", "kind", "accept")
_URL = re.compile(r"(?:https?|ftp|s3|gs|hf)://|data:image/", re.IGNORECASE)
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

    @property
    def told(self) -> str:
        """The notes, one a line."""
        return "\n          ".join(map(shown_name, self.notes))

    def select(self, rows: Iterable[int]) -> "Labels":
        """Return the given rows, in the given order."""
        rows = list(rows)
        groups, parts = ([column[row] for row in rows] if column else column for column in (self.groups, self.parts))
        images = [self.images[row] for row in rows]
        return replace(self, images=images, values=self.values[rows], groups=groups, parts=parts)

    def check_observed(self, what: str) -> None:
        """Raise `AimonkError` where every label is missing."""
        if np.isnan(self.values).all():
            told = f"None of the {len(self)} {what} has a label (all are NA): label some with 1 or 0"
            raise AimonkError(f"{self.source}: {told}")


def read_labels(path: str | Path, attributes: list[str] | None = None, options: ReadOptions = NO_OPTIONS) -> Labels:
    """Read a label file, or that of a folder: labels.csv, labels.txt, metadata.jsonl, ... (`formats.FORMATS`).

    `attributes` (or `options.attributes`) names the columns of a labels.txt (Attr1..AttrK otherwise) and chooses
    columns, by name, of the others. Raises `AimonkError` with file and line for a row of another width, a value that is
    not a label, a repeated file name, an attribute name that is not text, or an empty file; the message names the flag.
    """
    path, attributes = Path(path), attributes or options.attributes
    if path.is_dir():
        path = find_labels(path)
    options = replace(options, attributes=attributes or options.attributes)
    kind = format_of(path)
    table = kind.open(path, options.encoding, options.image_column)
    image_columns = [options.image_column] if options.image_column else kind.image_columns
    columns = choose_columns(path, table, image_columns, options)
    meaning, n_labels = Vocabulary(options), len(columns.labels)
    images: dict[str, None] = {}
    values = array("f")  # a list of lists would take eight bytes a label, and the table four more
    others: dict[str, list[str]] = {own: [] for own in columns.others}
    for line, cells in table.rows(columns.places):
        name = "" if cells[0] is None else str(cells[0]).strip()
        if not name or name in images or _URL.match(name):
            raise AimonkError(f"{path}:{line}: {_refused_name(name, table, columns)}")
        images[name] = None
        try:
            values.extend(map(meaning.__getitem__, cells[1 : n_labels + 1]))
            for (own, (_, read)), cell in zip(columns.others.items(), cells[n_labels + 1 :], strict=True):
                others[own].append(read(cell))
        except (KeyError, TypeError):
            odd = [place for place in range(n_labels) if not meaning.knows(cells[place + 1])]
            told = f"{str(cells[odd[0] + 1])[:40]!r} in column {columns.names[odd[0]]} is not a label (1, 0 or NA)"
            told += f": {advice(cells[odd[0] + 1], [columns.names[place] for place in odd])}"
            raise AimonkError(f"{path}:{line}: {shown_name(told)}") from None
        except ValueError as error:
            raise AimonkError(f"{path}:{line}: {error}") from None
    if not images:
        raise AimonkError(f"{path} has a header but no rows")
    counts = f"{len(images):,} row(s), {len(columns.names)} attribute(s)"
    notes = [f"{path}: {counts}; {meaning.described()}", *table.notes]
    table_values = np.frombuffer(values, np.float32).reshape(len(images), -1)
    if options.reviews and (told := apply_reviews(reviews_path(path), list(images), columns.names, table_values)):
        notes.append(told)
    return Labels(
        list(images), columns.names, table_values, str(path), others.get("group"), others.get("split"), tuple(notes)
    )


def _refused_name(name: str, table: Table, columns: Columns) -> str:
    """Return why a row's image name is refused."""
    if not name:
        return "The image name is empty"
    if _URL.match(name):
        fetch = "wget --input-file=urls.txt --directory-prefix=images"
        return f"{shown_name(name)[:80]} is a URL: fetch the images first ({fetch}), and list their file names"
    same = (line for line, (cell, *_) in table.rows(columns.places) if str(cell).strip() == name)
    told = f"{shown_name(name)} is listed already in line {next(same)}"
    return f"{told}: keep one row (`aimonk-hf import` merges the rows of several annotators)"


def find_labels(data_dir: Path) -> Path:
    """Return the folder's label file, the first of `formats.FORMATS` that is there."""
    for name in FORMATS:
        if (data_dir / name).is_file():
            return data_dir / name
    if not data_dir.is_dir():
        raise AimonkError(f"There is no data folder {data_dir}")
    with explained(f"read {data_dir}"):
        others = [path.name for path in sorted(data_dir.iterdir()) if path.suffix.lower() in TABLE_ENDINGS]
    advice = f"--labels {data_dir / shown_name(others[0])} names one" if others else "name another file with --labels"
    raise AimonkError(f"{data_dir} has no label file ({', '.join(FORMATS)}): {advice}")


def write_labels(path: Path, labels: Labels) -> None:
    """Write a table as labels.csv, with the columns `group` and `split` where it has groups and parts."""
    columns = {"group": labels.groups, "split": labels.parts}
    others = {name: column for name, column in columns.items() if column is not None}
    if taken := [name for name in others if name in labels.attributes]:
        raise AimonkError(f"{path}: The attribute {taken[0]!r} has the name of the column of {taken[0]}s: rename it")
    rows = zip(labels.images, labels.values, *others.values(), strict=True)
    cells = ([image, *map(cell_text, row), *more] for image, row, *more in rows)
    write_csv(path, ["image", *labels.attributes, *others], cells)


def cell_text(value: float) -> str:
    """Return a label as files write it."""
    return "NA" if np.isnan(value) else str(int(value))


def accept_suggestions(path: Path, labels: Labels) -> tuple[Labels, int]:
    """Return the labels with the rows of a suggestions CSV whose `accept` says yes (1, y, yes, x), and their number.

    Raises `AimonkError` for another header, an unknown image or attribute, or a label that has changed since.
    """
    values, accepted = labels.values.copy(), 0
    row_of = {image: row for row, image in enumerate(labels.images)}
    for line, one in headed_rows(path, SUGGESTION_COLUMNS):
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
