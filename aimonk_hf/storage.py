"""Write files and folders that appear whole or not at all; read lines of text, and JSON that means one thing only."""

import codecs
import csv
import gzip
import io
import json
import math
import os
import re
import secrets
import shutil
import tempfile
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from operator import methodcaller
from os import PathLike
from pathlib import Path
from typing import Any

from aimonk_hf.errors import AimonkError, reason_of

StrPath = str | PathLike[str]

# Columns beside the scores in one CSV file or another.
_COLUMNS = ("image", "attributes", "error", "notes")


@contextmanager
def explained(action: str, advice: str = "") -> Iterator[None]:
    """Raise `AimonkError` "Cannot read a.csv: Permission denied" for an `OSError` within the block."""
    try:
        yield
    except OSError as error:
        raise AimonkError(f"Cannot {action}: {error.strerror or error}{advice}") from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, with its suffix, that replaces it when the block ends well."""
    # a name that nobody can guess, and put a link in its place
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(6)}.tmp{path.suffix}")
    try:
        with explained(f"write {path}", "; the last complete version is untouched"):
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def opened_bytes(path: Path) -> Iterator[Any]:
    """Yield a file of bytes; one that gzip has packed is unpacked on the way, and refused where it is damaged."""
    with explained(f"read {path}"), open(path, "rb") as file:
        is_packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        try:
            yield gzip.GzipFile(fileobj=file) if is_packed else file
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise AimonkError(f"{path} is packed by gzip and damaged ({reason_of(error)}): fetch it again") from error


def read_head(path: Path, n_bytes: int) -> bytes:
    """Return the first bytes of a file, unpacked."""
    with opened_bytes(path) as file:
        return bytes(file.read(n_bytes))


def text_lines(path: Path, encoding: str | None = None) -> Iterator[str]:
    """Yield the lines of a text file with their ends; in UTF-8, bytes that are no text, as in names, are surrogates.

    UTF-16 is known by its mark; any other encoding must be named. Raises `AimonkError` with the line.
    """
    head = read_head(path, 4)
    if head.startswith(b"PK\x03\x04"):
        raise AimonkError(f"{path} is not a text file but an archive or an Excel table: save the table as CSV")
    marked = not encoding and head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        codec = "utf-16" if marked else codecs.lookup(encoding or "utf-8").name
    except (LookupError, ValueError) as error:
        told = f"--encoding {encoding}: there is no such encoding; usual ones are utf-8 and cp1252"
        raise AimonkError(told) from error
    codec, errors = ("utf-8-sig", "surrogateescape") if codec == "utf-8" else (codec, "strict")
    number = 0
    with explained(f"read {path}"):
        try:
            with opened_bytes(path) as raw, io.TextIOWrapper(raw, codec, errors, newline="") as file:
                for number, line in enumerate(file, start=1):
                    if "\0" in line:
                        told = "A zero byte: not a text file, or UTF-16 without its mark (then --encoding utf-16-le)"
                        raise AimonkError(f"{path}:{number}: {told}")
                    yield line.removeprefix("\ufeff") if number == 1 else line
        except (UnicodeError, LookupError) as error:
            told = f"The text from here on is not {codec} ({reason_of(error)}): name its encoding with --encoding"
            raise AimonkError(f"{path}:{number + 1}: {told}") from error


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically; file names that are no text keep their bytes."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def write_csv(path: Path, header: Iterable[Any], rows: Iterable[Iterable[Any]]) -> None:
    """Write a CSV file atomically."""
    write_text(path, "".join(map(csv_line, [header, *rows])))


def csv_line(cells: Iterable[Any]) -> str:
    r"""Return a row of a CSV file; the writer of Python 3.11 quotes a lone \r only where lines end with it."""
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\r\n").writerow(cells)
    return buffer.getvalue()[:-2] + "\n"


def score_columns(attributes: Iterable[str]) -> list[str]:
    """Return the columns of the attributes' scores: names that other columns have get `score:` before them."""
    return [
        f"score:{name}" if name.strip().lower() in _COLUMNS or name.startswith("score:") else name
        for name in attributes
    ]


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, numpy's values and file names that are no text too; NaN is refused, as readers do."""
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=methodcaller("tolist"))
    except (ValueError, RecursionError) as error:
        raise AimonkError(f"Cannot write {path}: {error}") from error
    write_text(path, re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises `AimonkError` for damage, repeated keys and numbers that no JSON can hold."""
    try:
        with explained(f"read {path}"):
            text = path.read_text(encoding="utf-8")
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite)
        if not isinstance(value, dict):
            raise ValueError(f"a JSON object was expected, found {type(value).__name__}")
    except AimonkError:
        raise
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, a whole number of thousands of digits
        raise AimonkError(f"{path} is damaged ({error}); restore it from a good copy") from error
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"the key {name!r} is there twice")
        values[name] = value
    return values


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is not a finite number")
    return number


def make_folder(path: Path) -> Path:
    """Create a folder with its parents."""
    with explained(f"create the folder {path}"):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder whose files become those of `folder` when the block ends well.

    A new folder appears by one rename; in an existing one each file is replaced atomically, and others stay.
    """
    make_folder(folder.parent)
    place = folder if folder.is_dir() else folder.parent  # an existing one may be a mount
    with explained(f"write into {place}"):
        stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=place))
    try:
        with explained(f"write {folder}"):
            yield stage
            os.umask(mask := os.umask(0))
            for file in (stage, *stage.rglob("*")):  # safetensors writes files that only their owner may read
                file.chmod((0o777 if file.is_dir() else 0o666) & ~mask)
            if folder.exists():
                for file in sorted(stage.iterdir()):
                    file.replace(folder / file.name)
            else:
                stage.rename(folder)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def check_no_link_outside(folder: Path, paths: Iterable[Path]) -> None:
    """Raise `AimonkError` where a file of `folder` links to one elsewhere; the Hub's cache links to its own blobs."""
    root = folder.resolve()
    inside = [root, root.parents[1] / "blobs"] if root.parent.name == "snapshots" else [root]
    for path in paths:
        if not any(path.resolve().is_relative_to(place) for place in inside):
            raise AimonkError(f"{path} is a link to a file outside {folder}: replace it by a copy to publish that file")


def is_text(name: str) -> bool:
    """Return whether a name can be on one line of a UTF-8 file: no control characters, line breaks or broken bytes."""
    return not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name)
