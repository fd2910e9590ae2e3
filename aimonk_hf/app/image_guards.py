"""Refuse files of strangers that are small on the disk but take minutes or gigabytes to decode."""

import mmap
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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

Content = bytes | mmap.mmap


def open_guarded(source: str | os.PathLike[str] | bytes) -> Image.Image:
    """Open an image file of a stranger without decoding it; raises `ImageError` where that would be costly too."""
    check_regular(source)
    with decoding(), _content(source) as content:
        head = content[:4]
        if head.startswith(b"\xff\xd8\xff"):
            _check_segments(content)
        elif head in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            _check_tags(content)
        elif head == b"GIF8":
            _check_comments(content)
    return open_image(source)


def read_guarded(image: Image.Image) -> Image.Image:
    """Return the RGB image of an opened file of a stranger; `image` may be changed, which saves copies."""
    with decoding():
        image.load()  # a PNG may hold its EXIF data behind the pixels
    _check_tags((image.info.get("exif") or b"").removeprefix(b"Exif\0\0"))
    if len(image.info.get("Raw profile type exif") or "") > _TAG_SLACK // 8:  # hexadecimal, as ImageMagick writes it
        raise ImageError("Refused: its EXIF data is too long.")
    return read_image(image, in_place=True)


@contextmanager
def _content(source: str | os.PathLike[str] | bytes) -> Iterator[Content]:
    """Yield the bytes of a file, which take no memory."""
    if isinstance(source, bytes):
        yield source
    elif not Path(source).stat().st_size:
        yield b""
    else:
        with open(source, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield content


def _check_segments(content: Content) -> None:
    """Count scans and segments of a JPEG, up to its end marker: phones keep films behind it."""
    place, segments, scans = 2, 0, 0
    while segments <= _MAX_SEGMENTS and (marker := _MARKER.search(content, place)) and marker[1] != b"\xd9":
        segments += 1
        scans += marker[1] == b"\xda"
        length = int.from_bytes(content[marker.end() : marker.end() + 2], "big")
        place = marker.end() + max(length, 2)
    for count, limit, kind in ((scans, _MAX_SCANS, "scans"), (segments, _MAX_SEGMENTS, "segments")):
        if count > limit:
            raise ImageError(
                f"Refused: this JPEG has {count} {kind} (limit {limit}), which can take minutes to decode."
            )


def _check_tags(content: Content) -> None:
    """Refuse TIFF and EXIF data whose tags share bytes, so that they take much more memory than the file."""
    size = len(content)
    if size < 16:
        return
    order, is_big = ("<" if content[:2] == b"II" else ">"), content[2:4] in (b"+\0", b"\0+")
    waiting = [*struct.unpack_from(order + ("Q" if is_big else "L"), content, 8 if is_big else 4)]
    seen, held = set(), 0
    while waiting:
        place = waiting.pop()
        if place in seen or place >= size:
            continue
        seen.add(place)
        for tag, length, value in _tags(content, place, order, is_big):
            if length > (8 if is_big else 4) and value + length <= size:
                held += length
            elif tag in _TAG_FOLDERS:
                waiting.append(value)
    if held > _TAG_SHARE * size + _TAG_SLACK:
        raise ImageError(f"Refused: its tags take {held / 1e6:.0f} MB of memory in {size / 1e3:.0f} kB.")


def _tags(content: Content, place: int, order: str, is_big: bool) -> Iterator[tuple[int, int, int]]:
    """Yield tag, length of its data in bytes, and its value or the place of its data, of the directory at `place`."""
    count, entry = (struct.Struct(order + form) for form in (("Q", "HHQQ") if is_big else ("H", "HHLL")))
    start = place + count.size
    if start > len(content):
        return
    number = min(count.unpack_from(content, place)[0], 65536, (len(content) - start) // entry.size)
    for tag, kind, length, value in entry.iter_unpack(content[start : start + number * entry.size]):
        yield tag, length * _TAG_SIZES.get(kind, 0), value


def _check_comments(content: Content) -> None:
    """Refuse a GIF whose comments, up to its second image, are longer than `_MAX_COMMENT`."""
    place, images, comments = 13 + _palette_size(content[10:11]), 0, 0
    while (kind := content[place : place + 1]) not in (b"", b";"):
        place += 1
        if kind not in (b"!", b","):
            continue
        is_comment = kind == b"!" and content[place : place + 1] == b"\xfe"
        if kind == b",":
            images += 1
            if images == 2:
                return
            place += 9 + _palette_size(content[place + 8 : place + 9])
        place += 1
        while place < len(content) and content[place]:
            comments += content[place] * is_comment
            place += 1 + content[place]
        place += 1
        if comments > _MAX_COMMENT:
            raise ImageError("Refused: this GIF has a comment of more than a megabyte.")


def _palette_size(flags: bytes) -> int:
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 128 else 0
