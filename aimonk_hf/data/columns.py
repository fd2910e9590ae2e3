"""Choose the columns of a label file: image, labels, group, part; refuse names of which nothing could be made."""

import sys
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from aimonk_hf.console import warn_once
from aimonk_hf.data.formats import Table, find_image_column
from aimonk_hf.data.images import IMAGE_EXTENSIONS, shown_name
from aimonk_hf.data.read_options import ReadOptions
from aimonk_hf.data.vocabulary import PART_OF
from aimonk_hf.errors import AimonkError, near_names
from aimonk_hf.storage import is_text

_PANDAS_INDEX = "__index_level_0__"
_INDEX_NAMES = ("", "unnamed: 0", "index", "#")  # of a first column


# Returns the meaning of a cell; raises `ValueError` in words where it has none.
Reader = Callable[[Any], str]


class Columns(NamedTuple):
    """The places of the image, of the labels (with their names) and of other columns, with their readers by kind."""

    image: int
    labels: list[int]
    names: list[str]
    others: dict[str, tuple[int, Reader]]

    @property
    def places(self) -> list[int]:
        """The places of all columns that are read."""
        return [self.image, *self.labels, *(place for place, _ in self.others.values())]


def choose_columns(path: Path, table: Table, image_columns: Sequence[str], options: ReadOptions) -> Columns:
    """Return the columns that the options and the header name; note those that are left out."""
    where, names = f"{path}:{table.line}", list(table.header)
    attributes, ignored = options.attributes or [], options.ignore_columns or []
    image = find_image_column(names, image_columns) if table.has_names else 0
    if image is None or len(names) < 2:
        raise AimonkError(f"{where}: {_no_image_column(names, image_columns)}")
    if attributes and not table.has_names:
        if len(attributes) != len(names) - 1:
            told = f"{len(names) - 1} values a row but {len(attributes)} attributes were named: {', '.join(attributes)}"
            raise AimonkError(f"{path} has {told}")
        names[1:] = attributes
    rest = [name for place, name in enumerate(names) if place != image]
    special: dict[str, tuple[Any, Reader]] = {
        "group": (options.group_column, _group),
        "split": (options.split_column, _part),
    }
    others = {kind: (names.index(name), read) for kind, (name, read) in special.items() if name in rest}
    for what, wanted in (
        ("attribute", attributes),
        ("column for --ignore-columns:", ignored),
        *((f"column for --{kind}-column:", [name] * (name is not None)) for kind, (name, _) in special.items()),
    ):
        if unknown := [name for name in wanted if name not in rest]:
            raise AimonkError(f"{path} has no {what} {unknown[0]!r}{shown_name(near_names(str(unknown[0]), rest))}")
    for place, name in enumerate(names):
        is_index = name == _PANDAS_INDEX or (place == 0 and name.casefold() in _INDEX_NAMES)
        if is_index and place != image and name not in (*attributes, *ignored):
            others["index"] = place, _index_reader(name)
    taken = {image, *(place for place, _ in others.values())}
    labels = [place for place, name in enumerate(names) if place not in taken and name not in ignored]
    if attributes and table.has_names:
        labels = [place for name in attributes for place in labels if names[place] == name]
    if not labels:
        raise AimonkError(f"{where}: No column is left for labels: the header is {','.join(names)[:60]!r}")
    _check_names(where, [names[place] for place in labels])
    left_out = [name for place, name in enumerate(names) if place not in taken.union(labels)]
    if left_out := left_out + ["the index"] * ("index" in others):
        table.notes.append(f"columns left out: {', '.join(left_out)[:200]}")
    return Columns(image, labels, [names[place] for place in labels], others)


def _no_image_column(names: list[str], image_columns: Sequence[str]) -> str:
    found, first = ",".join(names)[:60], image_columns[0]
    if len(image_columns) == 1:
        return f"There is no column {first!r} (--image-column){shown_name(near_names(first, names))}"
    if any(name.lower().endswith(IMAGE_EXTENSIONS) for name in names):
        return f"The first row is not a header: write {first},<attribute>,... above it (found {found!r})"
    told = f"The header must be {first},<attribute>,... (found {found!r}), divided by commas, semicolons or tabs"
    return f"{told}: --image-column names the column of the images, and a line sep=| above it another delimiter"


def _check_names(where: str, names: list[str]) -> None:
    """Raise `AimonkError` for names that are empty, repeated or no text; warn of those that differ in case only."""
    seen: dict[str, str] = {}
    for name in names:
        plain = "".join(name.split()).casefold()
        problem = "" if name else "has no name: add one, or remove the column"
        if seen.get(plain) == name:
            problem = "is in the header twice"
        if not is_text(name):
            problem = "is not plain text: save the file as UTF-8, or say its encoding with --encoding (such as latin-1)"
        if problem:
            raise AimonkError(f"{where}: The attribute {name[:40]!r} {problem}")
        if plain in seen:
            told = f"The attributes {seen[plain]!r} and {name!r} differ only in case or spaces"
            warn_once(f"{where}: {told}: if they are one attribute, merge the columns")
        seen.setdefault(plain, name)


def _text(cell: Any) -> str:
    return "" if cell is None else str(cell).strip()


def _group(cell: Any) -> str:
    return sys.intern(_text(cell))


def _part(cell: Any) -> str:
    text = _text(cell)
    if text.casefold() not in PART_OF:
        raise ValueError(f"{text[:40]!r} is not a part: use train, validation or report")
    return PART_OF[text.casefold()]


def _index_reader(name: str) -> Reader:
    """Return a reader that lets only whole numbers through, in a column with a name only those that count rows."""
    rows = count()

    def read(cell: Any) -> str:
        text, row = _text(cell), next(rows)
        is_number = text.isascii() and text.isdecimal()
        if not is_number or (name.casefold() in ("index", "#") and int(text[:9]) not in (row, row + 1)):
            told = f"{text[:40]!r} in the first column, {name!r}, is not the number of the row"
            raise ValueError(f"{told}: name the column, or leave it out with --ignore-columns {name or repr(name)}")
        return ""

    return read
