"""`--folds K`: its files, scores by models that have not seen the image, and resuming, which keeps finished folds."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from train_support import column, same, small

from aimonk_hf import AimonkModel, AttributeDataset, train
from aimonk_hf.audit.suspects import read_scores
from aimonk_hf.cli.main import main
from aimonk_hf.data.labels import Labels, write_labels
from aimonk_hf.data.sample_data import write_sample_data
from aimonk_hf.evaluation.report import score_images


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 drawings, of which one is listed twice; the attributes have names of other columns."""
    folder = write_sample_data(tmp_path_factory.mktemp("data") / "sample", n_images=24, seed=3)
    images, labels = folder / "images", folder / "labels.csv"
    (images / "garment_0001.png").write_bytes((images / "garment_0000.png").read_bytes())
    labels.write_text("image,image,Error,score:image,a\n" + labels.read_text().partition("\n")[2])
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AimonkModel]:
    out = tmp_path_factory.mktemp("run") / "out"
    return out, train(small(data, out, folds=2))


def test_scores_come_from_the_model_that_left_the_image_out(run: tuple[Path, AimonkModel], data: Path) -> None:
    out, dataset = run[0], AttributeDataset.from_folder(data)
    fold_of = column(out / "folds.csv", "fold")
    assert sorted(set(fold_of.values())) == ["1", "2"]
    assert max(np.bincount([int(fold) for fold in fold_of.values()])) <= 14
    assert fold_of["garment_0000.png"] == fold_of["garment_0001.png"]
    written = read_scores(out / "oof.csv", dataset.labels.images, dataset.attributes)
    for fold in "12":
        rows = [row for row, image in enumerate(dataset.labels.images) if fold_of[image] == fold]
        trained_on = set(column(out / "folds" / f"fold-{fold}" / "split.csv", "part"))
        assert not trained_on & {dataset.labels.images[row] for row in rows}
        model = AimonkModel.from_pretrained(out / "folds" / f"fold-{fold}")
        np.testing.assert_allclose(written[rows], score_images(model, dataset.select(rows).paths)[0], atol=1e-7)


def test_out_of_fold_scores_keep_their_attribute_whatever_it_is_called(
    run: tuple[Path, AimonkModel], data: Path
) -> None:
    with open(run[0] / "oof.csv", newline="") as file:
        header, *written = csv.reader(file)
    assert header == ["image", "score:image", "score:Error", "score:score:image", "a"]
    images = AttributeDataset.from_folder(data).labels.images
    assert [row[0] for row in written] == images
    scores = read_scores(run[0] / "oof.csv", images, ["image", "Error", "score:image", "a"])
    np.testing.assert_array_equal(scores, np.array([row[1:] for row in written], dtype=float))
    assert main(["audit", "--data-dir", str(data), "--scores", str(run[0] / "oof.csv")]) == 0


def test_the_final_model_trains_on_all_images_and_is_judged_out_of_fold(run: tuple[Path, AimonkModel]) -> None:
    out, model = run
    assert set(column(out / "split.csv", "part").values()) == {"train"}
    report = json.loads((out / "metrics.json").read_text())
    assert report["n_images"] == 24
    assert report["measured_on"]["images"] == "out-of-fold scores of 2 folds"
    assert report["verdict"]
    assert all(row["p_value"] is not None for row in report["per_attribute"].values() if row["auroc"] is not None)
    figures = report["folds"]["macro"]["average_precision"]
    assert len(figures["values"]) == 2
    assert figures["mean"] == pytest.approx(np.mean(figures["values"]))
    assert figures["sd"] == pytest.approx(np.std(figures["values"], ddof=1))
    thresholds = {name: row["threshold"] for name, row in report["per_attribute"].items()}
    assert thresholds == pytest.approx(model.config.thresholds)
    assert (out / "sample_predictions.png").is_file()
    assert "out-of-fold" in (out / "README.md").read_text()


def test_resuming_keeps_finished_folds_and_ends_the_same_and_overwriting_removes_them(
    run: tuple[Path, AimonkModel], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, saved, real = tmp_path / "out", [], AimonkModel.save_pretrained

    def save(model: AimonkModel, folder: Path, *given: Any, **named: Any) -> None:
        saved.append(Path(folder).name)
        if len(saved) == 2:
            raise KeyboardInterrupt
        real(model, folder, *given, **named)

    monkeypatch.setattr(AimonkModel, "save_pretrained", save)
    with pytest.raises(KeyboardInterrupt):
        train(small(data, out, folds=2))
    resumed = train(small(data, out, folds=2, resume=True))
    assert saved == ["fold-1", "fold-2", "fold-2", "out"]
    assert (out / "oof.csv").read_bytes() == (run[0] / "oof.csv").read_bytes()
    assert same(resumed, run[1])
    train(small(data, out, overwrite=True))
    assert not (out / "folds").exists()
    assert not (out / "oof.csv").exists()


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_folds_without_a_defined_figure_have_no_spread_and_warn_of_nothing(tmp_path: Path) -> None:
    data = write_sample_data(tmp_path / "data", n_images=4)
    model = train(small(data, tmp_path / "out", folds=2, architecture="test_vit"))
    assert model.metrics is not None
    assert model.metrics["folds"]["macro"]["auroc"]["sd"] is None


def test_a_rare_attribute_is_named_and_an_epoch_is_chosen_on_images_from_inside(
    few: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    dataset, out = AttributeDataset.from_folder(few), tmp_path / "out"
    values = dataset.labels.values.copy()
    values[:, 3] = np.arange(len(values)) == 0
    write_labels(tmp_path / "labels.csv", Labels(dataset.labels.images, dataset.attributes, values))
    files = {"labels": str(tmp_path / "labels.csv"), "images_dir": str(few / "images")}
    model = train(small(few, out, folds=2, metric_for_best_model="macro_auroc", val_split=0.25, **files))
    assert "belt has 1 label(s) of one kind, fewer than the 2 folds" in capsys.readouterr().out
    assert model.metrics is not None
    assert model.metrics["folds"]["macro"]["auroc"]["mean"] is not None  # of the attributes where it is defined
    for fold in "12":
        parts = column(out / "folds" / f"fold-{fold}" / "split.csv", "part")
        assert 2 <= list(parts.values()).count("validation") <= 5
    assert 5 <= list(column(out / "split.csv", "part").values()).count("validation") <= 7


@pytest.mark.parametrize("changes", [{"folds": 2}, {"val_split": 0.6}], ids=["folds", "validation"])
def test_the_calibration_error_is_that_of_images_that_did_not_fit_the_calibration(
    changes: dict[str, Any], sample: Path, tmp_path: Path
) -> None:
    """The run starts from a model without batch norm and learns nothing; its scores rank well, but are too high."""
    torch.manual_seed(0)
    dataset = AttributeDataset.from_folder(sample)
    start = AimonkModel.from_timm("test_convnext", dataset.attributes, pretrained=False, image_size=32)
    with torch.no_grad():
        start.timm_model.get_classifier().weight.normal_(0, 0.5)
        start.timm_model.get_classifier().bias.fill_(2.0)
    start.save_pretrained(tmp_path / "start")
    scores, _ = score_images(start.eval(), dataset.paths)
    flips = np.random.default_rng(0).random(scores.shape) < 0.2
    values = ((scores > np.median(scores, axis=0)) ^ flips).astype(np.float32)
    write_labels(tmp_path / "labels.csv", Labels(dataset.labels.images, dataset.attributes, values))
    files = {"labels": str(tmp_path / "labels.csv"), "images_dir": str(sample / "images")}
    kept = {"architecture": f"local-dir:{tmp_path / 'start'}", "lr": 1e-12, "calibrate": True}
    model = train(small(sample, tmp_path / "out", **kept, **files, **changes))
    assert model.metrics is not None
    rows = model.metrics["per_attribute"].values()
    assert any(row["calibration"]["left_alone"] is None for row in rows)
    for row in rows:
        assert row["calibration_error"] == pytest.approx(row["calibration"]["ece_after"])
    assert model.metrics["macro"]["calibration_error"] == pytest.approx(model.metrics["calibration"]["ece_after"])
