"""Read images and zip archives of visitors within limits; nothing of them is ever unpacked onto the disk."""

import base64
import binascii
import io
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from threading import Lock, Semaphore
from typing import IO, Any

import gradio as gr
from PIL import Image

from aimonk_hf.app.image_guards import open_guarded, read_guarded
from aimonk_hf.data.images import shown_name
from aimonk_hf.errors import AimonkError, ImageError

MEGABYTE = 1_000_000
MAX_FILES = 1000  # images in one batch, those in archives counted
MAX_ARCHIVES = 50  # in one batch: each holds a file descriptor while the batch runs
MAX_DIRECTORY = 4 * MEGABYTE  # of the archives of one batch: reading 1,000 ordinary names takes a tenth of that


@contextmanager
def in_words() -> Iterator[None]:
    """Refuse a call by a sentence where the block raises `AimonkError`."""
    try:
        yield
    except AimonkError as error:
        raise gr.Error(sentence(error), print_exception=False) from error


def sentence(error: AimonkError) -> str:
    """Return an error's text as visitors read it: a sentence with a capital letter, without a hint to install."""
    text = str(error).partition(", or install ")[0].rstrip(".")
    return f"{text[:1].upper()}{text[1:]}."


class Budget:
    """Let callers hold at most `total` of something at the same time, in the order in which they ask."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._hundredths = Semaphore(100)
        self._turn = Lock()  # held while waiting, so that small amounts do not overtake a large one for ever

    @contextmanager
    def hold(self, amount: int) -> Iterator[None]:
        """Wait until `amount` is free, at most the whole, and hold it within the block."""
        share = math.ceil(100 * min(amount, self.total) / self.total)
        with self._turn:
            for _ in range(share):
                self._hundredths.acquire()
        try:
            yield
        finally:
            if share:
                self._hundredths.release(share)


@dataclass
class Limits:
    """Hold the limits of what visitors send: files of at most `max_bytes`, in `folder`, where gradio puts uploads."""

    max_bytes: int
    folder: Path
    unpacking: Budget = field(init=False)  # bytes of zip entries in memory, of all batches

    def __post_init__(self) -> None:
        self.unpacking = Budget(self.max_bytes)


@dataclass
class Upload:
    """Name an image before decoding, with a function that returns its path or its bytes, and their number."""

    name: str
    read: Callable[[], str | bytes]
    n_bytes: int = 0


@contextmanager
def unpacked(upload: Upload, limits: Limits) -> Iterator[str | bytes]:
    """Yield the path or the bytes of an upload; zip entries in memory are never larger together than one may be.

    Raises `ImageError`.
    """
    with limits.unpacking.hold(upload.n_bytes):
        yield upload.read()


@contextmanager
def decoded(source: str | bytes, decoding: Budget) -> Iterator[tuple[Image.Image, str]]:
    """Yield an RGB image, whose pixels are held of `decoding` within the block, and sentences on what was done to it.

    Raises `ImageError` with the reason.
    """
    with open_guarded(source) as image, decoding.hold(image.width * image.height):
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


def open_upload(value: Any, limits: Limits) -> Upload:
    """Return the image that a file field holds: gradio's FileData as a dict, or a data URL.

    Raises `ImageError` where nothing was sent, where it is too large, and as `check_place` does.
    """
    sent = value if isinstance(value, dict) else {}
    path, url, name = sent.get("path"), sent.get("url"), sent.get("orig_name")
    if path:
        check_place(path, limits.folder)
        if not Path(path).is_file():
            raise ImageError("There is no such file: uploads are removed after half an hour; send it again")
        _check_size(Path(path).stat().st_size, limits.max_bytes)
        return Upload(_clean(name or Path(path).name), lambda: path)
    if isinstance(url, str) and url.startswith("data:"):
        _check_size(len(url) * 3 // 4, limits.max_bytes)
        try:
            content = base64.b64decode(url.partition(",")[2], validate=True)
        except binascii.Error as error:
            raise ImageError("The data URL is not valid base64") from error
        return Upload(_clean(name or "image"), lambda: content)
    raise ImageError("No image was sent")


def expand_uploads(values: Any, limits: Limits, archives: ExitStack) -> list[Upload]:
    """Return every image of the files sent, those in zip archives too, which stay open until `archives` closes them.

    Raises `AimonkError` where there is none, and where archives are damaged or larger than this app unpacks.
    """
    uploads: list[Upload] = []
    count = directory = total = 0  # archives, and bytes of all of them
    for value in values or []:
        try:
            upload = open_upload(value, limits)
        except ImageError as error:
            name = value.get("orig_name") if isinstance(value, dict) else None
            uploads.append(Upload(_clean(name or "file"), partial(_fail, error)))
            continue
        source = upload.read()
        if isinstance(source, bytes):
            file: IO[bytes] = io.BytesIO(source)
        else:
            file = archives.enter_context(open(source, "rb"))  # noqa: SIM115
        if file.read(4) not in (b"PK\x03\x04", b"PK\x05\x06") and not upload.name.lower().endswith(".zip"):
            uploads.append(upload)
            file.close()
        else:
            count += 1
            if count > MAX_ARCHIVES:
                raise AimonkError(f"A batch takes at most {MAX_ARCHIVES} zip archives: send them in parts")
            archive, size = _open_zip(upload.name, file, MAX_DIRECTORY - directory)
            archives.enter_context(archive)
            found = [
                _entry(upload.name, archive, info, limits.max_bytes) for info in archive.infolist() if _is_wanted(info)
            ]
            directory, total = directory + size, total + sum(entry.n_bytes for entry in found)
            if not found:
                raise AimonkError(f"The archive {upload.name} is empty")
            if total > 10 * limits.max_bytes:
                most = f"{10 * limits.max_bytes / MEGABYTE:.0f} MB"
                raise AimonkError(f"The archives up to {upload.name} unpack to more than {most}: send them in parts")
            uploads += found
        if len(uploads) > MAX_FILES:
            sent = f"{len(uploads)} were sent up to {upload.name}"
            raise AimonkError(f"A batch takes at most {MAX_FILES} files, and {sent}: send them in parts")
    if not uploads:
        raise AimonkError("No files were sent: choose images, or a zip of images")
    return uploads


def _fail(error: ImageError) -> str:
    raise error


def _open_zip(name: str, file: IO[bytes], max_directory: int) -> tuple[zipfile.ZipFile, int]:
    """Open an archive; return it with the size of its directory, which is held in memory: at most `max_directory`."""
    try:
        end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
        size: int = end[zipfile._ECD_SIZE] if end else 0  # type: ignore[attr-defined]
        if size <= max_directory:
            return zipfile.ZipFile(file), size
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise AimonkError(f"The archive {name} is damaged ({error})") from error
    most = f"{MAX_DIRECTORY / MEGABYTE:.0f} MB: send fewer, without comments"
    raise AimonkError(f"Names and comments in the archives up to {name} take more than {most}")


def _entry(name: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo, max_bytes: int) -> Upload:
    """Return an entry as an upload; reading it raises `ImageError` where it is encrypted, damaged or too large."""

    def unpack() -> bytes:
        _check_size(info.file_size, max_bytes)
        try:
            with archive.open(info) as file:  # several threads may do so
                return file.read(info.file_size)
        except (RuntimeError, NotImplementedError) as error:  # of zipfile, for a password and for unknown methods
            raise ImageError("The entry is encrypted or packed with an unknown method") from error
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, KeyError) as error:
            raise ImageError(f"The entry is damaged ({error})") from error

    return Upload(_clean(f"{name}/{info.filename}"), unpack, info.file_size)


def _is_wanted(entry: zipfile.ZipInfo) -> bool:
    is_junk = entry.filename.startswith("__MACOSX/") or PurePosixPath(entry.filename).name in (".DS_Store", "Thumbs.db")
    return not entry.is_dir() and not is_junk


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise ImageError(f"The file is too large: more than the limit of {max_bytes / MEGABYTE:g} MB")


def _clean(name: str) -> str:
    """Return a name that is safe to show, of at most 120 characters."""
    shown = shown_name(name)
    return shown if len(shown) <= 120 else f"{shown[:58]}...{shown[-59:]}"


def _notes(image: Image.Image) -> list[str]:
    """Return a sentence for each thing that `read_image` did to an image beyond turning it upright."""
    is_transparent = False
    if image.mode in ("RGBA", "LA", "PA", "P") and image.has_transparency_data:
        with_alpha = image if "A" in image.getbands() else image.convert("RGBA")
        is_transparent = with_alpha.getchannel("A").getextrema() != (255, 255)  # a camera's frame is opaque
    done = {
        "An animated image: its first frame is used.": getattr(image, "is_animated", False),
        "A CMYK image: converted to RGB without a colour profile.": image.mode == "CMYK",
        "A 16-bit image: scaled to 8 bits.": image.mode.startswith("I;16"),
        "A transparent image: its transparency is dropped.": is_transparent,
    }
    return [note for note, was_done in done.items() if was_done]
