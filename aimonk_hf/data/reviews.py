"""Answers of people who review labels: `reviews.csv` beside the label file, which is never written over."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from aimonk_hf.errors import AimonkError
from aimonk_hf.storage import csv_line, explained

REVIEWS_FILE = "reviews.csv"
LABEL_OF = {"1": 1.0, "0": 0.0, "NA": np.nan}


class Review(NamedTuple):
    """One answer: an attribute's label of an image before and after (1, 0 or NA), its queue, person and time."""

    image: str
    attribute: str
    old: str
    new: str
    queue: str
    who: str
    time: str


def reviews_path(label_file: str | Path) -> Path:
    """Return the file of the answers about a label file."""
    return Path(label_file).with_name(REVIEWS_FILE)


def reviews_lock(path: Path) -> FileLock:
    """Return the lock of a file of answers; a thread that holds it may take it again."""
    return FileLock(f"{path}.lock", is_singleton=True)


def append_reviews(path: Path, reviews: Sequence[Review]) -> None:
    """Add answers at the end, on the disk when this returns; several processes may do so at once.

    A last line without its end, of a process that was killed, is removed first.
    """
    told = explained(f"write {path}", "; answers until now are untouched")
    with told, reviews_lock(path), open(path, "a+b") as file:
        file.seek(0)
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
        header = [] if content.startswith(csv_line(Review._fields).encode()) else [Review._fields]
        file.write("".join(map(csv_line, [*header, *reviews])).encode("utf-8", "surrogateescape"))
        file.flush()
        os.fsync(file.fileno())


def read_reviews(path: Path) -> list[Review]:
    """Return the answers, oldest first; none where there is no file.

    Raises `AimonkError` with the line of one that is damaged.
    """
    if not path.is_file():
        return []
    with explained(f"read {path}"):
        content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1].decode("utf-8", "surrogateescape")  # the end may be being written
    reader = csv.reader(whole.splitlines(keepends=True), strict=True)
    reviews = []
    try:
        for cells in reader:
            if reader.line_num == 1 and tuple(cells) == Review._fields:
                continue
            if len(cells) != len(Review._fields) or cells[2] not in LABEL_OF or cells[3] not in LABEL_OF:
                wanted = f"a row is {','.join(Review._fields)}, with labels 1, 0 and NA"
                raise AimonkError(f"{path}:{reader.line_num}: Not an answer ({wanted}): mend or remove that line")
            reviews.append(Review(*cells))
    except csv.Error as error:
        raise AimonkError(f"{path}:{reader.line_num}: {error}: mend or remove that line") from error
    return reviews


def apply_reviews(path: Path, images: list[str], attributes: list[str], values: NDArray[np.float32]) -> str:
    """Enter the answers of `path` into labels [N, K], in place; return the sentence that counts them, or "".

    A later answer replaces an earlier one. Answers about attributes that are not read are passed over.
    """
    row_of, column_of = ({name: place for place, name in enumerate(names)} for names in (images, attributes))
    changed: dict[tuple[int, int], bool] = {}
    unknown = 0
    for review in read_reviews(path):
        row, column = row_of.get(review.image), column_of.get(review.attribute)
        if row is not None and column is not None:
            old, new = values[row, column], np.float32(LABEL_OF[review.new])
            changed[row, column] = changed.get((row, column), False) or not np.array_equal(old, new, equal_nan=True)
            values[row, column] = new
        unknown += row is None
    if not changed and not unknown:
        return ""
    without = f", {unknown} about images that are not listed" if unknown else ""
    return f"{path}: {len(changed):,} reviewed label(s), {sum(changed.values()):,} of them changed{without}"
