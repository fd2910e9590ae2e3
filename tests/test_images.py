"""Images of every kind as upright RGB, those that phones and other systems write among them."""

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from strange_files import png_of
from strange_files import saved as image_bytes

from aimonk_hf.audit.checks import audit
from aimonk_hf.console import warn_once
from aimonk_hf.data.dataset import AttributeDataset
from aimonk_hf.data.images import check_image, open_image, read_image
from aimonk_hf.data.labels import read_labels
from aimonk_hf.errors import ImageError
from aimonk_hf.modeling.predict_files import ImageFiles


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


# As phones and other systems write them: HEIC, several images in a file, clutter beside them


@pytest.fixture
def photo() -> Image.Image:
    """A smooth image without a symmetry."""
    rows, columns = np.mgrid[0:90, 0:120]
    return Image.fromarray(np.stack([rows * 2, columns * 2, np.full((90, 120), 99)], axis=-1).astype(np.uint8))


def distance(image: Image.Image, other: Image.Image) -> float:
    """Return the mean difference of two images of one size."""
    assert image.size == other.size
    return float(np.abs(np.asarray(image, dtype=int) - np.asarray(other, dtype=int)).mean())


@pytest.mark.parametrize("cut", [0, 40, 10_000], ids=["whole", "shortened", "without_the_second"])
def test_a_photograph_with_further_images_is_not_animated(
    tmp_path: Path, photo: Image.Image, cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    noise = Image.effect_noise((300, 200), 90).convert("RGB")
    photo.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[noise])
    content = (tmp_path / "a.jpg").read_bytes()
    assert len(content) > 2 * cut
    (tmp_path / "a.jpg").write_bytes(content[: len(content) - cut])
    warn_once.cache_clear()
    with Image.open(tmp_path / "a.jpg") as opened:
        assert opened.format == "MPO"
    assert check_image(tmp_path / "a.jpg") is None
    assert distance(read_image(tmp_path / "a.jpg"), photo) < 10
    assert caplog.text == ""


def test_a_motion_photo_is_a_photograph(tmp_path: Path, photo: Image.Image) -> None:
    photo.save(tmp_path / "a.jpg")
    with open(tmp_path / "a.jpg", "ab") as file:
        file.write(b"\0\0\0\x18ftypmp42" + bytes(5000))
    assert check_image(tmp_path / "a.jpg") is None


@pytest.fixture
def heif() -> Any:
    """The library that reads HEIC; its opener is registered when an image is opened."""
    pillow_heif = pytest.importorskip("pillow_heif")
    open_image(png_of(4, 4)).close()
    return pillow_heif


def test_heic_is_read_upright(heif: Any, tmp_path: Path, photo: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it to the right
    photo.save(tmp_path / "phone.heic", quality=95, exif=exif.tobytes())
    assert check_image(tmp_path / "phone.heic") is None
    upright = photo.transpose(Image.Transpose.ROTATE_270)
    assert distance(read_image(tmp_path / "phone.heic"), upright) < 10
    assert distance(read_image((tmp_path / "phone.heic").read_bytes()), upright) < 10


def test_a_burst_of_heic_is_its_main_image(
    heif: Any, tmp_path: Path, photo: Image.Image, caplog: pytest.LogCaptureFixture
) -> None:
    warn_once.cache_clear()
    other = photo.rotate(180)
    photo.save(tmp_path / "burst.heic", quality=95, save_all=True, append_images=[other], primary_index=1)
    assert distance(read_image(tmp_path / "burst.heic"), other) < 10
    assert caplog.text == ""


def test_a_damaged_heic_says_so(heif: Any, tmp_path: Path, photo: Image.Image) -> None:
    photo.save(tmp_path / "a.heic")
    content = (tmp_path / "a.heic").read_bytes()
    (tmp_path / "a.heic").write_bytes(content[: len(content) // 2])
    assert "the image is damaged" in (check_image(tmp_path / "a.heic") or "")


def test_heic_without_its_library_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    Image.init()
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    with pytest.raises(ImageError, match="HEIC is not supported: save it as JPEG, or pip install pillow-heif"):
        read_image(b"\0\0\0\x18ftypheic" + bytes(40))


def test_avif_is_read(tmp_path: Path, photo: Image.Image) -> None:
    photo.save(tmp_path / "a.avif", quality=95)
    assert distance(read_image(tmp_path / "a.avif"), photo) < 10


def test_clutter_of_other_systems_is_no_image(tmp_path: Path, photo: Image.Image) -> None:
    photo.save(tmp_path / "a.jpg")
    for name in ("._a.jpg", "Thumbs.db", ".DS_Store"):
        (tmp_path / name).write_bytes(b"not an image")
    assert list(ImageFiles([tmp_path])) == [tmp_path / "a.jpg"]
    (tmp_path / "labels.csv").write_text("image,a\na.jpg,1\n")
    assert audit(AttributeDataset(read_labels(tmp_path / "labels.csv"), tmp_path)).findings["files"]["unlisted"] == []
