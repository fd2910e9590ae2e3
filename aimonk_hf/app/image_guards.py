"""Refuse files of strangers that are small on the disk but take minutes or gigabytes to decode."""

import io
import os
import re
import struct
from collections.abc import Iterator
from typing import IO

from PIL import Image

from aimonk_hf.data.images import check_regular, decoding, open_image, read_image
from aimonk_hf.errors import ImageError

# Every scan of a JPEG passes over all of its pixels; encoders write about ten.
_MAX_SCANS = 100
# A segment has up to 64 kB; profiles and depth maps take hundreds of them.
_MAX_SEGMENTS = 10_000
# Compressed data has a zero behind every 0xff; TEM, restart and start markers have no length.
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])", re.DOTALL)
# Tags may share bytes, and Pillow copies them for each: 700 kB of TIFF can become 40 GB. Honest tags take less than
# their file.
_TAG_SHARE, _TAG_SLACK = 4, 1 << 20
_TAG_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_TAG_FOLDERS = (0x8769, 0x8825, 0xA005)  # tags that lead to further tags: EXIF, GPS, interoperability
# Pillow joins a GIF's comments block by block, which takes a time that grows with the square of their length.
_MAX_COMMENT = 1 << 20


def open_guarded(source: str | os.PathLike[str] | bytes) -> Image.Image:
    """Open an image file of a stranger without decoding it; raises `ImageError` where that would be costly too."""
    refuse_costly(source)
    return open_image(source)


def read_guarded(image: Image.Image) -> Image.Image:
    """Return the RGB image of an opened file of a stranger; `image` may be changed, which saves copies."""
    with decoding():
        image.load()  # a PNG may hold its EXIF data behind the pixels
    exif = image.info.get("exif") or b""
    _check_tags(io.BytesIO(exif.removeprefix(b"Exif\0\0")))
    if len(image.info.get("Raw profile type exif") or "") > _TAG_SLACK // 8:  # hexadecimal, as ImageMagick writes it
        raise ImageError("Refused: its EXIF data is too long.")
    return read_image(image, in_place=True)


def refuse_costly(source: str | os.PathLike[str] | bytes) -> None:
    """Raise `ImageError` for a JPEG of many scans, a TIFF whose tags share bytes, and a GIF with a long comment."""
    check_regular(source)
    with decoding(), io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        head = file.read(4)
        if head.startswith(b"\xff\xd8\xff"):
            _check_segments(file)
        elif head in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            _check_tags(file)
        elif head == b"GIF8":
            _check_comments(file)


def _check_segments(file: IO[bytes]) -> None:
    """Count scans and segments of a JPEG, up to its end marker: phones keep films behind it."""
    file.seek(2)
    segments = scans = 0
    while (marker := _next_marker(file)) not in (b"", b"\xd9") and segments <= _MAX_SEGMENTS:
        segments += 1
        scans += marker == b"\xda"
        file.seek(max(int.from_bytes(file.read(2)) - 2, 0), io.SEEK_CUR)
    for count, limit, kind in ((scans, _MAX_SCANS, "scans"), (segments, _MAX_SEGMENTS, "segments")):
        if count > limit:
            raise ImageError(
                f"Refused: this JPEG has {count} {kind} (limit {limit}), which can take minutes to decode."
            )


def _next_marker(file: IO[bytes]) -> bytes:
    """Return the second byte of the next marker that begins a segment or ends the image; empty at the file's end."""
    before, size = b"", 16  # most markers follow at once
    while chunk := file.read(size):
        if found := _MARKER.search(before + chunk):
            file.seek(found.end() - len(before + chunk), io.SEEK_CUR)
            return found[1]
        before, size = chunk[-1:], min(2 * size, 1 << 20)
    return b""


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
        raise ImageError(f"Refused: its tags take {held / 1e6:.0f} MB of memory in {size / 1e3:.0f} kB.")


def _tags(file: IO[bytes], place: int, order: str, is_big: bool) -> Iterator[tuple[int, int, int]]:
    """Yield tag, length of its data in bytes, and its value or the place of its data, of the directory at `place`."""
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
    """Refuse a GIF whose comments, up to its second image, are longer than `_MAX_COMMENT`."""
    file.seek(10)
    _skip_palette(file, file.read(3)[:1])
    comments = images = 0
    while images < 2 and (kind := file.read(1)) and kind != b";":
        is_comment = kind == b"!" and file.read(1) == b"\xfe"
        if kind == b",":
            images += 1
            _skip_palette(file, file.read(9)[8:])
            file.seek(1, io.SEEK_CUR)
        while kind in b"!," and (length := file.read(1)) and length[0]:
            file.seek(length[0], io.SEEK_CUR)
            comments += length[0] * is_comment
            if comments > _MAX_COMMENT:
                raise ImageError("Refused: this GIF has a comment of more than a megabyte.")


def _skip_palette(file: IO[bytes], flags: bytes) -> None:
    if flags and flags[0] & 128:
        file.seek(3 * 2 ** ((flags[0] & 7) + 1), io.SEEK_CUR)
