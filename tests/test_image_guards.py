"""Uploads that are small on the disk but cost minutes or gigabytes are refused before they are decoded."""

import struct

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from strange_files import saved

from aimonk_hf.app.image_guards import open_guarded, read_guarded
from aimonk_hf.errors import ImageError


def overlapping_tags(n_tags: int = 600, n_bytes: int = 20_000) -> bytes:
    """Return a good TIFF of 8 x 8 pixels with tags that all point to the same bytes; readers copy them for each."""
    tags = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 8, 279: 64}
    entries = [struct.pack("<HHLL", tag, 4, 1, value) for tag, value in tags.items()]
    entries += [struct.pack("<HHLL", 1000 + number, 1, n_bytes, 72) for number in range(n_tags)]
    head = b"II*\0" + struct.pack("<L", 72 + n_bytes) + bytes(64) + b"A" * n_bytes
    return head + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)


def with_scans(picture: Image.Image, n_scans: int, fill: bytes = b"") -> bytes:
    """Return a progressive JPEG whose last scan is repeated."""
    content = saved(picture, "JPEG", progressive=True)
    scan = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + (scan + fill) * n_scans + content[-2:]


def with_comment(picture: Image.Image, n_blocks: int) -> bytes:
    """Return a GIF with a comment of so many blocks of 255 bytes behind its palette."""
    content = saved(picture, "GIF")
    end = 13 + 3 * 2 ** ((content[10] & 7) + 1)
    return content[:end] + b"!\xfe" + (b"\xff" + b"a" * 255) * n_blocks + b"\0" + content[end:]


def read(content: bytes) -> Image.Image:
    with open_guarded(content) as image:
        return read_guarded(image)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}])
def test_a_film_behind_the_end_of_a_jpeg_is_no_part_of_it(picture: Image.Image, options: dict) -> None:
    content = saved(picture, "JPEG", quality=95, **options)
    for film in (b"ftypmp42" + b"\xff\xda" * 200_000, np.random.default_rng(0).bytes(8_000_000)):
        np.testing.assert_array_equal(np.asarray(read(content + film)), np.asarray(read(content)))


def test_scans_in_a_preview_are_not_those_of_the_jpeg(picture: Image.Image) -> None:
    assert read(saved(picture, "JPEG", comment=b"\xff\xda" * 150)).size == picture.size


@pytest.mark.parametrize("fill", [b"", b"\xff" * 70_000, bytes(70_000), b"\xff\xd0" * 9])
def test_scans_are_counted_wherever_they_stand(picture: Image.Image, fill: bytes) -> None:
    with pytest.raises(
        ImageError, match=r"Refused: this JPEG has 1[0-9][0-9] scans \(limit 100\), which can take minutes"
    ):
        read(with_scans(picture, 120, fill))
    content = saved(picture, "JPEG")
    with pytest.raises(ImageError, match=r"Refused: this JPEG has 10001 segments \(limit 10000\)"):
        read(content[:2] + b"\xff\xfe\x00\x02" * 10_001 + content[2:])


def test_long_comments_are_refused(picture: Image.Image) -> None:
    assert read(with_comment(picture, 4000)).size == picture.size
    with pytest.raises(ImageError, match="Refused: this GIF has a comment of more than a megabyte"):
        read(with_comment(picture, 4500))


@pytest.mark.parametrize("format", ["TIFF", "PNG", "WEBP", "AVIF", "JPEG"])
def test_tags_that_share_their_bytes_are_refused_wherever_they_stand(picture: Image.Image, format: str) -> None:
    large = overlapping_tags(2000, 30_000) if format == "JPEG" else overlapping_tags()
    content = large if format == "TIFF" else saved(picture, format, exif=b"Exif\0\0" + large)
    with pytest.raises(ImageError, match="Refused: its tags take"):
        read(content)
    small = overlapping_tags(5)
    assert read(small if format == "TIFF" else saved(picture, format, exif=small)).size in ((8, 8), picture.size)


def test_long_profiles_of_imagemagick_are_refused(picture: Image.Image) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", "\nexif\n 9\n" + "45" * 100_000, zip=True)
    with pytest.raises(ImageError, match="Refused: its EXIF data is too long"):
        read(saved(picture, "PNG", pnginfo=text))
