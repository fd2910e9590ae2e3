"""metadata.csv of an image folder in the form of the datasets library: a column file_name, and one column per attribute."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from aimonk_hf.errors import AimonkError, near_names

METADATA_FILE = "metadata.csv"
_VALUES = {"": "NA", "NaN": "NA", "nan": "NA", "None": "NA", "True": "1", "False": "0", "true": "1", "false": "0"}


def metadata_rows(path: Path, text: str, attributes: list[str] | None = None) -> Iterator[tuple[int, str, list[str]]]:
    """Yield line number, image name and value texts of each row, the header `image` first, as labels.csv would have them.

    `attributes` chooses columns, so that others (captions, sizes) are left aside; otherwise every column but file_name is an attribute.
    True and False are 1 and 0, an empty cell is NA. Raises `AimonkError` where file_name or an attribute is not there.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [cell.strip() for cell in next(reader)]
        if "file_name" not in header:
            raise AimonkError(f"{path}:1: the header must have a column file_name (found {','.join(header)[:60]!r})")
        name = header.index("file_name")
        columns = _columns(path, header, attributes)
        yield 1, "image", [header[column] for column in columns]
        for row in reader:
            if any(cell.strip() for cell in row):
                if len(row) != len(header):
                    raise AimonkError(f"{path}:{reader.line_num}: {len(row)} cells where {len(header)} were expected")
                yield (
                    reader.line_num,
                    row[name].strip(),
                    [_value(path, reader.line_num, row[column], header[column]) for column in columns],
                )
    except csv.Error as error:
        raise AimonkError(f"{path}:{reader.line_num}: {error}") from error


def _columns(path: Path, header: list[str], attributes: list[str] | None) -> list[int]:
    places: dict[str, list[int]] = {}
    for column, name in enumerate(header):
        places.setdefault(name, []).append(column)
    if attributes is None:
        attributes = [name for name in places if name != "file_name"]
    if unknown := [name for name in attributes if name not in places]:
        raise AimonkError(f"{path} has no attribute {unknown[0]!r}{near_names(unknown[0], header)}")
    if repeated := [name for name in ("file_name", *attributes) if len(places[name]) > 1]:
        kind = "column" if repeated[0] == "file_name" else "attribute"
        raise AimonkError(f"{path}:1: the {kind} {repeated[0]!r} stands twice")
    return [places[name][0] for name in attributes]


def _value(path: Path, line: int, cell: str, column: str) -> str:
    text = cell.strip()
    value = _VALUES.get(text, text)
    if value not in ("1", "0", "1.0", "0.0", "NA"):
        raise AimonkError(
            f"{path}:{line}: {text[:40]!r} in column {column} is not a label; --attributes a,b,c names the columns that are"
        )
    return value
