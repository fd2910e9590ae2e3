"""Formats of label files. To add one, write a function that yields its rows, and name it in `FORMATS`."""

import csv
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from aimonk_hf.data.images import IMAGE_EXTENSIONS
from aimonk_hf.errors import AimonkError, near_names


class Row(NamedTuple):
    """A row on its way into the table; the first one is the header, whose `cells` are the names of the attributes."""

    line: int
    image: str
    cells: list[str]  # 1, 0, NA or empty


class Format(NamedTuple):
    """A format: the name of its file, and the function that yields the rows of a text, with the columns asked for."""

    file_name: str
    read: Callable[[Path, str, list[str] | None], Iterator[Row]]
    images_beside: bool = False  # or in images/


def labels_csv(path: Path, text: str, attributes: list[str] | None) -> Iterator[Row]:
    """Yield the rows of a CSV with the header `image,<attribute>,...`."""
    rows = _csv_rows(path, text)
    line, header = next(rows, (1, []))
    if len(header) < 2 or header[0].lower() != "image":
        raise AimonkError(f"{path}:{line}: the header must be image,<attribute>,... (found {','.join(header)[:60]!r})")
    return _chosen(path, rows, line, header, 0, attributes)


def labels_txt(path: Path, text: str, attributes: list[str] | None) -> Iterator[Row]:
    """Yield the rows `FILENAME V1 V2 ...`; a name, which may hold spaces, ends at the last token with an extension."""
    rows = _text_rows(path, text)
    first = next(rows)
    width = len(first.cells)
    names = attributes or [f"Attr{number}" for number in range(1, width + 1)]
    if len(names) != width:
        raise AimonkError(f"{path} has {width} values a row but {len(names)} attributes were named: {', '.join(names)}")
    yield Row(first.line, "", names)
    yield first
    for row in rows:
        if len(row.cells) != width:
            raise AimonkError(f"{path}:{row.line}: {len(row.cells)} values where {width} were expected")
        yield row


def metadata_csv(path: Path, text: str, attributes: list[str] | None) -> Iterator[Row]:
    """Yield the rows of the datasets library's metadata.csv for a folder of images: a column file_name, and others."""
    words = {"NaN": "NA", "nan": "NA", "None": "NA", "True": "1", "False": "0", "true": "1", "false": "0"}
    rows = _csv_rows(path, text)
    line, header = next(rows, (1, []))
    if header.count("file_name") != 1 or len(header) < 2:
        found = ",".join(header)[:60]
        raise AimonkError(f"{path}:{line}: the header must have one column file_name, and attributes (found {found!r})")
    for row in _chosen(path, rows, line, header, header.index("file_name"), attributes):
        yield row._replace(cells=[words.get(cell, cell) for cell in row.cells]) if row.line != line else row


# In the order in which a folder is searched for them; other names of files are read by their ending.
FORMATS = (
    Format("labels.csv", labels_csv),
    Format("labels.txt", labels_txt),
    Format("metadata.csv", metadata_csv, images_beside=True),
)


def format_of(path: Path) -> Format:
    """Return the format of a label file, by its name or its ending."""
    by_name = {one.file_name: one for one in FORMATS}
    return by_name.get(path.name) or by_name["labels.csv" if path.suffix.lower() == ".csv" else "labels.txt"]


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and stripped cells of the rows that are not empty."""
    lines = (line[0] for line in re.finditer(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+", text))
    reader = csv.reader(lines, strict=True)
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                yield reader.line_num, cells
    except csv.Error as error:
        raise AimonkError(f"{path}:{reader.line_num}: {error}") from error


def _chosen(
    path: Path,
    rows: Iterator[tuple[int, list[str]]],
    line: int,
    header: list[str],
    image: int,
    attributes: list[str] | None,
) -> Iterator[Row]:
    """Yield the rows with the columns of `attributes`, by default all but that of the `image`."""
    others = [column for column in range(len(header)) if column != image]
    if attributes:
        names = [header[column] for column in others]
        if unknown := [name for name in attributes if name not in names]:
            raise AimonkError(f"{path} has no attribute {unknown[0]!r}{near_names(unknown[0], names)}")
        others = [column for name in attributes for column in others if header[column] == name]
    yield Row(line, "", [header[column] for column in others])
    for number, cells in rows:
        if len(cells) != len(header):
            raise AimonkError(f"{path}:{number}: {len(cells)} cells where {len(header)} were expected")
        yield Row(number, cells[image], [cells[column] for column in others])


def _text_rows(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        tokens = line.split()
        ends = (n for n, token in enumerate(reversed(tokens)) if token.lower().endswith(IMAGE_EXTENSIONS))
        n_values = next(ends, None)
        if n_values:
            yield Row(number, line.rsplit(maxsplit=n_values)[0].strip(), tokens[-n_values:])
        elif tokens:
            missing = "no image name" if n_values is None else "no values"
            raise AimonkError(f"{path}:{number}: {missing} in {line.strip()[:60]!r} (a row is FILENAME V1 V2 ...)")
