"""Images as phones and other systems write them: HEIC, several images in a file, clutter beside them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from strange_files import png_of

from aimonk_hf.audit.checks import audit
from aimonk_hf.console import warn_once
from aimonk_hf.data.dataset import AttributeDataset
from aimonk_hf.data.images import check_image, open_image, read_image
from aimonk_hf.data.labels import read_labels
from aimonk_hf.errors import ImageError
from aimonk_hf.modeling.predict_files import ImageFiles


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
    dataset = AttributeDataset(read_labels(tmp_path / "labels.csv"), tmp_path)
    assert audit(dataset).findings["files"]["unlisted"] == []
