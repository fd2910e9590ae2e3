"""`--folds K`: its files, scores by models that have not seen the image, and resuming, which keeps finished folds."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aimonk_hf import AimonkModel, AttributeDataset, TrainConfig, train
from aimonk_hf.audit.suspects import read_scores
from aimonk_hf.cli.main import main
from aimonk_hf.data.labels import Labels, write_labels
from aimonk_hf.data.sample_data import write_sample_data
from aimonk_hf.evaluation.report import score_images


def settings(data: Path, out: Path, **changes: object) -> TrainConfig:
    values: dict[str, Any] = {"recipe": "demo", "epochs": 1, "folds": 3, "image_size": 32, "num_workers": 0}
    return TrainConfig(data_dir=str(data), output_dir=str(out), **(values | {"mixed_precision": "no"} | changes))


def column(path: Path, name: str) -> dict[str, str]:
    with open(path, newline="") as file:
        return {row["image"]: row[name] for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawings, of which one lies there twice."""
    folder = write_sample_data(tmp_path_factory.mktemp("data") / "sample", n_images=30, seed=3)
    images = folder / "images"
    (images / "garment_0001.png").write_bytes((images / "garment_0000.png").read_bytes())
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AimonkModel]:
    out = tmp_path_factory.mktemp("run") / "out"
    return out, train(settings(data, out))


def test_scores_come_from_the_model_that_left_the_image_out(run: tuple[Path, AimonkModel], data: Path) -> None:
    out, _ = run
    dataset = AttributeDataset.from_folder(data)
    fold_of = column(out / "folds.csv", "fold")
    assert sorted(set(fold_of.values())) == ["1", "2", "3"]
    assert max(np.bincount([int(fold) for fold in fold_of.values()])[1:]) <= 12
    assert fold_of["garment_0000.png"] == fold_of["garment_0001.png"]
    written = read_scores(out / "oof.csv", dataset.labels.images, dataset.attributes)
    for fold in "123":
        rows = [row for row, image in enumerate(dataset.labels.images) if fold_of[image] == fold]
        trained_on = set(column(out / "folds" / f"fold-{fold}" / "split.csv", "part"))
        assert not trained_on & {dataset.labels.images[row] for row in rows}
        scores, _ = score_images(
            AimonkModel.from_pretrained(out / "folds" / f"fold-{fold}"), dataset.select(rows).paths
        )
        np.testing.assert_allclose(written[rows], scores, atol=1e-7)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_folds_without_a_defined_figure_have_no_spread_and_warn_of_nothing(tmp_path: Path) -> None:
    few = write_sample_data(tmp_path / "few", n_images=4)
    model = train(settings(few, tmp_path / "out", folds=2, architecture="test_vit"))
    assert model.metrics is not None
    assert model.metrics["folds"]["macro"]["auroc"]["sd"] is None


def test_out_of_fold_scores_keep_their_attribute_whatever_it_is_called(data: Path, tmp_path: Path) -> None:
    rows = (data / "labels.csv").read_text().splitlines(keepends=True)
    labels = tmp_path / "labels.csv"
    labels.write_text("".join(["image,image,Error,score:image,a\n", *rows[1:]]))
    flags = ["--data-dir", str(data), "--labels", str(labels), "--images-dir", str(data / "images")]
    run = ["--recipe", "demo", "--folds", "2", "--epochs", "1", "--image-size", "32", "--num-workers", "0"]
    assert main(["train", *flags, *run, "--output-dir", str(tmp_path / "out")]) == 0
    with open(tmp_path / "out" / "oof.csv", newline="") as file:
        header, *written = csv.reader(file)
    assert header == ["image", "score:image", "score:Error", "score:score:image", "a"]
    dataset = AttributeDataset.from_folder(data, labels, data / "images")
    scores = read_scores(tmp_path / "out" / "oof.csv", dataset.labels.images, dataset.attributes)
    assert [row[0] for row in written] == dataset.labels.images
    np.testing.assert_array_equal(scores, np.array([row[1:] for row in written], dtype=float))
    assert main(["audit", *flags, "--scores", str(tmp_path / "out" / "oof.csv")]) == 0


def test_the_final_model_trains_on_all_images_and_is_judged_out_of_fold(run: tuple[Path, AimonkModel]) -> None:
    out, model = run
    assert set(column(out / "split.csv", "part").values()) == {"train"}
    report = json.loads((out / "metrics.json").read_text())
    assert report["n_images"] == 30
    assert report["measured_on"]["images"] == "out-of-fold scores of 3 folds"
    assert report["verdict"]
    assert all(row["p_value"] is not None for row in report["per_attribute"].values() if row["auroc"] is not None)
    figures = report["folds"]["macro"]["average_precision"]
    assert len(figures["values"]) == 3
    assert figures["mean"] == pytest.approx(np.mean(figures["values"]))
    assert figures["sd"] == pytest.approx(np.std(figures["values"], ddof=1))
    assert {name: row["threshold"] for name, row in report["per_attribute"].items()} == pytest.approx(
        model.config.thresholds
    )
    assert (out / "sample_predictions.png").is_file()
    assert "out-of-fold" in (out / "README.md").read_text()


@pytest.mark.parametrize("changes", [{"folds": 2}, {"folds": 0, "val_split": 0.6}], ids=["folds", "validation"])
def test_the_calibration_error_is_that_of_images_that_did_not_fit_the_calibration(
    changes: dict[str, Any], sample: Path, tmp_path: Path
) -> None:
    """The run starts from a model without batch norm and learns nothing; its scores rank well, but are too high."""
    torch.manual_seed(0)
    start = AimonkModel.from_timm(
        "test_convnext", ["sleeves", "stripes", "collar", "belt"], pretrained=False, image_size=32
    )
    with torch.no_grad():
        start.timm_model.get_classifier().weight.normal_(0, 0.5)
        start.timm_model.get_classifier().bias.fill_(2.0)
    start.save_pretrained(tmp_path / "start")
    dataset = AttributeDataset.from_folder(sample)
    scores, _ = score_images(start.eval(), dataset.paths)
    flips = np.random.default_rng(0).random(scores.shape) < 0.2
    values = ((scores > np.median(scores, axis=0)) ^ flips).astype(np.float32)
    write_labels(tmp_path / "labels.csv", Labels(dataset.labels.images, dataset.attributes, values))
    files = {"labels": str(tmp_path / "labels.csv"), "images_dir": str(sample / "images")}
    kept = {"architecture": f"local-dir:{tmp_path / 'start'}", "lr": 1e-12, "calibrate": True}
    model = train(settings(sample, tmp_path / "out", **kept, **files, **changes))
    assert model.metrics is not None
    rows = model.metrics["per_attribute"].values()
    assert any(row["calibration"]["left_alone"] is None for row in rows)
    for row in rows:
        assert row["calibration_error"] == pytest.approx(row["calibration"]["ece_after"])
    assert model.metrics["macro"]["calibration_error"] == pytest.approx(model.metrics["calibration"]["ece_after"])


def test_a_recipe_that_chooses_an_epoch_takes_its_validation_images_from_inside(data: Path, tmp_path: Path) -> None:
    train(settings(data, tmp_path / "out", folds=2, metric_for_best_model="macro_auroc", val_split=0.25))
    for fold in "12":
        parts = column(tmp_path / "out" / "folds" / f"fold-{fold}" / "split.csv", "part")
        assert 2 <= list(parts.values()).count("validation") <= 6
    assert 6 <= list(column(tmp_path / "out" / "split.csv", "part").values()).count("validation") <= 9


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
        train(settings(data, out))
    resumed = train(settings(data, out, resume=True))
    assert saved == ["fold-1", "fold-2", "fold-2", "fold-3", "out"]
    assert (out / "oof.csv").read_bytes() == (run[0] / "oof.csv").read_bytes()
    whole = run[1].timm_model.state_dict()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in resumed.timm_model.state_dict().items())
    train(settings(data, out, folds=0, overwrite=True))
    assert not (out / "folds").exists()
    assert not (out / "oof.csv").exists()


def test_an_attribute_rarer_than_the_folds_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = write_sample_data(tmp_path / "rare", n_images=24, seed=1)
    lines = (folder / "labels.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines[1:]]
    for number, row in enumerate(rows):
        row[4] = "1" if number == 0 else "0"
    (folder / "labels.csv").write_text("\n".join([lines[0], *map(",".join, rows)]) + "\n")
    model = train(settings(folder, tmp_path / "out", folds=2))
    assert "belt has 1 label(s) of one kind, fewer than the 2 folds" in capsys.readouterr().out
    assert model.metrics is not None
    assert model.metrics["folds"]["macro"]["auroc"]["mean"] is not None  # of the attributes where it is defined
