"""Images that belong together stay on one side of splits, folds, cross-fitting and resampling."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from train_support import N_DRAWN, N_TWINS, column, in_several, small, with_labels, write_twins

from aimonk_hf import AimonkModel, AttributeDataset, evaluate, train
from aimonk_hf.cli.main import main
from aimonk_hf.data import duplicates
from aimonk_hf.data.dataset import duplicate_groups
from aimonk_hf.data.duplicates import image_groups
from aimonk_hf.data.splits import split_rows
from aimonk_hf.evaluation import report, tuning
from aimonk_hf.evaluation.report import score_images
from aimonk_hf.evaluation.resampling import bootstrap_intervals


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_twins(tmp_path_factory.mktemp("data") / "twins")


def test_twins_and_images_of_one_value_are_one_group_also_through_others(data: Path) -> None:
    dataset = with_labels(data, groups=["a", "", "b", "a"] + [""] * (N_DRAWN - 4 + N_TWINS + 1))
    drawn = list(range(N_DRAWN))
    assert image_groups(dataset, near=False).tolist() == [*drawn[:3], 0, *drawn[4:], *range(24, 36), 23]
    expected = [*drawn[:3], 0, *drawn[4:], 0, 1, 2, 0, *drawn[4:N_TWINS], 23]
    assert image_groups(dataset).tolist() == expected  # twin 3 is with image 0 through image 3
    dataset.groups = image_groups(dataset)
    assert image_groups(dataset.select([0, 1, 24]), near=False).tolist() == [0, 1, 0]


@pytest.mark.parametrize("near", ["group", "ignore"])
def test_twins_are_on_one_side_of_split_and_folds_unless_they_are_to_be_ignored(
    near: str, data: Path, tmp_path: Path
) -> None:
    train(small(data, tmp_path / "split", val_split=0.4, near_duplicates=near))
    train(small(data, tmp_path / "folds", folds=2, near_duplicates=near))
    parts = column(tmp_path / "split" / "split.csv", "part")
    apart = in_several(parts), in_several(column(tmp_path / "folds" / "folds.csv", "fold"))
    assert [bool(names) for names in apart] == [near == "ignore"] * 2
    if near == "ignore":  # exactly the division of versions that knew copies only
        dataset = AttributeDataset.from_folder(data)
        groups, values = duplicate_groups(dataset.paths), dataset.labels.values
        before = split_rows(values, [0.6, 0.4], "iterative", 42, groups)
        assert list(parts.values()) == [("train", "validation")[part] for part in before]
        folds = split_rows(values, [1 / 2] * 2, "iterative", 42, groups)
        assert list(column(tmp_path / "folds" / "folds.csv", "fold").values()) == [str(1 + fold) for fold in folds]


def test_thumbnails_are_kept_in_the_image_cache(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (data / "images").iterdir():
        os.utime(path, (1e9, 1e9))  # the cache keeps no file that is seconds old
    first = train(small(data, tmp_path / "1", image_cache=str(tmp_path / "cache")))
    monkeypatch.setattr(duplicates, "thumbnail", lambda path: pytest.fail(f"{path} was decoded again"))
    train(small(data, tmp_path / "2", image_cache=str(tmp_path / "cache")))
    assert (tmp_path / "1" / "split.csv").read_bytes() == (tmp_path / "2" / "split.csv").read_bytes()
    assert first.metrics is not None


def test_groups_are_resampled_and_cross_fitted_together(
    data: Path, tiny_model: AimonkModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = with_labels(data, groups=[str(number // 2) for number in range(N_DRAWN)] + [""] * (N_TWINS + 1))
    groups = [2 * (row // 2) for row in range(N_DRAWN)]
    groups += [*groups[:N_TWINS], groups[-1]]
    scores, _ = score_images(tiny_model, dataset.paths)
    scores = scores.round(9)
    decisions = scores >= np.array(tiny_model.config.threshold_values)
    expected, _ = bootstrap_intervals(dataset.labels.values, scores, decisions, groups=np.array(groups))
    found = evaluate(tiny_model, dataset)["per_attribute"]
    for ends, name in zip(expected["auroc"], dataset.attributes, strict=True):
        given = found[name]["auroc_ci95"]
        assert np.isnan(ends).any() if given is None else given == pytest.approx(ends.tolist())
    fitted: list[list[int]] = []
    real = tuning.cross_fit

    def cross_fit(*given: Any, groups: Any, **options: Any) -> Any:
        fitted.append(groups.tolist())
        return real(*given, groups=groups, **options)

    monkeypatch.setattr(tuning, "cross_fit", cross_fit)
    tiny_model.save_pretrained(tmp_path / "model")
    model = AimonkModel.from_pretrained(tmp_path / "model")
    tuning.choose_and_judge(model, dataset, dataset.select([]), calibration=True, objective="f1")
    assert fitted == [groups]


@pytest.mark.parametrize("near", ["group", "ignore"])
def test_evaluate_and_tune_ignore_twins_only_when_told(
    near: str, data: Path, tiny_model: AimonkModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model.save_pretrained(tmp_path / "model")
    used: list[int] = []
    real = report.bootstrap_intervals

    def resample(*given: Any, groups: Any, **options: Any) -> Any:
        used.append(len(np.unique(groups)))
        return real(*given, groups=groups, **options)

    monkeypatch.setattr(report, "bootstrap_intervals", resample)
    flags = ["--model", str(tmp_path / "model"), "--data-dir", str(data), "--near-duplicates", near]
    assert main(["evaluate", *flags]) == 0
    assert used == [N_DRAWN + (near == "ignore") * N_TWINS]
    assert main(["tune", *flags, "--output", str(tmp_path / "tuned")]) == 0


def test_a_group_of_half_of_the_data_is_named(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    train(small("", tmp_path / "out", val_split=0.4), dataset=with_labels(data, groups=["shop"] * 20 + [""] * 17))
    told = "warning: 32 of 37 images are one group ('shop'), such as garment_0000.png and garment_0001.png"
    assert told in capsys.readouterr().out
    train(small(data, tmp_path / "plain"))
    assert "are one group" not in capsys.readouterr().out
