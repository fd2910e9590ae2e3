"""Runs in stages: cached features of the head-only stage, plateau, early stopping, the best epoch, and exact resume."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from train_support import history, same, small, state_of, train_until, weights

from aimonk_hf import AimonkModel, TrainConfig, train
from aimonk_hf.training.batches import EpochBatches, balancing_weights
from aimonk_hf.training.loop import ActiveStage, Trainer
from aimonk_hf.training.validation import Validator

NAN = float("nan")


def two_stages(data: Path, out: Path, **changes: Any) -> TrainConfig:
    """Two stages of two epochs of three steps."""
    values: dict[str, Any] = {"recipe": "efficientnet-b0-two-stage", "architecture": "test_efficientnet"}
    values |= {"pretrained": False, "epochs": None, "stage_epochs": [2, 2], "batch_size": 8}
    return small(data, out, **values | changes)


@pytest.fixture(scope="module")
def staged(few: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AimonkModel]:
    out = tmp_path_factory.mktemp("staged") / "out"
    return out, train(two_stages(few, out))


def test_an_image_lost_before_its_features_are_computed_is_named(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    data, said = shutil.copytree(few, tmp_path / "data"), Accelerator.print

    def vanish(self: Accelerator, *words: str, **named: str) -> None:
        said(self, *words, **named)
        if "to train on" in words[0]:  # all were read and divided
            (data / "images" / "garment_0007.png").unlink()

    monkeypatch.setattr(Accelerator, "print", vanish)
    train(small(data, tmp_path / "out", freeze="backbone", feature_views=1, val_split=0, image_cache="off"))
    assert capsys.readouterr().out.count("garment_0007.png can no longer be read") == 1


def test_features_computed_once_train_the_head_as_the_images_would(few: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"stage_epochs": [2], "stage_lr": [1e-2], "stage_freeze": ["backbone"], "drop_rate": 0.3}
    once, anew = (
        train(two_stages(few, tmp_path / str(views), feature_views=views, metric_for_best_model="none", **changes))
        for views in (2, 0)
    )
    for name, tensor in weights(once).items():
        torch.testing.assert_close(tensor, weights(anew)[name], rtol=1e-4, atol=1e-5)
    losses = [[float(row["val_loss"]) for row in history(tmp_path / views)] for views in "20"]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][0] != losses[0][1]


def test_a_dropout_of_zero_is_a_value_and_a_silent_recipe_keeps_the_backbones_own(few: Path, tmp_path: Path) -> None:
    rates = {"drop_rate": 0.5, "drop_path_rate": 0.4}
    backbone = AimonkModel.from_timm("test_vit", ["a"], pretrained=False, image_size=32, **rates)
    backbone.save_pretrained(tmp_path / "backbone")
    start: dict[str, Any] = {"architecture": f"local-dir:{tmp_path / 'backbone'}", "pretrained": True}
    heads = []
    for name, said in (("own", {}), ("said", {"drop_rate": 0.5}), ("none", {"drop_rate": 0.0, "drop_path_rate": 0.0})):
        model = train(small(few, tmp_path / name, freeze="backbone", lr=1e-2, **start, **said))
        assert model.config.model_args == {"img_size": 32} | rates | said
        heads.append(weights(model)["head.weight"])
    assert torch.equal(heads[0], heads[1])
    assert not torch.allclose(heads[0], heads[2], atol=1e-4)


def test_validation_features_are_computed_once_while_the_backbone_stays(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    real = Validator.outputs
    monkeypatch.setattr(Validator, "outputs", lambda *given: (computed.append(given[2]), real(*given))[1])
    stages: dict[str, Any] = {"stage_epochs": [2, 1, 1], "stage_lr": [1e-2] * 3}
    stages |= {"stage_freeze": ["backbone", "none", "backbone"], "ema_decay": 0.5}
    once = train(two_stages(few, tmp_path / "once", **stages))
    assert len(computed) == 3
    assert computed[0] > len(once.config.attributes) == computed[1] == computed[2]  # the last: its EMA still moves
    train(two_stages(few, tmp_path / "anew", feature_views=0, **stages))
    assert len(computed) == 3 + 4
    figures = [[float(row["val_loss"]) for row in history(tmp_path / name)] for name in ("once", "anew")]
    assert figures[0][:2] == pytest.approx(figures[1][:2], rel=1e-3)


SOAKED = [pytest.param(step, marks=pytest.mark.soak) for step in (1, 3, 4, 5, 7, 8, 9, 10, 11)]


@pytest.mark.parametrize("step", [2, 6, *SOAKED])  # within an epoch of cached features, between two stages
def test_a_run_that_is_killed_in_any_step_ends_as_if_it_had_not_been(
    step: int, staged: tuple[Path, AimonkModel], few: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    train_until(step, two_stages(few, out, checkpoint_minutes=1e-9))
    assert same(train(two_stages(few, out, resume=True)), staged[1])
    assert history(out) == history(staged[0])
    assert state_of(out)["losses"].tolist() == state_of(staged[0])["losses"].tolist()


@pytest.mark.parametrize("step", [4, pytest.param(8, marks=pytest.mark.soak)])
def test_averages_mixing_growing_images_and_balanced_sampling_resume_too(step: int, few: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"ema_decay": 0.9, "mixup": 0.3, "cutmix": 1.0, "sampling": "balanced", "epochs": 3}
    changes |= {"label_smoothing": 0.1, "image_size": 64, "train_scale": [0.34, 1.0], "batch_size": 8}
    whole = train(small(few, tmp_path / "whole", **changes))
    state = state_of(tmp_path / "whole")
    assert torch.equal(weights(whole)["fc.weight"], state["average"]["fc.weight"])  # the kept weights are the EMA
    assert not torch.equal(state["average"]["fc.weight"], state["network"]["fc.weight"])
    train_until(step, small(few, tmp_path / "out", checkpoint_minutes=1e-9, **changes))
    assert same(train(small(few, tmp_path / "out", resume=True, **changes)), whole)


def test_stages_end_early_begin_with_the_best_epoch_and_lower_their_own_rate(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    val_losses, heads = [0.5, 0.4, 0.45, 0.46, 0.3, 0.35, 0.36, 0.1], []

    def remember(optimizer: Optimizer, *_: Any) -> None:
        parameters = [one for group in optimizer.param_groups for one in group["params"]]
        heads.append(next(one.detach().clone() for one in parameters if one.ndim == 2))

    def validate(self: Trainer, stage: ActiveStage) -> dict[str, float | None]:
        figures = dict.fromkeys(("macro_f1", "macro_average_precision", "macro_auroc"))
        return figures | {"val_loss": val_losses[self.state.epoch - 1]}

    monkeypatch.setattr(Trainer, "validate", validate)
    config = two_stages(few, tmp_path / "out", stage_epochs=[10, 10], early_stopping_patience=2, plateau_patience=0)
    hooks = [register_optimizer_step_pre_hook(remember), register_optimizer_step_post_hook(remember)]
    try:
        model = train(config)
    finally:
        for hook in hooks:
            hook.remove()
    rates = [("1", 1e-3)] * 3 + [("1", 5e-4)] + [("2", 1e-4)] * 2 + [("2", 5e-5)]
    assert [(row["stage"], pytest.approx(float(row["lr"]))) for row in history(tmp_path / "out")] == rates
    steps = heads[-2 * 3 * 7 :]  # before and after each; some are tried before the run
    after = [steps[2 * 3 * epoch - 1] for epoch in range(1, 8)]  # the head after each epoch
    assert torch.equal(steps[2 * 3 * 4], after[1])
    assert not torch.equal(steps[2 * 3 * 4], after[3])
    assert torch.equal(weights(model)["classifier.weight"], after[4])
    printed = capsys.readouterr().out
    assert "stage 1 ends early: no better val_loss for 2 epochs" in printed
    assert "they also chose the epoch" in printed


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "focal", "optimizer": "sgd", "schedule": "cosine", "drop_path_rate": 0.1},
        {"loss": "asymmetric", "asymmetric_gammas": [0.0, 2.0], "layer_decay": 0.7, "freeze": "first-1"},
        {"augmentation": "strong", "sampling": "balanced", "accumulation_steps": 2, "mixup": 0.2},
        {"augmentation": "trivial-augment", "cutmix": 1.0, "ema_decay": 0.9, "metric_for_best_model": "macro_auroc"},
    ],
)
def test_settings_work_together(changes: dict[str, Any], few: Path, tmp_path: Path) -> None:
    model = train(small(few, tmp_path / "out", **changes))
    assert model.metrics is not None
    assert same(AimonkModel.from_pretrained(tmp_path / "out"), model)
    assert all(torch.isfinite(tensor).all() for tensor in weights(model).values())


def test_balancing_weights_by_hand() -> None:
    labels = np.float32([[1, NAN], [0, 0], [0, 0], [0, 1], [NAN, NAN]])
    # shares: first 1/4 and 3/4, second 1/3 and 2/3
    rarity = np.array([2.0, (2 / 3 + 3 / 4) / 2, (2 / 3 + 3 / 4) / 2, (2 / 3 + 3 / 2) / 2, (2 / 3 + 3 / 4) / 2])
    np.testing.assert_allclose(balancing_weights(labels), rarity / rarity.mean())
    np.testing.assert_allclose(balancing_weights(np.full((3, 2), NAN, np.float32)), [1, 1, 1])


def test_balanced_sampling_shows_both_values_of_one_attribute_equally_often() -> None:
    labels = np.zeros((400, 1), np.float32)
    labels[:20] = 1
    batches = EpochBatches(400, 32, 1, 1, 0, 0, balancing_weights(labels))
    drawn = []
    for batches.epoch in range(10):
        drawn += [row for places in batches for _, row in places]
    assert len(drawn) == 4000
    assert np.mean(np.array(drawn) < 20) == pytest.approx(0.5, abs=0.03)
