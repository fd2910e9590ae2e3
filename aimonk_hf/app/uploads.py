"""What a visitor sends: pictures and zip archives, read within limits; nothing of it is ever unpacked onto the disk."""

import base64
import binascii
import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from aimonk_hf.data.images import open_image, read_image
from aimonk_hf.errors import AimonkError, ImageError

MEGABYTE = 1_000_000
MAX_FILES = 1000  # pictures in one batch, those in archives counted
MAX_RATIO = 200  # of a zip entry that is larger than a megabyte; photographs reach 1.1
_IGNORED = ("__MACOSX/", ".DS_Store", "Thumbs.db")


@dataclass
class Picture:
    """A decoded RGB image, and in words what was done to it on the way."""

    image: Image.Image
    notes: list[str] = field(default_factory=list)


@dataclass
class Upload:
    """One picture before decoding: the name to show, and a path, the bytes, or the reason why it cannot be had."""

    name: str
    source: str | bytes | None
    problem: str = ""


@dataclass
class Limits:
    """What visitors may send: files of at most `max_bytes`, which lie in `folder`, where gradio puts uploads."""

    max_bytes: int
    folder: Path


@dataclass
class ZipEntry(Upload):
    """A picture in an archive; `archive` is its path or bytes, `entry` the name in it."""

    archive: str | bytes = ""
    entry: str = ""

    def unpack(self, max_bytes: int) -> bytes:
        """Return the entry's bytes; raises `ImageError` where it is encrypted, damaged or too large."""
        try:
            with _open_zip(self.archive) as archive, archive.open(self.entry) as file:
                data = file.read(max_bytes + 1)
        except (RuntimeError, NotImplementedError) as error:  # what zipfile raises for a password and for unknown methods
            raise ImageError("the entry is encrypted or packed with an unknown method") from error
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, KeyError) as error:
            raise ImageError(f"the entry is damaged ({error})") from error
        _check_size(len(data), max_bytes)
        return data


def read_picture(source: str | bytes) -> Picture:
    """Decode a picture; raises `ImageError` with the reason."""
    with open_image(source) as image:
        return Picture(read_image(image), _notes(image))


def open_upload(value: Any, limits: Limits) -> Upload:
    """Return the picture that a file field holds: gradio's FileData as a dict, or a data URL.

    gradio checks where a path leads only if the client marks it as a file, so it is checked here too.
    Raises `ImageError` where nothing was sent, where it is too large, and for paths outside the upload folder.
    """
    path, url = (value.get("path"), value.get("url")) if isinstance(value, dict) else (None, None)
    if path:
        if not Path(path).resolve().is_relative_to(limits.folder.resolve()):
            raise ImageError("the file was not uploaded to this app")
        _check_size(Path(path).stat().st_size if Path(path).is_file() else 0, limits.max_bytes)
        return Upload(_clean(value.get("orig_name") or Path(path).name), path)
    if isinstance(url, str) and url.startswith("data:"):
        _check_size(len(url) * 3 // 4, limits.max_bytes)
        try:
            return Upload(_clean(value.get("orig_name") or "picture"), base64.b64decode(url.partition(",")[2], validate=True))
        except binascii.Error as error:
            raise ImageError("the data URL is not valid base64") from error
    raise ImageError("no picture was sent")


def expand_uploads(values: Any, limits: Limits) -> list[Upload]:
    """Return every picture of the files sent, those in zip archives too.

    Raises `AimonkError` where there is none, where there are more than `MAX_FILES`, and where an archive is damaged or set up to harm.
    """
    uploads: list[Upload] = []
    for value in values if isinstance(values, list) else [values]:
        if value is None:
            continue
        try:
            upload = open_upload(value, limits)
        except ImageError as error:
            name = value.get("orig_name") or "file" if isinstance(value, dict) else "file"
            uploads.append(Upload(_clean(name), None, str(error)))
            continue
        uploads += _zip_entries(upload, limits.max_bytes) if _is_zip(upload) else [upload]
        _check_count(len(uploads))
    if not uploads:
        raise AimonkError("no files were sent: choose pictures, or a zip of pictures")
    return uploads


def read_entry(upload: Upload, limits: Limits) -> str | bytes:
    """Return the path or the bytes of an upload; a zip entry is unpacked in memory, no further than allowed. Raises `ImageError`."""
    if upload.problem:
        raise ImageError(upload.problem)
    if isinstance(upload, ZipEntry):
        return upload.unpack(limits.max_bytes)
    assert upload.source is not None
    return upload.source


def _zip_entries(upload: Upload, max_bytes: int) -> Iterator[ZipEntry]:
    archive_source = upload.source
    assert archive_source is not None
    try:
        with _open_zip(archive_source) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise AimonkError(f"{upload.name} is a damaged zip archive ({error})") from error
    entries = [entry for entry in entries if not entry.filename.startswith(_IGNORED) and PurePosixPath(entry.filename).name not in _IGNORED]
    _check_count(len(entries), upload.name)
    if not entries:
        raise AimonkError(f"{upload.name} is an empty zip archive")
    for entry in entries:
        _check_entry(upload.name, entry)
    if sum(entry.file_size for entry in entries) > 10 * max_bytes:
        raise AimonkError(f"{upload.name} unpacks to more than {10 * max_bytes / MEGABYTE:.0f} MB")
    for entry in entries:
        yield ZipEntry(_clean(f"{upload.name}/{entry.filename}"), None, "", archive_source, entry.filename)


def _check_entry(archive: str, entry: zipfile.ZipInfo) -> None:
    name = entry.filename.replace("\\", "/")
    is_link = (entry.external_attr >> 16) & 0o170000 == 0o120000
    if is_link or name.startswith("/") or ".." in name.split("/") or re.match(r"[A-Za-z]:", name):
        raise AimonkError(f"{archive} is refused: its entry {_clean(entry.filename)} points outside the archive")
    if entry.file_size > MEGABYTE and entry.file_size > MAX_RATIO * max(1, entry.compress_size):
        raise AimonkError(f"{archive} is refused: its entry {_clean(entry.filename)} unpacks to more than {MAX_RATIO} times its size")


def _is_zip(upload: Upload) -> bool:
    if isinstance(upload.source, bytes):
        return upload.source.startswith(b"PK\x03\x04") or upload.source.startswith(b"PK\x05\x06")
    if upload.source is None or not Path(upload.source).is_file():
        return False
    with open(upload.source, "rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06") or upload.name.lower().endswith(".zip")


def _open_zip(source: str | bytes) -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(source) if isinstance(source, bytes) else source)


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise ImageError(f"the file is too large: more than the limit of {max_bytes / MEGABYTE:g} MB")


def _check_count(count: int, archive: str = "") -> None:
    if count > MAX_FILES:
        where = f"{archive} holds {count} files" if archive else f"{count} files were sent"
        raise AimonkError(f"{where}: a batch takes at most {MAX_FILES}; send it in parts")


def _clean(name: str) -> str:
    """Return a name that is safe to show: no control characters, at most 120 characters."""
    text = "".join(character if character.isprintable() else "?" for character in str(name))
    return text if len(text) <= 120 else text[:58] + "..." + text[-59:]


def _notes(image: Image.Image) -> list[str]:
    """Say what `read_image` did to a decoded picture beyond turning it upright."""
    notes = []
    if getattr(image, "is_animated", False):
        notes.append("An animated picture: its first frame is used.")
    if image.mode == "CMYK":
        notes.append("A CMYK picture: converted to RGB without a colour profile.")
    if image.mode.startswith("I;16"):
        notes.append("A 16-bit picture: scaled to 8 bits.")
    if _is_transparent(image):
        notes.append("A transparent picture: its transparency is dropped.")
    return notes


def _is_transparent(image: Image.Image) -> bool:
    """Whether any pixel is: a camera's frame has an alpha channel too, all of it opaque."""
    if image.mode not in ("RGBA", "LA", "PA") and not (image.mode == "P" and "transparency" in image.info):
        return False
    alpha = image if "A" in image.getbands() else image.convert("RGBA")
    return not np.all(np.asarray(alpha.getchannel("A")) == 255)
