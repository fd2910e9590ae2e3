import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from strange_files import png_of
from strange_files import saved as image_bytes

from aimonk_hf.console import warn_once
from aimonk_hf.data.images import check_image, read_image
from aimonk_hf.errors import ImageError


def saved(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "PA", "CMYK", "palette with transparency"])
def test_every_mode_becomes_what_the_transformers_pipeline_makes_of_it(
    tmp_path: Path, picture: Image.Image, mode: str
) -> None:
    from transformers.image_utils import load_image

    if mode == "palette with transparency":
        path = saved(picture.convert("P"), tmp_path / "a.png", transparency=3)
    elif mode == "CMYK":
        path = saved(picture.convert(mode), tmp_path / "a.jpg")
    elif mode == "PA":
        path = saved(picture.convert("RGBA").quantize(16), tmp_path / "a.png")
    else:
        image = picture.convert(mode)
        if mode in ("RGBA", "LA"):
            image.putalpha(Image.linear_gradient("L").resize(picture.size))
        path = saved(image, tmp_path / "a.png")
    ours = read_image(path)
    assert ours.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(load_image(str(path))))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, picture: Image.Image, orientation: int) -> None:
    from transformers.image_utils import load_image

    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(picture, tmp_path / "a.png", exif=exif)
    ours = read_image(path)
    assert ours.size == (picture.size if orientation < 5 else picture.size[::-1])
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(load_image(str(path))))


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    grey = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    for name in ("a.png", "a.tif"):
        path = saved(Image.fromarray(grey), tmp_path / name)
        assert np.asarray(read_image(path))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    path = saved(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(path).getpixel((4, 4)) == (255, 0, 0)


def test_paths_bytes_arrays_and_images_give_the_same_pixels(tmp_path: Path, picture: Image.Image) -> None:
    path = saved(picture, tmp_path / "a.png")
    for source in (path, str(path), path.read_bytes(), np.asarray(picture), picture):
        np.testing.assert_array_equal(np.asarray(read_image(source)), np.asarray(picture))
    with pytest.raises(ImageError, match=r"\[H, W, 3\] uint8, found \[3, 8, 8\] float64"):
        read_image(np.zeros((3, 8, 8)))


@pytest.mark.filterwarnings("ignore:Image size")
def test_an_image_too_large_for_us_and_not_for_pillow_is_refused(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(png_of(10_000, 10_000))
    with pytest.raises(ImageError, match="too many pixels: 10000 x 10000"):
        read_image(tmp_path / "large.png")
    assert "too many pixels: 10000 x 10000" in (check_image(tmp_path / "large.png") or "")


def test_missing_files_folders_and_pipes_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, reason in (("no.jpg", "no such file"), ("", "not a file"), ("pipe.jpg", "not a file")):
        with pytest.raises(ImageError, match=reason):
            read_image(tmp_path / name)


def test_lossy_conversions_are_said_once(picture: Image.Image, caplog: pytest.LogCaptureFixture) -> None:
    warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, "aimonk_hf"):
        for _ in range(3):
            read_image(picture.convert("RGBA"))
            read_image(picture.convert("CMYK"))
    assert [record.message.split(":")[0] for record in caplog.records] == ["images with transparency", "CMYK images"]


WEBP_KINDS = {  # lossy, lossless, and two with a header of their own (VP8X)
    "VP8 ": {"quality": 80},
    "VP8L": {"lossless": True},
    "VP8X": {"quality": 80, "exif": Image.Exif().tobytes() + b"\0" * 4},
    "animated": {"save_all": True, "append_images": [Image.new("RGB", (40, 24))]},
}


@pytest.mark.parametrize("kind", WEBP_KINDS)
def test_webp_of_every_kind_is_read(picture: Image.Image, kind: str) -> None:
    data = image_bytes(picture.crop((0, 0, 40, 24)), "WEBP", **WEBP_KINDS[kind])
    assert data[12:16] == kind.replace("animated", "VP8X").encode()
    assert read_image(data).size == (40, 24)


@pytest.mark.parametrize(
    ("kind", "at", "sizes", "reason"),
    [
        ("VP8 ", 26, b"\xff\x3f\xff\x3f", "too many pixels: 16383 x 16383"),
        ("VP8L", 21, b"\xff\xff\xff\x0f", "too many pixels: 16384 x 16384"),
        ("VP8X", 24, b"\x1d\x00\x00\xd7\xff\x3f", "too many pixels: 30 x 4194264"),
        ("animated", 24, b"\x1a\x00\x10\x17\x00\x00", "too long and thin: 1048603 x 24"),
    ],
)
def test_webp_of_an_impossible_size_is_never_given_to_libwebp(
    picture: Image.Image, monkeypatch: pytest.MonkeyPatch, kind: str, at: int, sizes: bytes, reason: str
) -> None:
    data = bytearray(image_bytes(picture.crop((0, 0, 40, 24)), "WEBP", **WEBP_KINDS[kind]))
    data[at : at + len(sizes)] = sizes
    monkeypatch.setattr(Image, "open", lambda *arguments, **named: pytest.fail("libwebp has allocated the pixels"))
    with pytest.raises(ImageError, match=reason):
        read_image(bytes(data))
