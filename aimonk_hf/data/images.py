"""Read any image file as an upright 8-bit RGB image, with the pixels that the transformers pipeline would see."""

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from aimonk_hf.console import warn_once
from aimonk_hf.errors import ImageError

_ENDINGS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "jfif", "avif", "heic", "heif", "hif")
IMAGE_EXTENSIONS = tuple(f".{ending}" for ending in _ENDINGS)
# Pillow goes by content, not by name, and opens some forty formats; its reader of PostScript starts another program.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "AVIF", "HEIF")
_HEIC = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypheif")
_NO_HEIC = "HEIC is not supported: save it as JPEG, or pip install pillow-heif"
# Several images in one file, of which one is the photograph: gain maps, depth, the frames of a burst.
_PHOTOGRAPHS = ("MPO", "HEIF")

# A decoded image of this size takes about 270 MB; Pillow itself warns from here on and refuses at twice as many.
MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485
# Scaling the shorter side of a strip to 256 pixels makes its longer side as many times longer: 40 MB at this ratio.
MAX_RATIO = 200

ImageSource = str | os.PathLike[str] | bytes | Image.Image | np.ndarray[Any, Any]


def read_image(source: ImageSource, in_place: bool = False) -> Image.Image:
    """Return an RGB image: EXIF orientation applied, first frame, transparency dropped, 16 bits scaled to 8.

    `source` is a path, the file's bytes, a PIL image, or an array [H, W, 3] uint8; with `in_place` a PIL image may be
    changed, which saves two copies of all pixels. Raises `ImageError` with the reason.
    """
    if isinstance(source, np.ndarray):
        if source.ndim != 3 or source.shape[2] != 3 or source.dtype != np.uint8 or not source.size:
            raise ImageError(f"an array must be [H, W, 3] uint8, found {list(source.shape)} {source.dtype}")
        source = Image.fromarray(source)
    if isinstance(source, Image.Image):
        _check_shape(source.width, source.height)
        return _to_rgb(source, in_place)
    with open_image(source) as image:
        return _to_rgb(image, in_place=True)


def open_image(source: str | os.PathLike[str] | bytes) -> Image.Image:
    """Open an image file, or its bytes, without decoding it; raises `ImageError` where it is missing or too large."""
    check_regular(source)
    _register_formats()
    with decoding():
        _check_webp(_head(source))
        formats = [name for name in _FORMATS if name in Image.OPEN]
        try:
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)
        except UnidentifiedImageError as error:
            raise ImageError(_why_unidentified(source)) from error
    try:
        _check_shape(image.width, image.height)
    except ImageError:
        image.close()
        raise
    return image


@cache
def _register_formats() -> None:
    """Register Pillow's own formats, and those of pillow-heif where it is installed."""
    Image.init()
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
        if "AVIF" not in Image.OPEN and hasattr(pillow_heif, "register_avif_opener"):  # Pillow has its own since 11.3
            pillow_heif.register_avif_opener()


def is_image_name(name: str) -> bool:
    """Return whether a file name ends as images do; macOS writes `._name` files without an image beside others."""
    return name.lower().endswith(IMAGE_EXTENSIONS) and not name.startswith("._")


def is_animated(image: Image.Image) -> bool:
    """Return whether an opened image has several frames; a photograph with further images beside it has not."""
    return getattr(image, "is_animated", False) and image.format not in _PHOTOGRAPHS


def check_image(path: str | os.PathLike[str]) -> str | None:
    """Decode an image as cheaply as its format allows; return the reason why it cannot be used, or None."""
    try:
        with open_image(path) as image:
            shrink(image, 64)
            read_image(image, in_place=True)
    except ImageError as error:
        return str(error)
    return None


def shrink(image: Image.Image, side: int) -> None:
    """Let an opened JPEG decode itself smaller, to no less than `side` pixels; every byte is still read."""
    with decoding():
        if image.format in ("JPEG", "MPO"):  # HEIF would decode a thumbnail instead
            image.draft("RGB", (side, side))


def shown_name(name: str | os.PathLike[str]) -> str:
    r"""Return a file name for a terminal or a report: line breaks, escapes and bytes that are no text as \xNN."""
    shown = []
    for character in os.fspath(name):
        if not character.isprintable():
            how = "surrogateescape" if "\udc80" <= character <= "\udcff" else "surrogatepass"
            character = "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", how))
        shown.append(character)
    return "".join(shown)


def check_regular(source: str | os.PathLike[str] | bytes) -> None:
    """Raise `ImageError` for a path that is missing or no regular file: opening a named pipe would wait for ever."""
    if not isinstance(source, bytes):
        with decoding():
            if stat.S_ISDIR(mode := Path(source).stat().st_mode):
                os.scandir(source).close()
            if not stat.S_ISREG(mode):
                raise ImageError("not a file")


@contextmanager
def decoding() -> Iterator[None]:
    """Raise `ImageError` in words for whatever Pillow raises within the block."""
    try:
        yield
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError("no such file") from error
    except MemoryError as error:
        raise ImageError("there is not enough memory to decode it") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"too many pixels: more than the limit of {MAX_PIXELS / 1e6:.0f} million") from error
    except Exception as error:  # Pillow's decoders raise errors of every kind on damaged files
        told = (str(error).strip() or type(error).__name__).splitlines()[0]  # decoders quote the file's own bytes
        reason = getattr(error, "strerror", None) or f"the image is damaged ({shown_name(told)[:160]})"
        raise ImageError(reason) from error


def _to_rgb(image: Image.Image, in_place: bool) -> Image.Image:
    with decoding():
        if is_animated(image):
            warn_once("animated images: the first frame is used")
            image.seek(0)
        image.load()  # a PNG may hold its EXIF data behind the pixels
        if in_place:
            ImageOps.exif_transpose(image, in_place=True)
        else:
            image = ImageOps.exif_transpose(image)
        if image.mode in ("I", "F"):
            raise ImageError("32-bit pixels have no agreed range: save the image with 8 or 16 bits")
        if image.mode.startswith("I"):  # Pillow's own conversion would clip everything above 255 to white
            warn_once("16-bit images: scaled to 8 bits")
            image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        elif image.mode in ("RGBA", "LA", "PA") or (image.mode == "P" and "transparency" in image.info):
            warn_once("images with transparency: dropped, as the transformers pipeline does (black may show through)")
        elif image.mode == "CMYK":
            warn_once("CMYK images: converted to RGB without a colour profile, as the transformers pipeline does")
        return image if in_place and image.mode == "RGB" else image.convert("RGB")


def _why_unidentified(source: str | os.PathLike[str] | bytes) -> str:
    if not (head := _head(source)):
        return "the file is empty"
    if head[4:12] in _HEIC:
        return "the image is damaged" if "HEIF" in Image.OPEN else _NO_HEIC
    return "not an image file"


def _head(source: str | os.PathLike[str] | bytes) -> bytes:
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        return file.read(32)


def _check_webp(head: bytes) -> None:
    """Check the size in the header of a WebP file, because libwebp allocates all pixels, twice, to open it."""
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return
    width = height = 0
    if head[12:16] == b"VP8X":
        width, height = (int.from_bytes(head[at : at + 3], "little") + 1 for at in (24, 27))
    elif head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif head[12:16] == b"VP8 ":
        width, height = (int.from_bytes(head[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    if width and height:  # else the file is damaged, which Pillow says
        _check_shape(width, height)


def _check_shape(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"too many pixels: {width} x {height} is more than the limit of {MAX_PIXELS / 1e6:.0f} million"
        )
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ImageError(f"too long and thin: {width} x {height}, one side more than {MAX_RATIO} times the other")
