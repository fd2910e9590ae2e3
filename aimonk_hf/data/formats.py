"""Formats of label files. To add one, write a function that returns its `Table`, and name it in `FORMATS`."""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from aimonk_hf.data.images import IMAGE_EXTENSIONS, shown_name
from aimonk_hf.errors import AimonkError, reason_of
from aimonk_hf.storage import explained, text_lines

# Line number and cells.
Row = tuple[int, Sequence[Any]]

# Usual names of the column of images, the surest first.
IMAGE_COLUMNS = ("image", "file_name", "filename", "file", "path", "image_path", "image_id", "img", "name")
_EMPTY = "{} is empty: a row is an image name and one value (1, 0 or NA) per attribute"
_DELIMITERS = ",;\t"


class Table(NamedTuple):
    """The header of a label file, its line, and a function that yields the cells of the given columns, row by row.

    `notes` says how the file was taken apart; rows add to it. In a labels.txt the names in the header are made up.
    """

    header: list[str]
    line: int
    rows: Callable[[Sequence[int]], Iterator[Row]]
    notes: list[str]
    has_names: bool = True


class Format(NamedTuple):
    """A function that opens a file (path, encoding, name of the image column) and the place of its images."""

    open: Callable[[Path, str | None, str | None], Table]
    images_beside: bool = False  # or in images/
    image_columns: tuple[str, ...] = IMAGE_COLUMNS


def find_image_column(header: Sequence[str], names: Iterable[str] = IMAGE_COLUMNS) -> int | None:
    """Return the place of the first of `names` in a header; case, spaces, - and _ make no difference."""
    plain = [re.sub(r"[\s-]+", "_", name.strip().casefold()) for name in header]
    for name in names:
        for known, wanted in ((list(header), name), (plain, re.sub(r"[\s-]+", "_", name.casefold()))):
            if wanted in known:
                return known.index(wanted)
    return None


def csv_rows(path: Path, encoding: str | None = None) -> Iterator[tuple[int, list[str]]]:
    """Yield line and cells of a CSV file, its header first; empty rows, and spaces around cells, are layout."""
    table = csv_table(path, encoding)
    yield table.line, table.header
    for line, cells in table.rows(range(len(table.header))):
        yield line, [cell.strip() for cell in cells]


def headed_rows(
    path: Path, columns: Sequence[str], encoding: str | None = None
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield line and cells by column of a CSV file that must have `columns`."""
    rows = csv_rows(path, encoding)
    line, header = next(rows)
    if missing := [name for name in columns if name not in header]:
        raise AimonkError(f"{path}:{line}: the header has no column {missing[0]}: {', '.join(columns)} are expected")
    for line, cells in rows:
        yield line, dict(zip(header, cells, strict=True))


def csv_table(path: Path, encoding: str | None = None, image_column: str | None = None) -> Table:
    """Open a table divided by commas, semicolons or tabs; an Excel line `sep=;` and comments may come before it."""
    delimiter, notes, before, line = "", [], 0, ""
    for before, line in enumerate(text_lines(path, encoding)):  # noqa: B007
        if found := re.fullmatch(r'"?sep=([,;|\t])"?', line.strip("\r\n"), re.IGNORECASE):
            delimiter = found[1]
        elif line.strip().strip(_DELIMITERS + '" ') and not re.match(r"#(?!\s*[,;\t])", line):
            break
    else:
        raise AimonkError(_EMPTY.format(path))
    names = [image_column] if image_column else IMAGE_COLUMNS
    delimiter = delimiter or _choose_delimiter(path, before + 1, line, names)
    if delimiter != ",":
        notes.append(f"cells are divided by {'tabs' if delimiter == chr(9) else delimiter}")

    def records() -> Iterator[tuple[int, list[str]]]:
        lines = islice(text_lines(path, encoding), before, None)
        reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
        try:
            for cells in reader:
                yield before + reader.line_num, cells
        except csv.Error as error:
            told = f"The row cannot be divided into cells ({shown_name(str(error))})"
            raise AimonkError(f"{path}:{before + reader.line_num}: {told}") from error

    _, header = next(records())
    header = [cell.strip() for cell in header]
    while header and not header[-1]:  # a delimiter at the end of each line
        header.pop()
    if not (width := len(header)):
        raise AimonkError(_EMPTY.format(path))

    def rows(columns: Sequence[int]) -> Iterator[Row]:
        pick = itemgetter(*columns) if len(columns) > 1 else lambda cells: (cells[columns[0]],)
        n_comments = 0
        for line, cells in islice(records(), 1, None):
            if len(cells) < width or (len(cells) > width and any(map(str.strip, cells[width:]))):
                if not any(map(str.strip, cells)):
                    continue
                if not cells[0].startswith("#"):
                    raise AimonkError(f"{path}:{line}: The row has {len(cells)} cells where {width} were expected")
                n_comments += 1
                continue
            picked = pick(cells)
            if picked[0].strip() or any(map(str.strip, cells)):
                yield line, picked
        if n_comments:
            notes.append(f"{n_comments} comment(s) left out")

    return Table(header, before + 1, rows, notes)


def _choose_delimiter(path: Path, number: int, line: str, image_columns: Sequence[str]) -> str:
    """Return the delimiter by which the header has a column of images; without one, the commonest."""
    widths, fitting = {}, []
    for one in "\t,;" if path.suffix.lower() == ".tsv" else _DELIMITERS:
        try:
            header = next(csv.reader([line], delimiter=one, skipinitialspace=True))
        except csv.Error as error:
            raise AimonkError(f"{path}:{number}: The header cannot be divided into cells ({error})") from error
        widths[one] = len(header)
        if len(header) > 1 and find_image_column(header, image_columns) is not None:
            fitting.append(one)
    if len(fitting) > 1:
        told = f"The header can be divided by {fitting[0]!r} and by {fitting[1]!r}"
        raise AimonkError(f"{path}:{number}: {told}: write the line sep={fitting[0]} before it, or sep={fitting[1]}")
    return fitting[0] if fitting else max(widths, key=lambda one: widths[one])


def text_table(path: Path, encoding: str | None = None, image_column: str | None = None) -> Table:
    """Open a file of rows `FILENAME V1 V2 ...`, or a table with a header as `csv_table` reads it.

    A name, which may hold spaces, ends at the last token with an image extension.
    """
    number, line = next(_rows_of_text(path, encoding), (0, ""))
    if not number:
        raise AimonkError(_EMPTY.format(path))
    n_values = _count_values(line)
    if n_values < 0 and any(one in line for one in _DELIMITERS):
        table = csv_table(path, encoding, image_column)
        if find_image_column(table.header, [image_column] if image_column else IMAGE_COLUMNS) is not None:
            return table

    def rows(columns: Sequence[int]) -> Iterator[Row]:
        for number, line in _rows_of_text(path, encoding):
            cells = line.rsplit(maxsplit=n_values)
            # a later token that ends as an image does is not a label, and refused as such
            if len(cells) != n_values + 1 or not cells[0].lower().endswith(IMAGE_EXTENSIONS):
                own = _check_row(path, number, line)
                raise AimonkError(f"{path}:{number}: The row has {own} values where {n_values} were expected")
            yield number, [cells[column] for column in columns]

    names = [f"Attr{place}" for place in range(1, _check_row(path, number, line) + 1)]
    return Table(["image", *names], number, rows, [], has_names=False)


def _rows_of_text(path: Path, encoding: str | None) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text_lines(path, encoding), start=1):
        if line.strip() and not (line.startswith("#") and _count_values(line) < 1):
            yield number, line


def _count_values(line: str) -> int:
    """Return the number of tokens behind the last one with an image extension; -1 where there is none."""
    ends = (n for n, token in enumerate(reversed(line.split())) if token.lower().endswith(IMAGE_EXTENSIONS))
    return next(ends, -1)


def _check_row(path: Path, number: int, line: str) -> int:
    """Return the number of values in a row of a labels.txt."""
    if (n_values := _count_values(line)) < 1:
        missing = "No image name" if n_values < 0 else "No values"
        advice = "a row is FILENAME V1 V2 ..., divided by spaces and without a header; other tables are .csv or .tsv"
        raise AimonkError(f"{path}:{number}: {missing} in {line.strip()[:60]!r} ({advice})")
    return n_values


def json_table(path: Path, encoding: str | None = None, image_column: str | None = None) -> Table:
    """Open a file of one JSON object a line; a key that a line lacks is empty there."""

    def objects() -> Iterator[tuple[int, dict[str, Any]]]:
        for number, line in enumerate(text_lines(path, encoding), start=1):
            if line.strip():
                try:
                    value = json.loads(line)
                    if len(value) != line.count(":"):  # else no key can be in it twice
                        value = json.loads(line, object_pairs_hook=_unique)
                    if not isinstance(value, dict):
                        raise ValueError(f"found a {type(value).__name__}")
                except (ValueError, RecursionError) as error:
                    told = f"The line is no JSON object ({reason_of(error)})"
                    raise AimonkError(f"{path}:{number}: {told}; `aimonk-hf import` reads exports") from error
                yield number, value

    header: dict[str, None] = {}
    last: tuple[str, ...] = ()
    for _, value in objects():
        if (keys := tuple(value)) != last:
            header.update(dict.fromkeys(keys))  # in the order of first sight
            last = keys
    if not (names := list(header)):
        raise AimonkError(_EMPTY.format(path))

    def rows(columns: Sequence[int]) -> Iterator[Row]:
        wanted = [names[column] for column in columns]
        for number, value in objects():
            yield number, [str(cell) if cell is True or cell is False else cell for cell in map(value.get, wanted)]

    return Table(names, 1, rows, [])


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key is in it twice")
    return value


def parquet_table(path: Path, encoding: str | None = None, image_column: str | None = None) -> Table:
    """Open a Parquet file, of which only the columns that are asked for are read."""
    try:
        import pyarrow as pa
        import pyarrow.compute as pc
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise AimonkError(f"{path} needs pyarrow: pip install 'aimonk_hf[parquet]'") from error
    with explained(f"read {path}"):
        try:
            file = ParquetFile(path)
        except pa.ArrowException as error:
            raise AimonkError(f"{path} is not a Parquet file ({reason_of(error)})") from error
    schema = file.schema_arrow
    place = find_image_column(schema.names, [image_column] if image_column else IMAGE_COLUMNS)
    if place is not None and (pa.types.is_nested(kind := schema.types[place]) or pa.types.is_binary(kind)):
        told = f"The column {schema.names[place]!r} holds the images themselves"
        raise AimonkError(f"{path}: {told}: `aimonk-hf import {path} --output DATA` writes them as files")

    def rows(columns: Sequence[int]) -> Iterator[Row]:
        number = 0
        try:
            for batch in file.iter_batches(8192, columns=[schema.names[column] for column in columns]):
                cells = [batch.column(schema.names[column]) for column in columns]
                for place, own in enumerate(cells):
                    if pa.types.is_floating(own.type):
                        own = own.cast(pa.float64())  # pyarrow 18 knows no NaN in 16 bits
                        cells[place] = pc.if_else(pc.is_nan(own), None, own)  # None is found again in a dictionary
                    elif pa.types.is_boolean(own.type):
                        cells[place] = own.cast(pa.string())
                for row in zip(*(own.to_pylist() for own in cells), strict=True):
                    number += 1
                    yield number, row
        except (pa.ArrowException, OSError, ValueError) as error:
            raise AimonkError(f"{path}:{number + 1}: The row cannot be read ({reason_of(error)})") from error

    return Table(list(schema.names), 1, rows, [])


# In the order in which a folder is searched for them; files of other names are read by their ending.
FORMATS = {
    "labels.csv": Format(csv_table),
    "labels.tsv": Format(csv_table),
    "labels.txt": Format(text_table),
    "labels.jsonl": Format(json_table),
    "labels.parquet": Format(parquet_table),
}
_METADATA_COLUMNS = ("file_name", *IMAGE_COLUMNS)
# the datasets library's files for a folder of images
FORMATS |= {
    name.replace("labels", "metadata"): one._replace(images_beside=True, image_columns=_METADATA_COLUMNS)
    for name, one in FORMATS.items()
    if one.open in (csv_table, json_table, parquet_table)
}
TABLE_ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".xlsx")
_EXCEL = (".xlsx", ".xlsm", ".xls", ".ods")


def format_of(path: Path) -> Format:
    """Return the format of a label file, by its name or its ending."""
    ending = path.suffix.lower()
    if ending in _EXCEL:
        told = "Excel and LibreOffice tables are not read as labels"
        raise AimonkError(f"{path}: {told}: save it as CSV, or use `aimonk-hf import {path} --output DATA`")
    ending = {".json": ".jsonl", ".ndjson": ".jsonl", ".pq": ".parquet"}.get(ending, ending)
    return FORMATS.get(path.name.lower()) or FORMATS.get(f"labels{ending}") or FORMATS["labels.txt"]
