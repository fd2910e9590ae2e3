"""Any picture in, an upright 8-bit RGB image out, with the pixels that the transformers pipeline would see."""

import io
import logging
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from aimonk_hf.errors import ImageError

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jfif", ".avif", ".heic", ".heif")
# A decoded picture of this size takes about 270 MB; Pillow itself warns from here on and refuses at twice as many.
MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485

ImageSource = str | os.PathLike[str] | bytes | Image.Image | np.ndarray[Any, Any]

_logger = logging.getLogger(__name__)
_said: set[str] = set()


def read_image(source: ImageSource) -> Image.Image:
    """Return an RGB image: EXIF orientation applied, first frame, transparency dropped, 16 bits scaled to 8.

    `source` is a path, the file's bytes, a PIL image, or an array [H, W, 3] uint8. Raises `ImageError` with the reason.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    try:
        if isinstance(source, Image.Image):
            return _to_rgb(source)
        with open_image(source) as image:
            return _to_rgb(image)
    except ImageError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, KeyError, OverflowError) as error:
        # Pillow's decoders raise all of these on damaged files
        raise ImageError(f"the picture is damaged ({error})") from error


def open_image(source: str | os.PathLike[str] | bytes) -> Image.Image:
    """Open a picture without decoding it; raises `ImageError` where it is missing, no picture, or too large."""
    try:
        if not isinstance(source, bytes) and not stat.S_ISREG(Path(source).stat().st_mode):
            raise ImageError("not a file")  # opening a named pipe would wait for ever
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError("no such file") from error
    except UnidentifiedImageError as error:
        raise ImageError(_why_unidentified(source)) from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"too many pixels: more than the limit of {MAX_PIXELS / 1e6:.0f} million") from error
    except OSError as error:
        raise ImageError(str(error.strerror or error)) from error
    except (ValueError, SyntaxError, TypeError, OverflowError) as error:
        raise ImageError(f"not a readable picture ({error})") from error
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width} x {image.height}"
        image.close()
        raise ImageError(f"too many pixels: {size} is more than the limit of {MAX_PIXELS / 1e6:.0f} million")
    return image


def check_image(path: str | os.PathLike[str]) -> str | None:
    """Decode a picture as cheaply as its format allows; return the reason why it cannot be used, or None."""
    try:
        with open_image(path) as image:
            image.draft("RGB", (64, 64))  # JPEG only: an eighth of the size, but every byte is still read
            _to_rgb(image)
    except ImageError as error:
        return str(error)
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, KeyError, OverflowError) as error:
        return f"the picture is damaged ({error})"
    return None


def _from_array(array: np.ndarray[Any, Any]) -> Image.Image:
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or not array.size:
        raise ImageError(f"an array must be [H, W, 3] uint8, found {list(array.shape)} {array.dtype}")
    return Image.fromarray(array)


def _to_rgb(image: Image.Image) -> Image.Image:
    if getattr(image, "is_animated", False):
        _say_once("animated", "animated pictures: the first frame is used")
        image.seek(0)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bits(image)
    elif image.mode in ("RGBA", "LA", "PA") or (image.mode == "P" and "transparency" in image.info):
        _say_once("transparent", "pictures with transparency: it is dropped, as the transformers pipeline does (often black shows through)")
    elif image.mode == "CMYK":
        _say_once("cmyk", "CMYK pictures: converted to RGB without a colour profile, as the transformers pipeline does")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits; Pillow's own conversion would clip everything above 255 to white."""
    if image.mode in ("I", "F"):
        raise ImageError("32-bit pixels have no agreed range: save the picture with 8 or 16 bits")
    _say_once("sixteen", "16-bit pictures: scaled to 8 bits")
    return Image.fromarray((np.asarray(image) // 257).astype(np.uint8))


def _why_unidentified(source: str | os.PathLike[str] | bytes) -> str:
    """Tell an empty file and a format that needs another package from a file that is no picture."""
    if isinstance(source, bytes):
        head = source[:32]
    else:
        with open(source, "rb") as file:
            head = file.read(32)
    if not head:
        return "the file is empty"
    if head[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypheif"):
        return "HEIC is not supported: save it as JPEG, or install pillow-heif and register its opener"
    return "not a picture, whatever its name says"


def _say_once(kind: str, message: str) -> None:
    if kind not in _said:
        _said.add(kind)
        _logger.warning("%s", message)
