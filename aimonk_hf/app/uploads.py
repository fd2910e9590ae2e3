"""What a visitor sends: pictures and zip archives, read within limits; nothing of it is ever unpacked onto the disk."""

import base64
import binascii
import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from threading import Condition, Lock
from typing import Any

from PIL import Image

from aimonk_hf.app.image_guards import open_guarded, read_guarded
from aimonk_hf.errors import AimonkError, ImageError

MEGABYTE = 1_000_000
MAX_FILES = 1000  # pictures in one batch, those in archives counted
MAX_ARCHIVES = 50  # in one batch: each holds a file descriptor while the batch runs
MAX_DIRECTORY = 4 * MEGABYTE  # of the archives of one batch: reading 1,000 ordinary names takes a tenth of that
MAX_RATIO = 200  # of a zip entry that is larger than a megabyte; photographs reach 1.1
_IGNORED = ("__MACOSX/", ".DS_Store", "Thumbs.db")


@dataclass
class Picture:
    """A decoded RGB image, and in words what was done to it on the way."""

    image: Image.Image
    notes: list[str] = field(default_factory=list)


class Budget:
    """Let callers hold at most `total` of something at the same time, in the order in which they ask."""

    def __init__(self, total: int) -> None:
        self.total = self._left = total
        self._changed = Condition()
        self._turn = Lock()  # held while waiting, so that small amounts do not overtake a large one for ever

    @contextmanager
    def hold(self, amount: int) -> Iterator[None]:
        """Wait until `amount` is free, at most the whole, and hold it within the block."""
        amount = min(amount, self.total)
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._left >= amount)
            self._left -= amount
        try:
            yield
        finally:
            with self._changed:
                self._left += amount
                self._changed.notify_all()


@dataclass
class ZipEntry:
    """A file in an open archive, which several threads may read."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo

    def unpack(self, max_bytes: int) -> bytes:
        """Return the entry's bytes; raises `ImageError` where it is encrypted, damaged or too large."""
        _check_size(self.info.file_size, max_bytes)
        try:
            with self.archive.open(self.info) as file:
                data = file.read(max_bytes + 1)
        except (
            RuntimeError,
            NotImplementedError,
        ) as error:  # what zipfile raises for a password and for unknown methods
            raise ImageError("the entry is encrypted or packed with an unknown method") from error
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, KeyError) as error:
            raise ImageError(f"the entry is damaged ({error})") from error
        _check_size(len(data), max_bytes)
        return data


@dataclass
class Upload:
    """One picture before decoding: the name to show, and a path, the bytes, an entry, or the reason why it cannot be had."""

    name: str
    source: str | bytes | ZipEntry | None
    problem: str = ""


@dataclass
class Limits:
    """Hold the limits of what visitors send: files of at most `max_bytes`, in `folder`, where gradio puts uploads."""

    max_bytes: int
    folder: Path
    unpacking: Budget = field(init=False)  # bytes of zip entries in memory, of all batches

    def __post_init__(self) -> None:
        self.unpacking = Budget(self.max_bytes)


@contextmanager
def read_picture(source: str | bytes, decoding: Budget) -> Iterator[Picture]:
    """Yield a decoded picture, whose pixels are held of `decoding` within the block. Raises `ImageError` with the reason."""
    with open_guarded(source) as image, decoding.hold(image.width * image.height):
        yield Picture(read_guarded(image), _notes(image))


def open_upload(value: Any, limits: Limits) -> Upload:
    """Return the picture that a file field holds: gradio's FileData as a dict, or a data URL.

    gradio checks where a path leads only if the client marks it as a file, so it is checked here too.
    Raises `ImageError` where nothing was sent, where it is too large, for folders, and for paths outside the upload folder.
    """
    path, url = (value.get("path"), value.get("url")) if isinstance(value, dict) else (None, None)
    if path:
        if not Path(path).resolve().is_relative_to(limits.folder.resolve()):
            raise ImageError("the file was not uploaded to this app")
        if not Path(path).is_file():
            raise ImageError("there is no such file: uploads are removed after half an hour; send it again")
        _check_size(Path(path).stat().st_size, limits.max_bytes)
        return Upload(_clean(value.get("orig_name") or Path(path).name), path)
    if isinstance(url, str) and url.startswith("data:"):
        _check_size(len(url) * 3 // 4, limits.max_bytes)
        try:
            return Upload(
                _clean(value.get("orig_name") or "picture"), base64.b64decode(url.partition(",")[2], validate=True)
            )
        except binascii.Error as error:
            raise ImageError("the data URL is not valid base64") from error
    raise ImageError("no picture was sent")


def expand_uploads(values: Any, limits: Limits, archives: ExitStack) -> list[Upload]:
    """Return every picture of the files sent, those in zip archives too, which stay open until `archives` closes them.

    Raises `AimonkError` where there is none, where there are more than `MAX_FILES`, and where an archive is damaged or set up to harm.
    """
    uploads: list[Upload] = []
    count = directory = unpacked = 0  # archives, and bytes of all of them
    for value in values if isinstance(values, list) else [values]:
        if value is None:
            continue
        try:
            upload = open_upload(value, limits)
        except ImageError as error:
            name = value.get("orig_name") or "file" if isinstance(value, dict) else "file"
            uploads.append(Upload(_clean(name), None, str(error)))
            continue
        if not _is_zip(upload):
            uploads.append(upload)
        else:
            if count == MAX_ARCHIVES:
                raise AimonkError(f"a batch takes at most {MAX_ARCHIVES} zip archives: send them in parts")
            archive, size = _open_zip(upload, MAX_DIRECTORY - directory)
            directory += size
            count += 1
            entries = _zip_entries(upload.name, archives.enter_context(archive))
            unpacked += sum(entry.info.file_size for entry in entries)
            if unpacked > 10 * limits.max_bytes:
                raise AimonkError(
                    f"{upload.name} unpacks, with the archives before it, to more than {10 * limits.max_bytes / MEGABYTE:.0f} MB"
                )
            uploads += [Upload(_clean(f"{upload.name}/{entry.info.filename}"), entry) for entry in entries]
        _check_count(len(uploads))
    if not uploads:
        raise AimonkError("no files were sent: choose pictures, or a zip of pictures")
    return uploads


@contextmanager
def read_entry(upload: Upload, limits: Limits) -> Iterator[str | bytes]:
    """Yield the path or the bytes of an upload; zip entries are unpacked in memory, no more at once than one may be large. Raises `ImageError`."""
    if upload.problem:
        raise ImageError(upload.problem)
    assert upload.source is not None
    if isinstance(upload.source, ZipEntry):
        with limits.unpacking.hold(upload.source.info.file_size):
            yield upload.source.unpack(limits.max_bytes)
    else:
        yield upload.source


def _open_zip(upload: Upload, max_directory: int) -> tuple[zipfile.ZipFile, int]:
    """Open an archive; return it with the size of its directory, which is held in memory, so that it is refused above `max_directory`."""
    source = upload.source
    assert isinstance(source, str | bytes)
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
        size: int = end[zipfile._ECD_SIZE] if end else 0  # type: ignore[attr-defined]
        if size > max_directory:
            limit = f"{MAX_DIRECTORY / MEGABYTE:.0f} MB"
            raise AimonkError(
                f"{upload.name} is refused: names and comments of the archives sent take more than {limit}; pack it without comments"
            )
        return zipfile.ZipFile(io.BytesIO(source) if isinstance(source, bytes) else source), size
    except AimonkError:
        raise
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise AimonkError(f"{upload.name} is a damaged zip archive ({error})") from error


def _zip_entries(name: str, archive: zipfile.ZipFile) -> list[ZipEntry]:
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    entries = [
        entry
        for entry in entries
        if not entry.filename.startswith(_IGNORED) and PurePosixPath(entry.filename).name not in _IGNORED
    ]
    _check_count(len(entries), name)
    if not entries:
        raise AimonkError(f"{name} is an empty zip archive")
    for entry in entries:
        _check_entry(name, entry)
    return [ZipEntry(archive, entry) for entry in entries]


def _check_entry(archive: str, entry: zipfile.ZipInfo) -> None:
    name = entry.filename.replace("\\", "/")
    is_link = (entry.external_attr >> 16) & 0o170000 == 0o120000
    if is_link or name.startswith("/") or ".." in name.split("/") or re.match(r"[A-Za-z]:", name):
        raise AimonkError(f"{archive} is refused: its entry {_clean(entry.filename)} points outside the archive")
    if entry.file_size > MEGABYTE and entry.file_size > MAX_RATIO * max(1, entry.compress_size):
        raise AimonkError(
            f"{archive} is refused: its entry {_clean(entry.filename)} unpacks to more than {MAX_RATIO} times its size"
        )


def _is_zip(upload: Upload) -> bool:
    if isinstance(upload.source, bytes):
        return upload.source.startswith(b"PK\x03\x04") or upload.source.startswith(b"PK\x05\x06")
    if not isinstance(upload.source, str) or not Path(upload.source).is_file():
        return False
    with open(upload.source, "rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06") or upload.name.lower().endswith(".zip")


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
    return alpha.getchannel("A").getextrema() != (255, 255)
