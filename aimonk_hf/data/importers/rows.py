"""Rows that every import format yields, and the decisions that their cells need."""

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aimonk_hf.data.read_options import ReadOptions
from aimonk_hf.data.vocabulary import PART_OF
from aimonk_hf.errors import AimonkError
from aimonk_hf.storage import explained

Cells = dict[str, float | str]
CHOICES = {"absent": 0.0, "missing": np.nan, "present": 1.0}
PARTS = PART_OF | {"validate": "validation"}  # MIMIC-CXR


@dataclass(frozen=True)
class Told:
    """The decisions of the user about one source; None where there is none."""

    source: str
    blank: str | None = None
    uncertain: str | None = None
    unlisted: str | None = None
    tag_separator: str | None = None
    options: ReadOptions = field(default_factory=ReadOptions)

    def tags(self, unlisted: str | None = None) -> Cells:
        """Return the meaning of the cells "listed", "unlisted" and "missing" of formats that list what is present."""
        question = "is not listed for this image: --unlisted absent or --unlisted missing says how to take that"
        return {"listed": 1.0, "unlisted": CHOICES.get(self.unlisted or unlisted or "", question), "missing": np.nan}


class Row(NamedTuple):
    """The labels of one image by one annotator, a cell per attribute, or the `problem` for which it is refused.

    `content` is the image's bytes where it has no file.
    """

    file: Path
    line: int | str
    image: str
    cells: list[str] = []  # noqa: RUF012 - never changed
    part: str = ""
    group: str = ""
    annotator: str = ""
    content: bytes | None = None
    problem: str = ""


class Table(NamedTuple):
    """Rows to be read once; a cell means 1, 0 or NaN, or holds the question that the user has to answer first."""

    attributes: list[str]
    meaning: Cells
    rows: Iterable[Row]
    notes: tuple[str, ...] = ()


def listing(tags: Collection[str], attributes: list[str]) -> list[str]:
    """Return the cells of an image that lists some of the attributes."""
    return ["listed" if name in tags else "unlisted" for name in attributes]


def token_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield line and cells of a file whose cells are separated by blanks or commas."""
    with explained(f"read {path}"), open(path, encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, start=1):
            if cells := line.replace(",", " ").split():
                yield number, cells


def read_json_file(path: Path, kind: type, form: str) -> Any:
    """Return the content of a JSON file that must hold a list or an object."""
    try:
        with explained(f"read {path}"):
            content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise AimonkError(f"{path}:{error.lineno}: not JSON ({error.msg}): export it again") from error
    except (ValueError, RecursionError) as error:  # no UTF-8, a whole number of thousands of digits
        raise AimonkError(f"{path} is damaged ({error}): export it again") from error
    if not isinstance(content, kind):
        raise AimonkError(f"{path} is not {form}: it holds a {type(content).__name__}, not a {kind.__name__}")
    return content
