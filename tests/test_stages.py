"""Runs in stages: freezing, features computed once, plateau, early stopping, the best epoch, and resuming at any step
of them.
"""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from aimonk_hf import AimonkModel, TrainConfig, train
from aimonk_hf.errors import AimonkError
from aimonk_hf.training import loop as trainer_module
from aimonk_hf.training.batches import EpochBatches, balancing_weights
from aimonk_hf.training.checkpoints import load_checkpoint
from aimonk_hf.training.loop import ActiveStage, Trainer
from aimonk_hf.training.validation import Validator

NAN = float("nan")


def settings(sample: Path, out: Path, **changes: object) -> TrainConfig:
    values = {
        "recipe": "demo",
        "epochs": 2,
        "batch_size": 16,
        "image_size": 32,
        "num_workers": 0,
        "mixed_precision": "float32",
    } | changes
    return TrainConfig(data_dir=str(sample), output_dir=str(out), **values)  # type: ignore[arg-type]


def test_an_image_lost_before_its_features_are_computed_is_named(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    data = tmp_path / "data"
    shutil.copytree(sample, data)
    said = Accelerator.print

    def vanish(self: Accelerator, *words: str, **named: str) -> None:
        said(self, *words, **named)
        if "to train on" in words[0]:  # all were read and divided
            (data / "images" / "garment_0007.png").unlink()

    monkeypatch.setattr(Accelerator, "print", vanish)
    train(settings(data, tmp_path / "out", freeze="backbone", feature_views=1, val_split=0, image_cache="off"))
    assert capsys.readouterr().out.count("garment_0007.png can no longer be read") == 1


def two_stages(sample: Path, out: Path, **changes: object) -> TrainConfig:
    values: dict[str, object] = {
        "recipe": "efficientnet-b0-two-stage",
        "architecture": "test_efficientnet",
        "pretrained": False,
        "epochs": None,
        "stage_epochs": [2, 2],
    }
    return settings(sample, out, **(values | changes))


def weights(model: AimonkModel) -> dict[str, torch.Tensor]:
    return model.timm_model.state_dict()


def same(first: AimonkModel, second: AimonkModel) -> bool:
    return all(torch.equal(tensor, weights(second)[name]) for name, tensor in weights(first).items())


def history(out: Path) -> list[dict[str, str]]:
    with open(out / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


def without_times(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{key: row[key] for key in row if key not in ("seconds", "images_per_second")} for row in rows]


@pytest.fixture(scope="module")
def staged(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AimonkModel]:
    out = tmp_path_factory.mktemp("staged") / "out"
    return out, train(two_stages(sample, out))


def test_each_stage_has_its_own_rate_and_its_own_frozen_part(
    staged: tuple[Path, AimonkModel], sample: Path, tmp_path: Path
) -> None:
    assert [(row["stage"], float(row["lr"])) for row in history(staged[0])] == [
        ("1", 1e-3),
        ("1", 1e-3),
        ("2", 1e-4),
        ("2", 1e-4),
    ]
    alone: dict[str, Any] = {"stage_lr": [1e-3], "stage_freeze": ["backbone"], "metric_for_best_model": "none"}
    head_only, one_epoch = (
        train(two_stages(sample, tmp_path / str(epochs), stage_epochs=[epochs], **alone)) for epochs in (2, 1)
    )
    changed = {name for name, tensor in weights(head_only).items() if not torch.equal(tensor, weights(one_epoch)[name])}
    assert changed == {"classifier.weight", "classifier.bias"}
    both = train(two_stages(sample, tmp_path / "both", metric_for_best_model="none"))
    second = {name for name, tensor in weights(both).items() if not torch.equal(tensor, weights(head_only)[name])}
    assert not any(name.startswith(("conv_stem", "bn1", "blocks.0")) for name in second)
    assert any(name.startswith("blocks.4") for name in second)


def test_features_computed_once_train_the_head_as_the_pictures_would(sample: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"stage_epochs": [3], "stage_lr": [1e-2], "stage_freeze": ["backbone"], "drop_rate": 0.3}
    once, anew = (
        train(two_stages(sample, tmp_path / str(views), feature_views=views, metric_for_best_model="none", **changes))
        for views in (3, 0)
    )
    for name, tensor in weights(once).items():
        torch.testing.assert_close(tensor, weights(anew)[name], rtol=1e-4, atol=1e-5)
    losses = [[float(row["val_loss"]) for row in history(tmp_path / views)] for views in "30"]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert len(set(losses[0])) == 3
    fewer = train(two_stages(sample, tmp_path / "fewer", feature_views=1, metric_for_best_model="none", **changes))
    assert not torch.allclose(weights(fewer)["classifier.weight"], weights(anew)["classifier.weight"], atol=1e-4)


def test_a_dropout_of_zero_is_a_value_and_a_silent_recipe_keeps_the_backbones_own(sample: Path, tmp_path: Path) -> None:
    backbone = tmp_path / "backbone"
    AimonkModel.from_timm(
        "test_vit", ["a"], pretrained=False, image_size=32, drop_rate=0.5, drop_path_rate=0.4
    ).save_pretrained(backbone)
    changes: dict[str, Any] = {
        "architecture": f"local-dir:{backbone}",
        "pretrained": True,
        "freeze": "backbone",
        "epochs": 2,
        "lr": 1e-2,
    }
    for name, rates in (("own", {}), ("none", {"drop_rate": 0.0, "drop_path_rate": 0.0}), ("said", {"drop_rate": 0.5})):
        once, anew = (
            train(settings(sample, tmp_path / f"{name}{n}", feature_views=n, **changes, **rates)) for n in (2, 0)
        )
        for key, tensor in weights(once).items():
            torch.testing.assert_close(tensor, weights(anew)[key], rtol=1e-4, atol=1e-5)
        assert once.config.model_args == {"img_size": 32, "drop_rate": 0.5, "drop_path_rate": 0.4} | rates
    own, none, said = (
        weights(AimonkModel.from_pretrained(tmp_path / f"{name}2"))["head.weight"] for name in ("own", "none", "said")
    )
    assert torch.equal(own, said)
    assert not torch.allclose(own, none, atol=1e-4)


@pytest.mark.parametrize("architecture", ["test_efficientnet", "test_resnet"])
def test_validation_features_are_computed_once_while_the_backbone_stays(
    architecture: str, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    real = Validator.outputs
    monkeypatch.setattr(Validator, "outputs", lambda *given: (computed.append(given[2]), real(*given))[1])
    stages: dict[str, Any] = {
        "stage_epochs": [3, 1, 2],
        "stage_lr": [1e-2, 1e-2, 1e-2],
        "stage_freeze": ["backbone", "none", "backbone"],
    }
    settled = {"architecture": architecture, "pretrained": False, "ema_decay": 0.5, **stages}
    once = train(settings(sample, tmp_path / "once", **settled))
    assert len(computed) == 4  # the averaged backbone still moves in the last stage
    train(settings(sample, tmp_path / "anew", feature_views=0, **settled))
    assert len(computed) == 10
    assert computed[0] > len(once.config.attributes) == computed[1] == computed[-1]
    figures = [[float(row["val_loss"]) for row in history(tmp_path / name)] for name in ("once", "anew")]
    assert figures[0][:4] == pytest.approx(figures[1][:4], rel=1e-3)  # the last stage shows fewer views


class Killed(BaseException):
    """Stands in for a process that ends."""


def kill_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    real = Trainer._take_step

    def take(self: Trainer, *given: Any) -> tuple[float, int]:
        if self.state.step == step:
            raise Killed
        return real(self, *given)

    monkeypatch.setattr(trainer_module.Trainer, "_take_step", take)


SOAKED = [pytest.param(step, marks=pytest.mark.soak) for step in (1, 4, 5, 7, 8, 9, 10)]


@pytest.mark.parametrize("step", [2, 3, 6, 11, *SOAKED])  # within an epoch, between two, between stages, the last one
def test_a_run_that_is_killed_in_any_step_ends_as_if_it_had_not_been(
    step: int, staged: tuple[Path, AimonkModel], sample: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, step)
        train(two_stages(sample, out, checkpoint_minutes=1e-9))
    resumed = train(two_stages(sample, out, resume=True))
    assert same(resumed, staged[1])
    assert without_times(history(out)) == without_times(history(staged[0]))
    states = [load_checkpoint(folder / "checkpoints") for folder in (out, staged[0])]
    assert states[0] is not None
    assert states[1] is not None
    assert states[0]["losses"].tolist() == states[1]["losses"].tolist()


@pytest.mark.parametrize("step", [4, 8])
def test_averages_mixing_growing_pictures_and_balanced_sampling_resume_too(
    step: int, sample: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {
        "ema_decay": 0.9,
        "mixup": 0.3,
        "cutmix": 1.0,
        "sampling": "balanced",
        "label_smoothing": 0.1,
        "epochs": 3,
    }
    changes |= {"image_size": 96, "train_scale": [0.34, 1.0]}
    whole = train(settings(sample, tmp_path / "whole", **changes))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, step)
        train(settings(sample, tmp_path / "out", checkpoint_minutes=1e-9, **changes))
    assert same(train(settings(sample, tmp_path / "out", resume=True, **changes)), whole)


def scripted_validation(monkeypatch: pytest.MonkeyPatch, values: dict[str, list[float]]) -> None:
    """Make validation return the given figures, epoch by epoch."""

    def validate(self: Trainer, stage: ActiveStage) -> dict[str, float | None]:
        return dict.fromkeys(("val_loss", "macro_f1", "macro_average_precision", "macro_auroc")) | {
            name: figures[self.state.epoch - 1] for name, figures in values.items()
        }

    monkeypatch.setattr(trainer_module.Trainer, "validate", validate)


def test_early_stopping_ends_each_stage_and_the_best_epoch_is_kept(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    losses = [0.5, 0.4, 0.45, 0.46, 0.3, 0.35, 0.36, 0.1]
    kept: dict[int, dict[str, torch.Tensor]] = {}
    real: Callable[..., dict[str, Any]] = Trainer.train_epoch

    def remember(self: Trainer, *given: Any) -> dict[str, Any]:
        row = real(self, *given)
        kept[self.state.epoch] = {name: tensor.clone() for name, tensor in self.model.timm_model.state_dict().items()}
        return row

    monkeypatch.setattr(trainer_module.Trainer, "train_epoch", remember)
    scripted_validation(monkeypatch, {"val_loss": losses})
    model = train(two_stages(sample, tmp_path / "out", stage_epochs=[10, 10], early_stopping_patience=2))
    rows = history(tmp_path / "out")
    assert [row["stage"] for row in rows] == ["1"] * 4 + ["2"] * 3
    assert all(
        torch.equal(tensor, kept[5][name])
        for name, tensor in weights(model).items()
        if not name.startswith("classifier")
    )
    out = capsys.readouterr().out
    assert "stage 1 ends early: no better val_loss for 2 epochs" in out
    assert "they also chose the epoch" in out


def test_the_second_stage_goes_on_from_the_best_epoch_of_the_first(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    heads: list[torch.Tensor] = []
    real: Callable[..., dict[str, Any]] = Trainer.train_epoch

    def remember(self: Trainer, *given: Any) -> dict[str, Any]:
        seen.append(self.model.timm_model.get_classifier().weight.detach().clone())
        row = real(self, *given)
        heads.append(self.model.timm_model.get_classifier().weight.detach().clone())
        return row

    monkeypatch.setattr(trainer_module.Trainer, "train_epoch", remember)
    scripted_validation(monkeypatch, {"val_loss": [0.2, 0.3, 0.4, 0.1]})
    train(two_stages(sample, tmp_path / "out", stage_epochs=[3, 1]))
    assert torch.equal(seen[3], heads[0])
    assert not torch.equal(seen[3], heads[2])


def test_plateau_halves_the_rate_and_counts_within_a_stage(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted_validation(monkeypatch, {"val_loss": [0.5, 0.6, 0.6, 0.6, 0.6, 0.6]})
    train(two_stages(sample, tmp_path / "out", stage_epochs=[5, 1], plateau_patience=2))
    assert [float(row["lr"]) for row in history(tmp_path / "out")] == [1e-3] * 4 + [5e-4, 1e-4]


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "focal"},
        {"loss": "asymmetric", "asymmetric_gammas": [0.0, 2.0]},
        {"layer_decay": 0.7, "freeze": "first-1"},
        {"optimizer": "sgd", "schedule": "cosine", "drop_path_rate": 0.1},
        {"augmentation": "strong", "sampling": "balanced", "accumulation_steps": 2, "mixup": 0.2},
        {"augmentation": "trivial-augment", "cutmix": 1.0, "ema_decay": 0.9, "metric_for_best_model": "macro_auroc"},
    ],
)
def test_settings_work_together(changes: dict[str, Any], sample: Path, tmp_path: Path) -> None:
    model = train(settings(sample, tmp_path / "out", epochs=1, **changes))
    assert model.metrics is not None
    assert same(AimonkModel.from_pretrained(tmp_path / "out"), model)
    assert all(torch.isfinite(tensor).all() for tensor in weights(model).values())


def test_what_cannot_be_chosen_without_validation_images_is_refused(sample: Path, tmp_path: Path) -> None:
    with pytest.raises(AimonkError, match="--metric-for-best-model needs validation images"):
        settings(sample, tmp_path / "out", val_split=0.0, metric_for_best_model="macro_f1")
    with pytest.raises(AimonkError, match="--schedule plateau needs validation images"):
        two_stages(sample, tmp_path / "out", val_split=0.0)


def test_stochastic_depth_in_a_network_without_residual_blocks_is_refused(sample: Path, tmp_path: Path) -> None:
    with pytest.raises(AimonkError, match="timm cannot build vgg11 with .*drop_path_rate"):
        train(settings(sample, tmp_path / "out", architecture="vgg11", drop_path_rate=0.1))


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


def test_two_processes_draw_the_epoch_of_one() -> None:
    weights_of_rows = np.arange(1.0, 38.0)
    whole = EpochBatches(37, 8, 1, 1, 0, 5, weights_of_rows)
    halves = [EpochBatches(37, 4, 1, 2, rank, 5, weights_of_rows) for rank in range(2)]
    together = [places for pair in zip(*halves, strict=True) for places in pair]
    assert sorted(place for places in together for place in places) == sorted(
        place for places in whole for place in places
    )
