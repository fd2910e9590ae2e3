import numpy as np
import pytest

from aimonk_hf import AttributeDataset, TrainConfig
from aimonk_hf.data.dataset import duplicate_groups
from aimonk_hf.data.labels import Labels
from aimonk_hf.data.splits import SPLIT_METHODS, split_rows
from aimonk_hf.errors import AimonkError
from aimonk_hf.training.parts import keep_parts

RNG = np.random.default_rng(0)


def skewed_labels(rows: int = 500) -> np.ndarray:
    labels = (RNG.random((rows, 4)) < [0.9, 0.5, 0.2, 0.04]).astype(np.float32)
    labels[RNG.random(labels.shape) < [0.02, 0.1, 0.3, 0.1]] = np.nan
    return labels


@pytest.mark.parametrize("method", SPLIT_METHODS)
def test_fractions_hold_and_the_seed_decides(method: str) -> None:
    labels = skewed_labels()
    parts = split_rows(labels, [0.8, 0.2], method, seed=1)
    assert abs((parts == 1).sum() - 100) <= 2
    np.testing.assert_array_equal(parts, split_rows(labels, [0.8, 0.2], method, seed=1))
    assert (parts != split_rows(labels, [0.8, 0.2], method, seed=2)).any()


def test_iterative_stratification_divides_every_value_and_na() -> None:
    labels = skewed_labels()
    parts = split_rows(labels, [0.8, 0.2], "iterative", seed=0)
    for value in (labels == 1, labels == 0, np.isnan(labels)):
        expected = 0.2 * value.sum(axis=0)
        assert (abs(value[parts == 1].sum(axis=0) - expected) <= 2).all()


def test_rarest_divides_the_rarest_attribute() -> None:
    labels = skewed_labels()
    parts = split_rows(labels, [0.8, 0.2], "rarest", seed=0)
    positives = labels[:, 3] == 1
    assert abs(positives[parts == 1].sum() - 0.2 * positives.sum()) <= 1


@pytest.mark.parametrize("method", SPLIT_METHODS)
def test_groups_stay_together(method: str) -> None:
    labels = skewed_labels(200)
    groups = RNG.integers(0, 60, 200)
    parts = split_rows(labels, [0.5, 0.3, 0.2], method, seed=0, groups=groups)
    for group in np.unique(groups):
        assert len(np.unique(parts[groups == group])) == 1
    assert set(parts) == {0, 1, 2}


def test_no_part_is_empty_and_too_few_images_are_refused() -> None:
    labels = np.float32([[1], [0], [np.nan]])
    for method in SPLIT_METHODS:
        assert set(split_rows(labels, [0.95, 0.05], method)) == {0, 1}
    with pytest.raises(AimonkError, match="1 different usable image"):
        split_rows(labels, [0.8, 0.2], groups=np.zeros(3, dtype=int))
    assert split_rows(labels, [1.0, 0.0]).tolist() == [0, 0, 0]


def test_byte_identical_files_form_groups(tmp_path) -> None:
    for name, content in (("a", b"one"), ("b", b"two"), ("c", b"one"), ("d", b"longer")):
        (tmp_path / name).write_bytes(content)
    assert duplicate_groups([tmp_path / name for name in "abcd"]).tolist() == [0, 1, 0, 3]


@pytest.mark.parametrize(("report_split", "n_report"), [(0.5, 25), (0.0, 0), (0.3, 0)])
def test_given_validation_images_report_by_the_share_that_is_asked_for_if_these_are_twenty(
    report_split: float, n_report: int
) -> None:
    given, labels = ["train"] * 30 + ["validation"] * 50, skewed_labels(80)
    dataset = AttributeDataset(Labels([f"{row}.png" for row in range(80)], list("abcd"), labels, parts=given), "none")
    dataset.groups = np.arange(80)
    parts = keep_parts(TrainConfig(report_split=report_split), dataset, [1.0], given)
    assert parts[:30].tolist() == [0] * 30
    assert set(parts[30:]) == {1, 2} if n_report else {1}
    assert (parts == 2).sum() == pytest.approx(n_report, abs=2)
