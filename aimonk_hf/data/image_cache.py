"""Cache of decoded, resized images on disk, one file per image, so that epochs after the first decode nothing."""

import hashlib
import os
import secrets
import shutil
import struct
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import features

from aimonk_hf import __version__
from aimonk_hf.console import warn_once

Pixels = NDArray[np.uint8]

FREE_SHARE = 0.1  # of the disk, which the cache leaves free
_UNSETTLED_NS = 2_000_000_000  # a file changed so short ago could change again without a new time
_SHAPE = struct.Struct("<II")


class ImageCache:
    """Keep images as `decode` made them; `fingerprint` names everything that `decode` does.

    Threads and processes share a folder without locks: a file appears by one rename. It may be deleted at any time.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder, self._adding = folder.absolute(), True
        self._fingerprint = f"{fingerprint} {__version__} {features.version('pil')} {features.version('libjpeg_turbo')}"
        self._keep(self.folder / "test", np.zeros((1, 1, 3), np.uint8))  # or every worker would warn

    def get(self, path: str | os.PathLike[str], decode: Callable[[], Pixels]) -> Pixels:
        """Return the pixels [H, W, 3] uint8 of an image file: the kept ones, else those of `decode()`, then kept."""
        file = self._file_of(path)
        pixels = _read(file) if file else None
        if pixels is None:
            pixels = decode()
            if file and self._adding:
                self._keep(file, pixels)
        return pixels

    def _file_of(self, path: str | os.PathLike[str]) -> Path | None:
        """Return the file that keeps an image, or None where the image file is missing or may still be changing."""
        try:
            status = Path(path).stat()
        except (OSError, ValueError):  # ValueError: a zero byte in the name
            return None
        if abs(time.time_ns() - status.st_mtime_ns) < _UNSETTLED_NS:
            return None
        key = f"{Path(path).absolute()}\0{status.st_size}\0{status.st_mtime_ns}\0{self._fingerprint}"
        return self.folder / hashlib.blake2b(os.fsencode(key), digest_size=16).hexdigest()

    def _keep(self, file: Path, pixels: Pixels) -> None:
        body = _SHAPE.pack(*pixels.shape[:2]) + pixels.tobytes()
        temporary = file.with_suffix(f".{secrets.token_hex(6)}.tmp")
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if (disk := shutil.disk_usage(self.folder)).free < FREE_SHARE * disk.total:
                raise OSError(f"less than {FREE_SHARE:.0%} of the disk is free")
            with open(temporary, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as output:
                output.write(body + zlib.crc32(body).to_bytes(4, "little"))
            temporary.replace(file)
        except OSError as error:
            self._adding = False
            warn_once(f"No more images are added to {self.folder} ({error.strerror or error}): see --image-cache.")
            with suppress(OSError):
                temporary.unlink()


def open_image_cache(setting: str | None, fingerprint: str) -> ImageCache | None:
    """Return the cache in the directory `setting`; None for the default directory, "off" for no cache."""
    return None if setting == "off" else ImageCache(cache_folder(setting), fingerprint)


def cache_folder(setting: str | None = None) -> Path:
    """Return the directory `setting`, or the default directory of decoded images."""
    default = os.environ.get("AIMONK_CACHE") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/aimonk_hf/images"
    return Path(os.path.expanduser(setting or default))  # noqa: PTH111 - Path's raises where a user has no home


def _read(file: Path) -> Pixels | None:
    """Return the kept pixels, or None where there are none or the file is damaged."""
    try:
        # not mapped: a failing disk must not end the process; writable for torch
        content = bytearray(file.read_bytes())
    except OSError:
        return None
    body, checksum = memoryview(content)[:-4], bytes(content[-4:])
    if len(body) < _SHAPE.size or checksum != zlib.crc32(body).to_bytes(4, "little"):
        return None
    return np.frombuffer(body, np.uint8, offset=_SHAPE.size).reshape(*_SHAPE.unpack_from(body), 3)
