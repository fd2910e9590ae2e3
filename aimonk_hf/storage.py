"""Files and folders that appear whole or not at all."""

import csv
import io
import json
import math
import os
import re
import secrets
import shutil
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from operator import methodcaller
from pathlib import Path
from typing import Any

from aimonk_hf.errors import AimonkError

# Columns that stand beside the scores in one CSV file or another.
_COLUMNS = ("image", "attributes", "error", "notes")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder that replaces `path` when the block ends well.

    The temporary file keeps the suffix, because writers such as matplotlib choose the format by it. Nobody can guess its name, and put a link
    in its place.
    """
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(6)}.tmp{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise AimonkError(
            f"cannot write {path}: {error.strerror or error}; the last complete version is untouched"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def csv_line(cells: Iterable[Any]) -> str:
    """Return a row of a CSV file with its line end; a cell with any kind of line end is quoted, which Python 3.11's writer forgets of one."""
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\r\n").writerow(cells)
    return buffer.getvalue()[:-2] + "\n"


def score_columns(attributes: Iterable[str]) -> list[str]:
    """Return the columns of the attributes' scores: their names, with `score:` before those that other columns have, or that begin so."""
    return [
        f"score:{name}" if name.strip().lower() in _COLUMNS or name.startswith("score:") else name
        for name in attributes
    ]


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, numpy's numbers and arrays too; bytes of file names that are no text are escaped.

    NaN is refused, because readers outside Python cannot parse it.
    """
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=methodcaller("tolist"))
    except (ValueError, RecursionError) as error:
        raise AimonkError(f"cannot write {path}: {error}") from error
    write_text(path, re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; damage is named with the file and the place, and so are repeated keys and numbers that no JSON can hold."""
    try:
        value = json.loads(
            path.read_text(encoding="utf-8"),
            object_pairs_hook=_without_repeats,
            parse_constant=_finite,
            parse_float=_finite,
        )
    except OSError as error:
        raise AimonkError(f"cannot read {path}: {error.strerror or error}") from error
    except (
        ValueError,
        RecursionError,
    ) as error:  # ValueError: no JSON, no UTF-8, a whole number of thousands of digits
        raise AimonkError(f"{path} is damaged ({error}); restore it from a good copy") from error
    if not isinstance(value, dict):
        raise AimonkError(f"{path} is damaged (a JSON object was expected, found {type(value).__name__})")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object's keys and values; JSON leaves open which of two equal keys counts, so there may be none."""
    values = dict(pairs)
    if len(values) < len(pairs):
        repeated = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {repeated!r} stands twice")
    return values


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no finite number")
    return number


def make_folder(path: Path) -> Path:
    """Create a folder with its parents; a failure says which and why."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AimonkError(f"cannot create the folder {path}: {error.strerror or error}") from error
    return path


@contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder whose files become those of `folder` when the block ends well.

    A new folder appears by one rename; in an existing one each file is replaced atomically and files of other names stay.
    """
    make_folder(folder.parent)
    place = (
        folder if folder.is_dir() else folder.parent
    )  # an existing one may be a mount, or lie where nothing else may be written
    try:
        stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=place))
    except OSError as error:
        raise AimonkError(f"cannot write into {place}: {error.strerror or error}") from error
    try:
        yield stage
        stage.chmod(0o777 & ~_umask())
        for file in stage.rglob("*"):  # safetensors writes files that only their owner may read
            file.chmod((0o777 if file.is_dir() else 0o666) & ~_umask())
        if folder.exists():
            for file in sorted(stage.iterdir()):
                file.replace(folder / file.name)
        else:
            stage.rename(folder)
    except OSError as error:
        raise AimonkError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def check_no_link_outside(folder: Path, paths: Iterable[Path]) -> None:
    """Raise `AimonkError` where a file of `folder` is a link to a file elsewhere; the Hub's cache links to its own blobs."""
    root = folder.resolve()
    inside = [root, root.parents[1] / "blobs"] if root.parent.name == "snapshots" else [root]
    for path in paths:
        if not any(path.resolve().is_relative_to(place) for place in inside):
            raise AimonkError(
                f"{path} is a link to a file outside {folder}: replace it by a copy, if that file is meant to be published"
            )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def is_text(name: str) -> bool:
    """Return whether a name can stand on one line of a UTF-8 file: no control characters, line breaks or bytes that are no text."""
    return not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name)
