"""The example on a small archive in the form of the public one."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat
from train_support import small

from aimonk_hf import AttributeDataset, read_labels, train
from aimonk_hf.data.dataset import duplicate_groups

SCRIPT = Path(__file__).parents[1] / "examples" / "clothing_attributes.py"
N_IMAGES = 40
# pairs of consecutive frames, and one at another size and quality elsewhere
FRAMES = {8: 7, 9: 7, 31: 20}


def scene(seed: int) -> Image.Image:
    """A picture of soft patches."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((120, 160), Image.Resampling.BICUBIC)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Images 1..40, some nearly equal, and labels as column vectors of 1, 2 and NaN."""
    folder = tmp_path / "archive"
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    rng = np.random.default_rng(0)
    truth = {"gender": [], "collar": [], "category": []}
    for number in range(1, N_IMAGES + 1):
        scene(FRAMES.get(number, number)).resize((120 + number, 160)).save(
            folder / "images" / f"{number:06d}.jpg", quality=95 - number
        )
        truth["gender"].append(rng.integers(1, 3))
        truth["collar"].append(np.nan if number % 10 == 0 else 1 + number % 2)
        truth["category"].append(rng.integers(1, 8))
    for name, values in truth.items():
        savemat(folder / "labels" / f"{name}_GT.mat", {"GT": np.array(values, dtype=float)[:, None]})
    return folder


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_the_archive_becomes_a_data_folder(archive: Path, tmp_path: Path):
    done = run(archive, tmp_path / "data", "--held-out", "0.25")
    assert done.returncode == 0, done.stderr
    train, report = (read_labels(tmp_path / "data" / name) for name in ("labels.csv", "report.csv"))
    assert (
        done.stdout
        == f"written:  {tmp_path / 'data'}: labels.csv with {len(train)} images, report.csv with {len(report)} images\n"
    )
    assert train.attributes == report.attributes == ["collar", "female"]
    assert sorted(train.images + report.images) == [f"{number:06d}.jpg" for number in range(1, N_IMAGES + 1)]
    assert 8 <= len(report) <= 12
    rows = dict(zip(train.images + report.images, np.concatenate([train.values, report.values]), strict=True))
    assert np.isnan(rows["000010.jpg"][0])
    assert [rows[f"{number:06d}.jpg"][0] for number in (1, 2, 3)] == [1, 0, 1]
    for frame, original in FRAMES.items():
        assert (f"{frame:06d}.jpg" in train.images) == (f"{original:06d}.jpg" in train.images)
    assert not AttributeDataset.from_folder(tmp_path / "data").find_problems()


def test_values_become_columns_that_train_as_auxiliary_ones(archive: Path, tmp_path: Path):
    truth = loadmat(archive / "labels" / "category_GT.mat")["GT"].ravel()
    truth[4] = np.nan
    savemat(archive / "labels" / "category_GT.mat", {"GT": truth[:, None]})
    done = run(archive, tmp_path / "data", "--one-hot")
    assert done.returncode == 0, done.stderr
    parts = [read_labels(tmp_path / "data" / name) for name in ("labels.csv", "report.csv")]
    columns = [f"category_{value:.0f}" for value in np.unique(truth[~np.isnan(truth)])]
    assert parts[0].attributes == parts[1].attributes == [*columns, "collar", "female"]
    values = np.concatenate([part.values for part in parts])[:, : len(columns)]
    for image, row in zip(parts[0].images + parts[1].images, values, strict=True):
        if image == "000005.jpg":
            assert np.isnan(row).all()
        else:
            assert columns[int(row.argmax())] == f"category_{truth[int(image[:6]) - 1]:.0f}"
            assert row.sum() == 1
    model = train(small(tmp_path / "data", tmp_path / "run", auxiliary=columns))
    assert model.config.attributes == ["collar", "female"]


@pytest.mark.parametrize("seed", range(3))
def test_near_duplicates_share_a_group_and_others_do_not(archive: Path, seed: int, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    from clothing_attributes import near_duplicate_groups

    images = sorted((archive / "images").iterdir())
    np.random.default_rng(seed).shuffle(images)
    groups = {int(path.stem): group for path, group in zip(images, near_duplicate_groups(images), strict=True)}
    assert groups[7] == groups[8] == groups[9]
    assert groups[20] == groups[31]
    assert len(set(groups.values())) == N_IMAGES - len(FRAMES)
    assert len(set(duplicate_groups(images))) == N_IMAGES  # no two files are equal


def test_other_folders_and_values_are_named(archive: Path, tmp_path: Path):
    data = tmp_path / "data"
    cases = {
        "There is no": tmp_path,
        "labels, but there are 40 images: unpack the whole archive": {"GT": np.ones(39)},
        "has other values than 1, 2 and NaN": {"GT": np.full(40, 3.0)},
        "holds no vector GT": {"other": np.ones(40)},
    }
    for message, case in cases.items():
        if isinstance(case, dict):
            savemat(archive / "labels" / "collar_GT.mat", case)
        done = run(archive if isinstance(case, dict) else case, data)
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
        assert not data.exists()
