"""Formats of label files. To add one, write a function that yields its rows, and name it in `FORMATS`."""

import csv
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aimonk_hf.data.images import IMAGE_EXTENSIONS
from aimonk_hf.errors import AimonkError
from aimonk_hf.storage import explained

# Line number and cells; all rows of a file have as many cells as the first, its header.
Row = tuple[int, list[str]]

_VALUES = {"1": 1.0, "1.0": 1.0, "0": 0.0, "0.0": 0.0, "NA": np.nan, "": np.nan}
_WORDS = dict.fromkeys(("NaN", "nan", "None"), np.nan) | {"True": 1.0, "true": 1.0, "False": 0.0, "false": 0.0}


class Format(NamedTuple):
    """A format: the function that yields header and rows, the column of images, and the meaning of cells."""

    rows: Callable[[Path], Iterator[Row]]
    image_column: str
    values: dict[str, float] = _VALUES
    has_names: bool = True  # of the attributes
    images_beside: bool = False  # or in images/


def csv_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a CSV file with its header; empty rows, and spaces around cells, are layout."""
    text = _read_text(path)
    lines = (line[0] for line in re.finditer(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+", text))
    reader = csv.reader(lines, strict=True)
    width = 0
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                width = width or len(cells)
                if len(cells) != width:
                    raise AimonkError(f"{path}:{reader.line_num}: {len(cells)} cells where {width} were expected")
                yield reader.line_num, cells
    except csv.Error as error:
        raise AimonkError(f"{path}:{reader.line_num}: {error}") from error


def text_rows(path: Path) -> Iterator[Row]:
    """Yield the rows `FILENAME V1 V2 ...`; a name, which may hold spaces, ends at the last token with an extension."""
    width = 0
    for number, line in enumerate(re.split(r"\r\n|\r|\n", _read_text(path)), start=1):
        tokens = line.split()
        if not tokens:
            continue
        ends = (n for n, token in enumerate(reversed(tokens)) if token.lower().endswith(IMAGE_EXTENSIONS))
        n_values = next(ends, -1)
        if n_values < 1:
            missing = "no values" if n_values == 0 else "no image name"
            raise AimonkError(f"{path}:{number}: {missing} in {line.strip()[:60]!r} (a row is FILENAME V1 V2 ...)")
        if not width:
            width = n_values
            yield number, ["image", *(f"Attr{place}" for place in range(1, width + 1))]
        if n_values != width:
            raise AimonkError(f"{path}:{number}: {n_values} values where {width} were expected")
        yield number, [line.rsplit(maxsplit=n_values)[0].strip(), *tokens[-n_values:]]


# In the order in which a folder is searched for them; files of other names are read by their ending.
FORMATS = {
    "labels.csv": Format(csv_rows, "image"),
    "labels.txt": Format(text_rows, "image", has_names=False),
    # the datasets library's file for a folder of images
    "metadata.csv": Format(csv_rows, "file_name", _VALUES | _WORDS, images_beside=True),
}


def format_of(path: Path) -> Format:
    """Return the format of a label file, by its name or its ending."""
    return FORMATS.get(path.name) or FORMATS["labels.csv" if path.suffix.lower() == ".csv" else "labels.txt"]


def _read_text(path: Path) -> str:
    """Return the file's text with its line ends; bytes that are not UTF-8, as in file names, become surrogates."""
    with explained(f"read {path}"):
        content = path.read_bytes()
    if (place := content.find(b"\0")) >= 0:
        number = content.count(b"\n", 0, place) + 1
        raise AimonkError(f"{path}:{number}: a zero byte: this is no text file, or one in UTF-16; save it as UTF-8")
    text = content.decode("utf-8-sig", "surrogateescape")
    if not text or text.isspace():
        raise AimonkError(f"{path} is empty: a row is an image name and one value (1, 0 or NA) per attribute")
    return text
