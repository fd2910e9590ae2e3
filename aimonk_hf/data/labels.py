"""Label files in, one float table {0, 1, NaN} out."""

import csv
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aimonk_hf.console import table
from aimonk_hf.data.formats import METADATA_FILE, metadata_rows
from aimonk_hf.data.images import IMAGE_EXTENSIONS, shown_name
from aimonk_hf.errors import AimonkError, near_names
from aimonk_hf.storage import is_text

_VALUES = {"1": 1.0, "1.0": 1.0, "0": 0.0, "0.0": 0.0, "NA": np.nan}
_CSV_VALUES = _VALUES | {"": np.nan}


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
        return Labels([self.images[row] for row in rows], self.attributes, self.values[rows], self.source)

    def check_observed(self, what: str) -> None:
        """Raise `AimonkError` where every label is missing."""
        if np.isnan(self.values).all():
            raise AimonkError(
                f"{self.source}: none of the {len(self)} {what} has a label (all are NA): label some of them with 1 or 0"
            )


def read_labels(path: str | Path, attributes: list[str] | None = None) -> Labels:
    """Read `labels.csv` (header `image,<attribute>,...`) or `labels.txt` (no header; `FILENAME V1 V2 ...`), or that of a folder.

    `attributes` names the columns of a labels.txt (Attr1..AttrK otherwise) and chooses columns, by name, of a labels.csv.

    Spaces around names and values are layout, not part of them. Raises `AimonkError` with file and line for a row of another width, a value
    outside {1, 0, NA}, a repeated file name, an attribute name that is no text, or an empty file.
    """
    path = Path(path)
    if path.is_dir():
        path = find_labels(path)
    text = _read_text(path)
    if path.name == METADATA_FILE:
        rows = metadata_rows(path, text, attributes)
    else:
        rows = _csv_rows(path, text) if path.suffix.lower() == ".csv" else _text_rows(path, text)
    return _table(path, rows, attributes)


def find_labels(data_dir: Path) -> Path:
    """Return the folder's labels.csv, else its labels.txt, else the metadata.csv of an image folder."""
    for name in ("labels.csv", "labels.txt", METADATA_FILE):
        if (data_dir / name).is_file():
            return data_dir / name
    if not data_dir.is_dir():
        raise AimonkError(f"there is no data folder {data_dir}")
    raise AimonkError(
        f"neither labels.csv nor labels.txt nor metadata.csv lies in {data_dir}: name another file with --labels"
    )


def _read_text(path: Path) -> str:
    """Return the file's text with its line ends as they are; bytes that are not UTF-8, which file names may hold, become surrogates."""
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise AimonkError(f"cannot read the labels {path}: {getattr(error, 'strerror', None) or error}") from error
    if (place := content.find(b"\0")) >= 0:
        number = content.count(b"\n", 0, place) + 1
        raise AimonkError(f"{path}:{number}: a zero byte: this is no text file, or one in UTF-16; save it as UTF-8")
    text = content.decode("utf-8-sig", "surrogateescape")
    if not text or text.isspace():
        raise AimonkError(f"{path} is empty: a row is an image name and one value (1, 0 or NA) per attribute")
    return text


# A row on its way into the table: line number, image name, value texts; the first of a CSV is its header.
_Row = tuple[int, str, list[str]]


def _text_rows(path: Path, text: str) -> Iterator[_Row]:
    """Split each line after its last token with an image extension, so that file names may contain spaces."""
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        if not line.strip():
            continue
        tokens = line.split()
        n_values = next(
            (n for n, token in enumerate(reversed(tokens)) if token.lower().endswith(IMAGE_EXTENSIONS)), None
        )
        if n_values is None:
            raise AimonkError(f"{path}:{number}: no image name in {line.strip()[:60]!r} (a row is FILENAME V1 V2 ...)")
        yield number, line.rsplit(maxsplit=n_values)[0].strip(), tokens[len(tokens) - n_values :]


def _csv_rows(path: Path, text: str) -> Iterator[_Row]:
    lines = (
        line[0] for line in re.finditer(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+", text)
    )  # io.StringIO would hold four bytes a letter
    reader = csv.reader(lines, strict=True)
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num, row[0].strip(), [cell.strip() for cell in row[1:]]
    except csv.Error as error:
        raise AimonkError(f"{path}:{reader.line_num}: {error}") from error


def _table(path: Path, rows: Iterator[_Row], attributes: list[str] | None) -> Labels:
    is_csv = path.suffix.lower() == ".csv"
    meaning = _CSV_VALUES if is_csv else _VALUES
    columns = _header(path, next(rows, None)) if is_csv else None
    width = len(columns) if columns is not None else None
    seen: dict[str, int] = {}
    values = array("f")  # a list of lists would take eight bytes a label, and the table four more
    for number, image, cells in rows:
        width = len(cells) if width is None else width
        if len(cells) != width or not width:
            raise AimonkError(f"{path}:{number}: {len(cells)} values where {width or 'at least one'} were expected")
        if not image:
            raise AimonkError(f"{path}:{number}: the image name is empty")
        if image in seen:
            raise AimonkError(
                f"{path}:{number}: {shown_name(image)} stands already in line {seen[image]}; keep one of the two rows"
            )
        try:
            values.extend([meaning[cell] for cell in cells])
        except KeyError as error:
            raise AimonkError(f"{path}:{number}: {error.args[0][:40]!r} is not a label; use 1, 0 or NA") from None
        seen[image] = number
    if not seen:
        raise AimonkError(f"{path} has a header but no rows")
    table = np.frombuffer(values, dtype=np.float32).reshape(len(seen), -1)
    if columns is None:
        columns = attributes or [f"Attr{number}" for number in range(1, table.shape[1] + 1)]
        if len(columns) != table.shape[1]:
            raise AimonkError(
                f"{path} has {table.shape[1]} values a row but {len(columns)} attributes were named: {', '.join(columns)}"
            )
        _check_names(path, 1, columns)
    elif attributes:
        _check_names(path, 1, attributes)
        if unknown := [name for name in attributes if name not in columns]:
            raise AimonkError(f"{path} has no attribute {unknown[0]!r}{near_names(unknown[0], columns)}")
        table = table[:, [columns.index(name) for name in attributes]]
        columns = attributes
    return Labels(list(seen), list(columns), table, str(path))


def _header(path: Path, row: _Row | None) -> list[str]:
    if row is None:
        raise AimonkError(f"{path} holds nothing but empty cells: the header must be image,<attribute>,...")
    number, first, names = row
    if first.lower() != "image" or not names:
        raise AimonkError(
            f"{path}:{number}: the header must be image,<attribute>,... (found {','.join([first, *names])[:60]!r})"
        )
    _check_names(path, number, names)
    return names


def _check_names(path: Path, number: int, names: list[str]) -> None:
    for name in names:
        if not name:
            raise AimonkError(f"{path}:{number}: an attribute name is empty")
        if not is_text(name):
            raise AimonkError(
                f"{path}:{number}: the attribute {name[:40]!r} is no plain text: save the file as UTF-8, one line a name"
            )
    if len(set(names)) != len(names):
        repeated = next(name for name, count in Counter(names).items() if count > 1)
        raise AimonkError(f"{path}:{number}: the attribute {repeated!r} stands twice")


def labels_table(labels: Labels) -> str:
    """Return positives, negatives, missing labels and prevalence of each attribute."""
    rows = []
    for column, name in enumerate(labels.attributes):
        values = labels.values[:, column]
        positive, negative, missing = int((values == 1).sum()), int((values == 0).sum()), int(np.isnan(values).sum())
        share = f"{positive / (positive + negative):.1%}" if positive + negative else "n/a"
        rows.append([name, str(positive), str(negative), str(missing), share])
    return table(["attribute", "positive", "negative", "NA", "prevalence"], rows)
