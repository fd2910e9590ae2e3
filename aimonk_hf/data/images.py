"""Any picture in, an upright 8-bit RGB image out, with the pixels that the transformers pipeline would see."""

import io
import logging
import os
import re
import stat
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from aimonk_hf.errors import ImageError

IMAGE_EXTENSIONS = (
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".jfif",
    ".avif",
    ".heic",
    ".heif",
)
# Pillow goes by content, not by name, and opens some forty formats; its reader of PostScript starts another program.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "AVIF", "HEIF")
# Pillow's decoders raise all of these on damaged files.
_DAMAGE = (
    *(
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        LookupError,
        TypeError,
        ArithmeticError,
        AttributeError,
        RuntimeError,
        AssertionError,
    ),
    *(struct.error, zlib.error),
)

# A decoded picture of this size takes about 270 MB; Pillow itself warns from here on and refuses at twice as many.
MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485
# Scaling the shorter side of a strip to 256 pixels makes its longer side as many times longer: 40 MB at this ratio.
MAX_RATIO = 200
# Every scan of a JPEG passes over all of its pixels; encoders write about ten.
_MAX_SCANS = 100
# A segment has up to 64 kB; profiles and depth maps take hundreds of them.
_MAX_SEGMENTS = 10_000
# Compressed data has a zero behind every 0xff; TEM, restart and start markers have no length.
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])", re.DOTALL)
# Tags may share bytes, and Pillow copies them for each: 700 kB of TIFF can become 40 GB. Honest tags take less than their file.
_TAG_SHARE, _TAG_SLACK = 4, 1 << 20
# Pillow joins a GIF's comments block by block, which takes a time that grows with the square of their length.
_MAX_COMMENT = 1 << 20
_TAG_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_TAG_FOLDERS = (0x8769, 0x8825, 0xA005)  # tags that lead to further tags: EXIF, GPS, interoperability

ImageSource = str | os.PathLike[str] | bytes | Image.Image | np.ndarray[Any, Any]

_logger = logging.getLogger(__name__)
_said: set[str] = set()


def read_image(source: ImageSource, in_place: bool = False) -> Image.Image:
    """Return an RGB image: EXIF orientation applied, first frame, transparency dropped, 16 bits scaled to 8.

    `source` is a path, the file's bytes, a PIL image, or an array [H, W, 3] uint8; with `in_place` a PIL image may be changed, which saves two
    copies of all pixels. Raises `ImageError` with the reason.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    try:
        if isinstance(source, Image.Image):
            _check_shape(source.width, source.height)
            return _to_rgb(source, in_place)
        with open_image(source) as image:
            return _to_rgb(image)
    except ImageError:
        raise
    except (*_DAMAGE, Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError) as error:
        raise _why_undecoded(error) from error


def open_image(source: str | os.PathLike[str] | bytes) -> Image.Image:
    """Open a picture without decoding it; raises `ImageError` where it is missing, no picture, or too large."""
    head = b""
    try:
        if not isinstance(source, bytes) and not stat.S_ISREG(Path(source).stat().st_mode):
            raise ImageError(_why_no_file(source))  # opening a named pipe would wait for ever
        with _bytes_of(source) as file:
            head = file.read(32)
            _check_structure(file, head)
        Image.init()  # so that every format is registered
        formats = [name for name in _FORMATS if name in Image.OPEN]
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError("no such file") from error
    except UnidentifiedImageError as error:
        raise ImageError(_why_unidentified(head)) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"too many pixels: more than the limit of {MAX_PIXELS / 1e6:.0f} million") from error
    except OSError as error:  # of the system, or of Pillow
        raise ImageError(error.strerror or f"the picture is damaged ({_one_line(error)})") from error
    except (*_DAMAGE, MemoryError) as error:
        raise ImageError(f"not a readable picture ({_one_line(error)})") from error
    try:
        _check_shape(image.width, image.height)
    except ImageError:
        image.close()
        raise
    return image


def check_image(path: str | os.PathLike[str]) -> str | None:
    """Decode a picture as cheaply as its format allows; return the reason why it cannot be used, or None."""
    try:
        with open_image(path) as image:
            image.draft("RGB", (64, 64))  # JPEG only: an eighth of the size, but every byte is still read
            _to_rgb(image)
    except ImageError as error:
        return str(error)
    except (*_DAMAGE, Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError) as error:
        return str(_why_undecoded(error))
    return None


def shown_name(name: str | os.PathLike[str]) -> str:
    """Return a file name for a terminal, a table or a report: what is no printable text (line breaks, escapes, other bytes) as \\xNN."""
    return "".join(_shown_character(character) for character in os.fspath(name))


def _shown_character(character: str) -> str:
    if character.isprintable():
        return character
    raw = character.encode("utf-8", "surrogateescape" if "\udc80" <= character <= "\udcff" else "surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in raw)


def _bytes_of(source: str | os.PathLike[str] | bytes) -> IO[bytes]:
    return io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")


def _from_array(array: np.ndarray[Any, Any]) -> Image.Image:
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or not array.size:
        raise ImageError(f"an array must be [H, W, 3] uint8, found {list(array.shape)} {array.dtype}")
    _check_shape(array.shape[1], array.shape[0])
    return Image.fromarray(array)


def _to_rgb(image: Image.Image, in_place: bool = True) -> Image.Image:
    """Return an upright RGB image; `in_place` it may be `image` itself, which saves two copies of all pixels."""
    if getattr(image, "is_animated", False):
        _say_once("animated", "animated pictures: the first frame is used")
        image.seek(0)
    image.load()  # a PNG may hold its EXIF data behind the pixels
    _check_exif(image)
    if in_place:
        ImageOps.exif_transpose(image, in_place=True)
    else:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bits(image)
    elif image.mode in ("RGBA", "LA", "PA") or (image.mode == "P" and "transparency" in image.info):
        _say_once(
            "transparent",
            "pictures with transparency: it is dropped, as the transformers pipeline does (often black shows through)",
        )
    elif image.mode == "CMYK":
        _say_once("cmyk", "CMYK pictures: converted to RGB without a colour profile, as the transformers pipeline does")
    return image if in_place and image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits; Pillow's own conversion would clip everything above 255 to white."""
    if image.mode in ("I", "F"):
        raise ImageError("32-bit pixels have no agreed range: save the picture with 8 or 16 bits")
    _say_once("sixteen", "16-bit pictures: scaled to 8 bits")
    return Image.fromarray((np.asarray(image) // 257).astype(np.uint8))


def _why_undecoded(error: BaseException) -> ImageError:
    if isinstance(error, MemoryError):
        return ImageError("there is not enough memory to decode it")
    return ImageError(f"the picture is damaged ({_one_line(error)})")


def _why_no_file(path: str | os.PathLike[str]) -> str:
    if Path(path).is_dir():
        try:
            os.scandir(path).close()
        except OSError as error:
            return f"a folder that cannot be read: {error.strerror}"
    return "not a file"


def _why_unidentified(head: bytes) -> str:
    """Tell an empty file and a format that needs another package from a file that is no picture."""
    if not head:
        return "the file is empty"
    if head[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypheif"):
        return "HEIC is not supported: save it as JPEG, or install pillow-heif and register its opener"
    return "not a picture, whatever its name says"


def _one_line(error: BaseException) -> str:
    """Return the first line of an error's text, shortened, because decoders quote the file's own bytes."""
    lines = str(error).strip().splitlines()
    return shown_name(lines[0])[:160] if lines else type(error).__name__


def _say_once(kind: str, message: str) -> None:
    if kind not in _said:
        _said.add(kind)
        _logger.warning("%s", message)


def _check_shape(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"too many pixels: {width} x {height} is more than the limit of {MAX_PIXELS / 1e6:.0f} million"
        )
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ImageError(f"too long and thin: {width} x {height}, one side more than {MAX_RATIO} times the other")


def _check_structure(file: IO[bytes], head: bytes) -> None:
    """Refuse files that are small on the disk but cost minutes or gigabytes to open; `file` stands anywhere, `head` is its beginning."""
    if head.startswith(b"\xff\xd8\xff"):
        _check_segments(file)
    elif head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        _check_tags(file)
    elif head.startswith(b"GIF8"):
        _check_comments(file)


def _check_segments(file: IO[bytes]) -> None:
    """Refuse a JPEG of many scans or segments, up to its end marker: phones keep films behind it."""
    file.seek(2)
    segments = scans = 0
    while (marker := _next_marker(file)) not in (b"", b"\xd9") and segments <= _MAX_SEGMENTS:
        segments += 1
        scans += marker == b"\xda"
        file.seek(max(int.from_bytes(file.read(2)) - 2, 0), io.SEEK_CUR)
    if scans > _MAX_SCANS:
        raise ImageError(f"made to be slow: a JPEG of {scans} scans, more than the limit of {_MAX_SCANS}")
    if segments > _MAX_SEGMENTS:
        raise ImageError(f"made to be slow: a JPEG of more than {_MAX_SEGMENTS} segments")


def _next_marker(file: IO[bytes]) -> bytes:
    """Return the second byte of the next marker that begins a segment or ends the image; empty at the end of the file."""
    before, size = b"", 16  # most markers follow at once
    while chunk := file.read(size):
        if found := _MARKER.search(before + chunk):
            file.seek(found.end() - len(before + chunk), io.SEEK_CUR)
            return found[1]
        before, size = chunk[-1:], min(2 * size, 1 << 20)
    return b""


def _check_exif(image: Image.Image) -> None:
    exif = image.info.get("exif") or b""
    _check_tags(io.BytesIO(exif.removeprefix(b"Exif\0\0")))
    if len(image.info.get("Raw profile type exif") or "") > _TAG_SLACK // 8:  # hexadecimal, as ImageMagick writes it
        raise ImageError("its EXIF data is too long")


def _check_tags(file: IO[bytes]) -> None:
    """Refuse TIFF and EXIF data whose tags share bytes, so that they take much more memory than the file."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(16)
    order, is_big = ("<" if head[:2] == b"II" else ">"), head[2:4] in (b"+\0", b"\0+")
    if len(head) < 8 + 8 * is_big:
        return
    waiting, seen, held = [struct.unpack_from(order + ("Q" if is_big else "L"), head, 8 if is_big else 4)[0]], set(), 0
    while waiting:
        place = waiting.pop()
        if place in seen or place >= size:
            continue
        seen.add(place)
        for tag, length, value in _tags(file, place, order, is_big):
            if length > (8 if is_big else 4) and value + length <= size:
                held += length
            elif tag in _TAG_FOLDERS:
                waiting.append(value)
    if held > _TAG_SHARE * size + _TAG_SLACK:
        raise ImageError(f"made to be large: its tags take {held / 1e6:.0f} MB of memory in {size / 1e3:.0f} kB")


def _tags(file: IO[bytes], place: int, order: str, is_big: bool) -> Iterator[tuple[int, int, int]]:
    """Yield tag, length of its data in bytes, and its value or the place of its data, for the directory at `place`."""
    count_format, entry_format = (order + "Q", order + "HHQQ") if is_big else (order + "H", order + "HHLL")
    file.seek(place)
    count = file.read(struct.calcsize(count_format))
    if len(count) < struct.calcsize(count_format):
        return
    entries = file.read(min(struct.unpack(count_format, count)[0], 65536) * struct.calcsize(entry_format))
    whole = len(entries) - len(entries) % struct.calcsize(entry_format)
    for tag, kind, number, value in struct.iter_unpack(entry_format, entries[:whole]):
        yield tag, number * _TAG_SIZES.get(kind, 0), value


def _check_comments(file: IO[bytes]) -> None:
    """Refuse a GIF whose comments, up to its second picture, are longer than `_MAX_COMMENT`."""
    file.seek(10)
    flags = file.read(3)[:1]
    file.seek(3 * 2 ** ((flags[0] & 7) + 1) if flags and flags[0] & 128 else 0, io.SEEK_CUR)
    comments = pictures = 0
    while pictures < 2 and (kind := file.read(1)) and kind != b";":
        is_comment = kind == b"!" and file.read(1) == b"\xfe"
        if kind == b",":
            pictures += 1
            flags = file.read(9)[8:]
            file.seek((3 * 2 ** ((flags[0] & 7) + 1) if flags and flags[0] & 128 else 0) + 1, io.SEEK_CUR)
        while (kind in b"!,") and (length := file.read(1)) and length[0]:
            file.seek(length[0], io.SEEK_CUR)
            comments += length[0] * is_comment
            if comments > _MAX_COMMENT:
                raise ImageError("made to be slow: a GIF with a comment of more than a megabyte")
