"""`--teacher`: soft targets for missing labels too, from models that have not seen the labels; and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit, logit
from torch.nn.functional import binary_cross_entropy_with_logits
from train_support import same, small, train_until

from aimonk_hf import AimonkModel, AttributeDataset, train
from aimonk_hf.audit.suspects import read_scores
from aimonk_hf.data.labels import write_labels
from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling.losses import masked_bce_with_logits, with_soft_targets
from aimonk_hf.storage import write_csv
from aimonk_hf.training.teacher import _calibrated

NAMES = ["sleeves", "stripes", "collar", "belt"]


def test_the_loss_adds_that_of_the_soft_targets_by_hand() -> None:
    logits, weights = torch.tensor([[0.3, -1.2], [2.0, 0.1]], requires_grad=True), torch.tensor([1.0, 3.0])
    labels = torch.tensor([[1.0, torch.nan], [0.0, 1.0]])
    soft = torch.tensor([[0.8, 0.1], [torch.nan, 0.6]])
    loss = with_soft_targets(masked_bce_with_logits, 0.5)(logits, torch.cat([labels, soft], dim=1), weights, 4.5)
    cells = binary_cross_entropy_with_logits(
        logits[[0, 1, 1, 0, 0, 1], [0, 0, 1, 0, 1, 1]],
        torch.tensor([1.0, 0.0, 1.0, 0.8, 0.1, 0.6]),
        pos_weight=weights[[0, 0, 1, 0, 1, 1]],
        reduction="none",
    )
    assert loss.item() == pytest.approx((cells[:3].sum() + 0.5 * cells[3:].sum()).item() / 4.5, rel=1e-6)
    loss.backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad != 0).all()  # the missing label of row 0 has a soft target


def test_scores_are_calibrated_on_the_labels() -> None:
    rng = np.random.default_rng(0)
    share = rng.uniform(0.02, 0.98, 20_000)
    labels = (rng.random(len(share)) < share).astype(np.float32)[:, None]
    labels[::3] = np.nan
    weighted = expit(2 * logit(share) + 1.5)[:, None]  # of a network whose positives weigh more
    assert np.abs(_calibrated(labels, weighted)[:, 0] - share).max() < 0.03
    few = np.where(np.arange(len(share))[:, None] < 15, labels, np.nan)
    np.testing.assert_allclose(_calibrated(few, weighted), weighted, rtol=1e-6)  # too few labels to fit to


@pytest.fixture(scope="module")
def parts(few: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of 24 drawings, of which 16 train, four validate and four report."""
    labels = AttributeDataset.from_folder(few).labels
    labels.parts = ["train"] * 16 + ["validation"] * 4 + ["report"] * 4
    labels.values[::4] = np.nan
    path = tmp_path_factory.mktemp("labels") / "labels.csv"
    write_labels(path, labels)
    return {"labels": str(path), "images_dir": str(few / "images"), "split_column": "split"}


@pytest.fixture(scope="module")
def teacher(few: Path, parts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with folds on the images to train on."""
    out = tmp_path_factory.mktemp("teacher") / "run"
    train(small(few, out, **parts, folds=2))
    return out


def test_folds_of_given_parts_leave_the_other_parts_alone(teacher: Path, few: Path) -> None:
    images = AttributeDataset.from_folder(few).labels.images
    scores = read_scores(teacher / "oof.csv", images, NAMES)
    assert (~np.isnan(scores).any(axis=1)).tolist() == [True] * 16 + [False] * 8


def test_a_student_learns_what_no_label_says(
    teacher: Path, few: Path, parts: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Soft targets near 0 and 1 for an attribute, all of whose labels are missing, are learned."""
    dataset = AttributeDataset.from_folder(few)
    garments, path = np.arange(24) % 2, tmp_path / "labels.csv"
    dataset.labels.values[:, 0] = np.nan
    dataset.labels.parts = ["train"] * 20 + ["report"] * 4
    write_labels(path, dataset.labels)
    rows = zip(dataset.labels.images, garments, strict=True)
    write_csv(tmp_path / "scores.csv", ["image", "sleeves"], [[image, abs(value - 0.01)] for image, value in rows])
    settings = parts | {"labels": str(path), "epochs": 30, "lr": 3e-3, "val_split": 0.0, "teacher_weight": 3.0}
    scores = {}
    for name, given in (("alone", None), ("taught", str(tmp_path / "scores.csv"))):
        model = train(small(few, tmp_path / name, **settings, teacher=given))
        predicted = model.predict(dataset.select(range(20)).paths)
        scores[name] = np.array([one.scores["sleeves"] for one in predicted])
    positive = garments[:20] == 1
    assert scores["taught"][positive].mean() > scores["taught"][~positive].mean() + 0.3
    assert abs(scores["alone"][positive].mean() - scores["alone"][~positive].mean()) < 0.2
    told = f"teacher:  scores in {tmp_path / 'scores.csv'}; it is unknown whether their model has seen the labels"
    printed = capsys.readouterr().out
    assert f"{told} that it teaches: 20 of 20 training images have soft targets; none of stripes, collar" in printed


def test_a_killed_student_ends_with_the_same_weights_from_the_scores_it_began_with(
    teacher: Path, few: Path, parts: dict[str, Any], tmp_path: Path
) -> None:
    config = {**parts, "epochs": 2, "batch_size": 4, "teacher": str(teacher), "mixup": 0.2, "label_smoothing": 0.1}
    whole = train(small(few, tmp_path / "whole", **config))
    train_until(3, small(few, tmp_path / "cut", **config))
    moved = teacher / "oof.csv"
    content = moved.read_bytes()
    try:
        write_csv(moved, ["image", *NAMES], [])
        resumed = train(small(few, tmp_path / "cut", **config, resume=True))
    finally:
        moved.write_bytes(content)
    assert same(whole, resumed)


def test_teachers_that_have_seen_the_labels_are_refused(
    teacher: Path, few: Path, parts: dict[str, Any], tmp_path: Path
) -> None:
    def refused(match: str, **changes: Any) -> None:
        with pytest.raises(AimonkError, match=match):
            train(small(few, tmp_path / "student", **parts | changes, overwrite=True))

    train(small(few, tmp_path / "every", folds=2))
    refused("was trained on 8 of the images that validate or report here", teacher=str(tmp_path / "every"))
    train(small(few, tmp_path / "plain", **parts))
    refused("has seen the labels of 20 images of this run: train the teacher", teacher=str(tmp_path / "plain"))
    write_csv(tmp_path / "other.csv", ["image", "collar"], [["another.png", 0.5]])
    refused("has no score of any training image and attribute", teacher=str(tmp_path / "other.csv"))
    refused("may have seen the labels of the fold left out", teacher=str(teacher), folds=2)
    refused("--teacher-weight must be above 0, found 0", teacher=str(teacher), teacher_weight=0.0)


def test_a_model_that_has_seen_none_of_the_images_teaches_them_all(
    few: Path, parts: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = AimonkModel.from_timm("test_resnet", ["belt", "collar", "hat"], pretrained=False, image_size=32)
    model.save_pretrained(tmp_path / "model")
    train(small(few, tmp_path / "student", **parts, teacher=str(tmp_path / "model")))
    printed = capsys.readouterr().out
    assert "it is unknown whether it has seen their labels" in printed
    assert "16 of 16 training images have soft targets; none of sleeves, stripes" in printed
    kept = read_scores(tmp_path / "student" / "checkpoints" / "teacher.csv", ["garment_0003.png"], ["collar"])
    own = model.eval().predict(few / "images" / "garment_0003.png").scores["collar"]
    assert kept[0, 0] == pytest.approx(own, abs=1e-5)


def test_auxiliary_attributes_are_trained_and_neither_reported_nor_saved(
    few: Path, parts: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**parts, "auxiliary": ["collar", "belt"], "epochs": 2, "metric_for_best_model": "macro_auroc"}
    model = train(small(few, tmp_path / "run", **settings))
    loaded = AimonkModel.from_pretrained(tmp_path / "run")
    assert loaded.config.attributes == ["sleeves", "stripes"] == list(loaded.config.thresholds)
    assert same(model, loaded)
    assert model.metrics is not None
    assert (
        set(model.metrics["per_attribute"])
        == {"sleeves", "stripes"}
        == set(model.metrics["training"]["data"]["labels"])
    )
    weights = []
    for names in (NAMES, ["sleeves", "stripes"]):
        trained = train(small(few, tmp_path / f"of {len(names)}", **parts, attributes=names, epochs=1))
        weights.append(trained.timm_model.state_dict()["layer1.0.conv1.weight"])
    settings = {**parts, "attributes": NAMES, "auxiliary": NAMES[2:], "epochs": 1}
    own = train(small(few, tmp_path / "two", **settings)).timm_model.state_dict()["layer1.0.conv1.weight"]
    assert torch.equal(own, weights[0])  # the backbone that all four have trained
    assert not torch.equal(own, weights[1])
    folds = train(small(few, tmp_path / "folds", **parts, auxiliary=["collar"], folds=2))
    assert folds.config.attributes == ["sleeves", "stripes", "belt"]
    with open(tmp_path / "folds" / "oof.csv") as file:
        assert file.readline() == "image,sleeves,stripes,belt\n"
    for names, told in ((["coller"], "no attribute 'coller' .did you mean collar"), (NAMES, "names every attribute")):
        with pytest.raises(AimonkError, match=told):
            train(small(few, tmp_path / "refused", **parts, auxiliary=names))
