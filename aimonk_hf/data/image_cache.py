"""Decoded, resized pictures kept on disk, so that epochs after the first decode nothing.

One pair of files per image folder and settings: NAME.pixels holds the pictures' bytes one after the other, NAME.index one line for each.
Processes share them without locks, because both only grow by appending (O_APPEND) and a picture is returned only if its checksum, which
covers the image file's name, size and time too, is right. A writer killed in the middle leaves bytes that no line points to; damage, two
writers at the same place (network drives) and files dropped by another run all end in the same way: the picture is decoded once more.

The bytes are read, not mapped: with the copy that training needs anyway reading is as fast, and a file cut short or a failing disk is
then a picture to decode instead of a signal that ends the process.
"""

import errno
import hashlib
import logging
import os
import shutil
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import features

from aimonk_hf import __version__

Pixels = NDArray[np.uint8]

MAX_BYTES = 8 << 30
# Share of the disk space that would be free without the cache.
FREE_SHARE = 0.25
_FORMAT = 1
_SUFFIXES = (".pixels", ".index", ".stopped")
_LINE_BYTES = 160  # at most
# Unused for so long, files may be dropped for those of another run; a run in progress says more often than that that it uses its own.
_IDLE_SECONDS, _TOUCH_SECONDS = 3600, 600
# A file changed so short ago could change again without a new time, because file systems count in steps of up to two seconds.
_UNSETTLED_NS = 2_000_000_000
# Bytes that no line points to, from which on a start with fresh files may be worth it.
_WASTE_BYTES = 64 << 20

_logger = logging.getLogger(__name__)


class _Entry(NamedTuple):
    stamp: bytes
    offset: int
    height: int
    width: int
    checksum: int


class PixelCache:
    """Pictures as `decode` made them, for the images of one folder and one `settings` string, which must name all that `decode` does.

    All files of `folder` together (default: `cache_folder()`) stay below `max_bytes` and `FREE_SHARE`, but for one picture per writing
    process. When they are full, files that no run has used for an hour are dropped; then nothing more is added, because of more pictures
    than fit, read in turn, the oldest are exactly those needed next. Where the cache cannot be written it says so once and goes on
    without. Instances can be pickled and shared by threads and forked processes: no file stays open.
    """

    def __init__(
        self,
        images_dir: str | os.PathLike[str],
        settings: str,
        folder: str | os.PathLike[str] | None = None,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.folder, self.max_bytes = Path(folder or cache_folder()).absolute(), max_bytes
        libraries = [str(features.version(name)) for name in ("pil", "libjpeg_turbo")]
        parts = [str(Path(images_dir).absolute()), settings, str(_FORMAT), __version__, *libraries]
        name = hashlib.blake2b(b"\0".join(map(os.fsencode, parts)), digest_size=12).hexdigest()
        self._pixels, self._index, self._stopped = (self.folder / (name + suffix) for suffix in _SUFFIXES)
        self._entries: dict[bytes, _Entry] = {}
        self._seen = 0  # bytes of the index that are in `_entries`
        self._touched = time.monotonic()
        self._adding = True
        try:
            self._open()
        except OSError as error:
            self._stop(f"{error.strerror or error}: {self.folder}")
            self._refresh()  # what lies in a read-only folder can still be read

    def get(self, path: str | os.PathLike[str], decode: Callable[[], Pixels]) -> Pixels:
        """Return the picture [H, W, 3] uint8 of the image file: the kept one, else that of `decode()`, which is then kept.

        What `decode` raises passes through, and nothing is kept.
        """
        try:
            key, stamp, settled = _identify(path)
        except (OSError, ValueError):
            return decode()  # which says what is wrong with the path
        self._note_use()
        pixels = self._read(key, stamp)
        if pixels is None:
            self._refresh()  # another process may have added or mended it
            pixels = self._read(key, stamp)
        if pixels is None:
            pixels = decode()
            if self._adding and settled:
                self._add(key, stamp, pixels)
        return pixels

    def holds(self, path: str | os.PathLike[str]) -> bool:
        """Tell whether the image file, as it is now, was decoded before; so it is a good picture, which needs no checking."""
        try:
            key, stamp, _ = _identify(path)
        except (OSError, ValueError):
            return False
        entry = self._entries.get(key)
        return entry is not None and entry.stamp == stamp

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_entries": {}, "_seen": 0}  # a new process reads the index itself

    def _open(self) -> None:
        """Create the files, or note that they are in use; start anew where most of the bytes are waste (a lost index, changed images)."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._stopped.unlink(missing_ok=True)
        for path in (self._pixels, self._index):
            _append(path, b"")
        os.utime(self._pixels)
        total = self._pixels.stat().st_size  # before the index is read: what others add meanwhile is no waste
        self._refresh()
        used = sum(entry.height * entry.width * 3 for entry in self._entries.values())
        if total - used > max(used, _WASTE_BYTES):
            self._drop(self._pixels)
            self._entries, self._seen = {}, 0

    def _read(self, key: bytes, stamp: bytes) -> Pixels | None:
        """Return a kept picture, or None where there is none or it is damaged."""
        entry = self._entries.get(key)
        if entry is None or entry.stamp != stamp:
            return None
        pixels = np.empty((entry.height, entry.width, 3), np.uint8)
        try:
            with open(self._pixels, "rb", buffering=0) as file:
                file.seek(entry.offset)
                complete = file.readinto(pixels.data) == pixels.nbytes
        except OSError:
            return None
        return pixels if complete and _checksum(key, stamp, pixels) == entry.checksum else None

    def _note_use(self) -> None:
        if time.monotonic() - self._touched > _TOUCH_SECONDS:
            self._touched = time.monotonic()
            with suppress(OSError):  # dropped, or not ours to write
                os.utime(self._pixels)

    def _refresh(self) -> None:
        """Take in the lines appended to the index since the last look, whoever wrote them. Two threads at once do the same twice."""
        try:
            with open(self._index, "rb", buffering=0) as file:
                if os.fstat(file.fileno()).st_size < self._seen:  # dropped by another run and begun again
                    self._entries, self._seen = {}, 0
                seen = self._seen
                file.seek(seen)
                lines = file.read()
        except OSError:
            return
        end = lines.rfind(b"\n") + 1
        self._entries.update(filter(None, map(_parse, lines[:end].split(b"\n"))))
        self._seen = seen + end

    def _add(self, key: bytes, stamp: bytes, pixels: Pixels) -> None:
        """Append the picture, then the line that makes it count."""
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise TypeError(f"decode() must return [H, W, 3] uint8, found {list(pixels.shape)} {pixels.dtype}")
        pixels = np.ascontiguousarray(pixels)
        try:
            if not self._has_room(pixels.nbytes + _LINE_BYTES):
                self._stop(
                    f"{self.folder} holds all it may (at most {self.max_bytes / 2**30:.3g} GiB, {FREE_SHARE:.0%} of the free disk)"
                )
                return
            offset = _append(self._pixels, pixels.data)
            line = b"%s %s %d %d %d %08x" % (key, stamp, offset, *pixels.shape[:2], _checksum(key, stamp, pixels))
            _append(
                self._index, b"\n%s %08x\n" % (line, zlib.crc32(line))
            )  # the first \n ends a line that a killed writer left open
        except OSError as error:
            self._stop(f"{error.strerror or error}: {self.folder}")

    def _has_room(self, n_bytes: int) -> bool:
        """Tell whether so many bytes may be added; drop what no run has used of late, the longest idle first, if that is what it takes."""
        files: dict[Path, os.stat_result] = {}
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):  # dropped by another process meanwhile
                files[path] = path.stat()
        total = sum(status.st_size for path, status in files.items() if path.suffix in _SUFFIXES)
        limit = min(self.max_bytes, FREE_SHARE * (shutil.disk_usage(self.folder).free + total))
        others = [path for path in files if path.suffix == ".pixels" and path != self._pixels]
        idle = [path for path in others if time.time() - files[path].st_mtime > _IDLE_SECONDS]
        for path in sorted(idle, key=lambda path: files[path].st_mtime):
            if total + n_bytes <= limit:
                break
            self._drop(path)
            total -= sum(status.st_size for other, status in files.items() if other.stem == path.stem)
        return total + n_bytes <= limit

    def _drop(self, pixels: Path) -> None:
        for suffix in _SUFFIXES:
            pixels.with_suffix(suffix).unlink(missing_ok=True)

    def _stop(self, reason: str) -> None:
        """Add nothing from now on; of all processes that use these files the first one says why."""
        self._adding = False
        try:
            os.close(os.open(self._stopped, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            return
        except OSError:
            _logger.debug("no note can be left at %s", self._stopped)
        _logger.warning(
            "the cache of decoded pictures takes in no more, the rest is decoded in every epoch: %s", reason
        )


def cache_folder() -> Path:
    """Return the default folder: $AIMONK_CACHE/pixels, else aimonk_hf/pixels in $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("AIMONK_CACHE"):
        return Path(own) / "pixels"
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "aimonk_hf" / "pixels"
    except RuntimeError:  # a user without a home: a place that cannot be written turns the cache off
        return Path(os.devnull) / "pixels"


def _identify(path: str | os.PathLike[str]) -> tuple[bytes, bytes, bool]:
    """Return a file's key, its stamp (bytes and time), and whether that time will change if the file does."""
    status = Path(path).stat()
    key = hashlib.blake2b(os.fsencode(Path(path).absolute()), digest_size=16).hexdigest().encode()
    settled = abs(time.time_ns() - status.st_mtime_ns) > _UNSETTLED_NS
    return key, b"%d.%d" % (status.st_size, status.st_mtime_ns), settled


def _append(path: Path, content: bytes | memoryview) -> int:
    """Append in one write to a file that only its owner may read; return where it begins. Raises `OSError` unless all was written."""
    size = memoryview(content).nbytes
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
    try:
        if os.write(file, content) < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.lseek(file, 0, os.SEEK_CUR) - size
    finally:
        os.close(file)


def _checksum(key: bytes, stamp: bytes, pixels: Pixels) -> int:
    return zlib.crc32(pixels.data, zlib.crc32(key + stamp))


def _parse(line: bytes) -> tuple[bytes, _Entry] | None:
    """Read a line of the index; None where it is empty, cut off or damaged."""
    body, _, check = line.rpartition(b" ")
    if not body or check != b"%08x" % zlib.crc32(body):
        return None
    key, stamp, offset, height, width, checksum = body.split(b" ")
    return key, _Entry(stamp, int(offset), int(height), int(width), int(checksum, 16))


class ImageCache(PixelCache):
    def __init__(self, folder, fingerprint):
        super().__init__("/", fingerprint, folder)


def open_image_cache(setting, fingerprint):
    return None if setting == "off" else ImageCache(setting, fingerprint)
