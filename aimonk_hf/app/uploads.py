"""Read images and zip archives of visitors within limits; nothing of them is ever unpacked onto the disk."""

import base64
import binascii
import io
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from threading import Condition, Lock
from typing import Any

import gradio as gr
from PIL import Image

from aimonk_hf.app.image_guards import open_guarded, read_guarded
from aimonk_hf.data.images import MAX_PIXELS, decoding, is_animated, shown_name
from aimonk_hf.errors import AimonkError, ImageError

MEGABYTE = 1_000_000
MAX_FILES = 1000  # images in one batch, those in archives counted
MAX_AT_ONCE = 20  # files of the largest size in one upload
MAX_ARCHIVES = 50  # in one batch: each holds a file descriptor while the batch runs
MAX_DIRECTORY = 4 * MEGABYTE  # of the archives of one batch: reading 1,000 ordinary names takes a tenth of that
LONGEST_NAME = 120  # characters shown


@contextmanager
def in_words() -> Iterator[None]:
    """Refuse a call by a sentence where the block raises `AimonkError`."""
    try:
        yield
    except AimonkError as error:
        raise gr.Error(sentence(error), print_exception=False) from error


def sentence(error: AimonkError) -> str:
    """Return an error's text as a sentence for visitors, without a hint to install."""
    text = re.split("[,:] (?:or )?(?:pip )?install ", str(error))[0].rstrip(".")
    return f"{text[:1].upper()}{text[1:]}."


class Budget:
    """Let callers hold at most `total` of something at the same time, in the order in which they ask."""

    def __init__(self, total: int) -> None:
        self.total = self._free = total
        self._turn = Lock()  # held while waiting, so that small amounts do not overtake a large one for ever
        self._change = Condition()

    @contextmanager
    def hold(self, amount: int) -> Iterator[None]:
        """Wait until `amount` is free, at most the whole, and hold it within the block."""
        amount = min(amount, self.total)
        with self._turn, self._change:
            self._change.wait_for(lambda: self._free >= amount)
            self._free -= amount
        try:
            yield
        finally:
            with self._change:
                self._free += amount
                self._change.notify()


@dataclass
class Limits:
    """Hold the limits of uploads: files of at most `max_bytes` in `folder`, and what all callers together may take."""

    max_bytes: int
    folder: Path
    unpacking: Budget = field(init=False)  # bytes of zip entries in memory
    decoding: Budget = field(default_factory=lambda: Budget(MAX_PIXELS))  # pixels

    def __post_init__(self) -> None:
        self.unpacking = Budget(self.max_bytes)

    def check_size(self, n_bytes: int) -> None:
        """Raise `ImageError` for a file that is too large."""
        if n_bytes > self.max_bytes:
            raise ImageError(f"The file is too large: more than the limit of {self.max_bytes / MEGABYTE:g} MB")


@dataclass
class Upload:
    """Name an image safely, with a function that returns its path or bytes or raises `ImageError`.

    `n_bytes` are those that reading it takes in memory.
    """

    name: str
    read: Callable[[], str | bytes]
    n_bytes: int = 0

    def __post_init__(self) -> None:
        self.name = shown_name(self.name)
        if len(self.name) > LONGEST_NAME:
            half = LONGEST_NAME // 2 - 1
            self.name = f"{self.name[:half]}...{self.name[-half:]}"


@contextmanager
def decoded(upload: Upload, limits: Limits) -> Iterator[tuple[Image.Image, str]]:
    """Yield the RGB image of an upload and sentences on what was done to it; raises `ImageError`."""
    with (
        limits.unpacking.hold(upload.n_bytes),
        open_guarded(upload.read()) as image,
        limits.decoding.hold(image.width * image.height),
    ):
        yield read_guarded(image), " ".join(_notes(image))


def check_place(path: str, folder: Path) -> None:
    """Raise `ImageError` for an address, for a folder, and for paths that lead out of the upload folder."""
    if "://" in path[:20]:
        raise ImageError("Send the file itself, not its address")
    try:
        place = Path(path).resolve()
        is_upload = place.is_relative_to(folder.resolve()) and not place.is_dir()
    except (OSError, ValueError, RuntimeError):  # zero bytes, surrogates, names that are too long, links in a circle
        is_upload = False
    if not is_upload:
        raise ImageError("The file was not uploaded to this app")


def open_upload(value: dict[str, Any] | None, limits: Limits) -> Upload:
    """Return the image that a file field holds: gradio's FileData as a dict, or a data URL; it is read later."""
    sent = value or {}
    path, url = sent.get("path"), sent.get("url") or ""

    def read() -> str | bytes:
        if path:
            check_place(path, limits.folder)
            if not Path(path).is_file():
                raise ImageError("There is no such file: uploads are removed after half an hour; send it again")
            limits.check_size(Path(path).stat().st_size)
            return str(path)
        if not url.startswith("data:"):
            raise ImageError("No image was sent")
        limits.check_size(len(url) * 3 // 4)
        try:
            return base64.b64decode(url.partition(",")[2], validate=True)
        except binascii.Error as error:
            raise ImageError("The data URL is not valid base64") from error

    return Upload(sent.get("orig_name") or Path(path or "image").name, read)


def expand_uploads(values: list[dict[str, Any]] | None, limits: Limits, archives: ExitStack) -> list[Upload]:
    """Return every image of the files sent, those in zip archives too, which stay open until `archives` closes them.

    Raises `AimonkError` where there is none, and where archives are damaged or larger than this app unpacks.
    """
    uploads: list[Upload] = []
    n_archives = directory = 0
    for value in values or []:
        upload = open_upload(value, limits)
        try:
            source = upload.read()
        except ImageError:
            source = b""  # its reason is told in its turn
        opened = io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")  # noqa: SIM115
        file = archives.enter_context(opened)
        is_archive = file.read(4) in (b"PK\x03\x04", b"PK\x05\x06") or upload.name.lower().endswith(".zip")
        if source and is_archive:
            n_archives += 1
            _check_batch(n_archives, MAX_ARCHIVES, "zip archives")
            try:
                directory += _directory_size(file)
                _check_batch(directory / MEGABYTE, MAX_DIRECTORY / MEGABYTE, "MB of names and comments in archives")
                archive = archives.enter_context(zipfile.ZipFile(file))
            except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
                raise AimonkError(f"The archive {upload.name} is damaged ({error})") from error
            uploads += [_entry(upload.name, archive, info, limits) for info in archive.infolist() if _is_wanted(info)]
            unpacked = sum(each.n_bytes for each in uploads) / MEGABYTE
            _check_batch(unpacked, 10 * limits.max_bytes / MEGABYTE, "MB of unpacked archives")
        else:
            uploads.append(upload)
            file.close()
        _check_batch(len(uploads), MAX_FILES, "files")
    if not uploads:
        raise AimonkError("No files were sent: choose images, or a zip of images")
    return uploads


def _check_batch(count: float, limit: float, things: str) -> None:
    if count > limit:
        raise AimonkError(f"A batch takes at most {limit:g} {things}: send it in parts")


def _directory_size(file: Any) -> int:
    """Return the bytes of an archive's directory, which `ZipFile` holds in memory."""
    end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
    return end[zipfile._ECD_SIZE] if end else 0  # type: ignore[attr-defined]


def _entry(name: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo, limits: Limits) -> Upload:
    def unpack() -> bytes:
        limits.check_size(info.file_size)
        with decoding(), archive.open(info) as file:  # several threads may do so
            return file.read(info.file_size)

    return Upload(f"{name}/{info.filename}", unpack, info.file_size)


def _is_wanted(entry: zipfile.ZipInfo) -> bool:
    name = PurePosixPath(entry.filename).name
    is_junk = entry.filename.startswith("__MACOSX/") or name.startswith("._") or name in (".DS_Store", "Thumbs.db")
    return not entry.is_dir() and not is_junk


def _notes(image: Image.Image) -> Iterator[str]:
    """Yield a sentence for each thing that `read_image` did to an image beyond turning it upright."""
    if is_animated(image):
        yield "An animated image: its first frame is used."
    if image.mode == "CMYK":
        yield "A CMYK image: converted to RGB without a colour profile."
    if image.mode.startswith("I;16"):
        yield "A 16-bit image: scaled to 8 bits."
    if image.mode in ("RGBA", "LA", "PA", "P") and image.has_transparency_data:
        with_alpha = image if "A" in image.getbands() else image.convert("RGBA")
        if with_alpha.getchannel("A").getextrema() != (255, 255):  # a camera's frame is opaque
            yield "A transparent image: its transparency is dropped."
