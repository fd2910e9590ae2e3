"""What the named settings promise, above all those of the five published systems."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from timm.models import get_pretrained_cfg, is_model

from aimonk_hf import AimonkModel, TrainConfig, get_recipe
from aimonk_hf.cli.main import main
from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling.backbones import trim_pretrained_cfg
from aimonk_hf.modeling.losses import positive_weights
from aimonk_hf.modeling.processing import EvalTransform
from aimonk_hf.training.epoch_choice import plateau_factor
from aimonk_hf.training.optimisation import lr_factor
from aimonk_hf.training.recipes import list_recipes
from aimonk_hf.training.settings import Stage


def config(recipe: str, **changes: Any) -> TrainConfig:
    return TrainConfig("data", "out", recipe=recipe, **changes)


@pytest.mark.parametrize("recipe", [recipe.name for recipe in list_recipes()])
def test_every_setting_is_a_field_and_every_architecture_is_timms(recipe: str) -> None:
    names = {field.name for field in fields(TrainConfig)}
    assert set(get_recipe(recipe).settings) <= names
    made = config(recipe)
    assert is_model(made.architecture.split(".")[0])
    assert TrainConfig(**made.to_dict()).to_dict() == made.to_dict()


@pytest.mark.parametrize("recipe", [recipe.name for recipe in list_recipes() if recipe.unsaid])
def test_published_recipes_squash_to_224_weigh_positives_and_decide_at_a_half(recipe: str) -> None:
    made = config(recipe)
    assert (made.loss, made.pos_weight_power, made.tune_thresholds, made.calibrate) == ("bce", 1.0, False, False)
    assert get_recipe(recipe).unsaid
    cfg = trim_pretrained_cfg(get_pretrained_cfg(made.architecture).to_dict(), 4) | made.preprocessing()
    transform = EvalTransform(cfg | {"input_size": (3, made.image_size, made.image_size)})
    assert transform.size == (224, 224)
    assert (transform.data_config["crop_mode"], transform.data_config["crop_pct"]) == ("squash", 1.0)
    expected = "efficientnet_b0" if recipe.startswith("efficientnet") else f"{made.architecture.split('.')[0]}.tv_in1k"
    assert made.architecture == expected


def test_the_two_stage_system() -> None:
    made = config("efficientnet-b0-two-stage")
    assert made.stages == [Stage(5, 1e-3, "backbone"), Stage(15, 1e-4, "first-5/16")]
    assert (made.drop_rate, made.optimizer, made.weight_decay, made.batch_size) == (0.3, "adamw", 1e-4, 32)
    assert (made.schedule, made.plateau_factor, made.plateau_patience, made.early_stopping_patience) == (
        "plateau",
        0.5,
        2,
        5,
    )
    assert (made.split, made.val_split, made.seed, made.augmentation) == ("random", 0.2, 42, "two-stage")
    faster, slower = (config(f"efficientnet-b0-two-stage-{speed}") for speed in ("faster", "slower"))
    assert ([stage.epochs for stage in faster.stages], faster.batch_size) == ([3, 8], 64)
    assert ([stage.epochs for stage in slower.stages], slower.batch_size) == ([8, 20], 16)


def test_the_resnet34_system_and_its_experiments() -> None:
    made = config("resnet34-partial")
    assert made.stages == [Stage(8, 1e-4, "first-7/16")]  # layer1 has 3 blocks and layer2 has 4
    assert (made.drop_rate, made.optimizer, made.weight_decay, made.metric_for_best_model) == (
        0.4,
        "adam",
        1e-4,
        "macro_f1",
    )
    assert (made.val_split, made.split, made.augmentation) == (0.15, "rarest", "partial")
    assert config("resnet34-baseline").freeze == "none"
    assert config("resnet34-layer3-frozen").freeze == "first-13/16"  # layer3 has 6
    assert config("resnet18-full").stages == [Stage(36, 1e-4, "none")]
    assert config("resnet34-low-lr").lr < made.lr


def test_the_resnet18_systems() -> None:
    adam, finetune, twenty = (config(f"resnet18-{name}") for name in ("adam", "finetune", "20-epochs"))
    assert (adam.optimizer, adam.lr, adam.augmentation) == ("adam", 1e-3, "none")
    assert (finetune.stages, finetune.batch_size, finetune.augmentation) == ([Stage(10, 1e-4, "none")], 16, "flip")
    assert (twenty.stages, twenty.batch_size) == ([Stage(20, 1e-4, "none")], 16)
    labels = np.float32([[1], [0], [np.nan], [0]])
    assert positive_weights(labels, negatives=twenty.pos_weight_negatives).tolist() == [3]


def test_flags_override_and_epochs_is_the_last_stages() -> None:
    made = config("efficientnet-b0-two-stage", epochs=3, lr=1e-5, freeze="none", architecture="resnet18")
    assert made.stages == [Stage(5, 1e-3, "backbone"), Stage(3, 1e-5, "none")]
    assert made.architecture == "resnet18"
    both = config("default", stage_epochs=[1, 2], stage_freeze=["backbone", "none"])
    assert both.stages == [Stage(1, 8e-4, "backbone"), Stage(2, 8e-4, "none")]
    with pytest.raises(AimonkError, match=r"--stage-lr has 2 value\(s\) for 3 stage\(s\): give one for each"):
        config("efficientnet-b0-two-stage", stage_epochs=[1, 2, 3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage_epochs": [0, 2]}, "a stage of 0 epochs trains nothing; leave the stage out"),
        ({"folds": 3, "report_split": 0.5}, "--folds evaluates on out-of-fold scores, .*leave out --report-split"),
        ({"stage_lr": [0.0, 1e-4]}, "--lr must be above 0"),
        ({"folds": 1}, "--folds must be 0 or at least 2"),
        ({"layer_decay": 0.0}, r"--layer-decay must lie in \(0, 1\]"),
        ({"plateau_factor": 2.0}, r"--plateau-factor must lie in \(0, 1\]"),
        ({"loss": "hinge"}, "--loss must be one of bce, focal, asymmetric"),
        ({"asymmetric_gammas": [1.0]}, "--asymmetric-gammas takes two numbers"),
        ({"mixup": -1.0}, "--mixup must not be negative"),
        ({"train_scale": [0.5]}, "--train-scale takes two numbers above 0 and at most 2, found 0.5"),
        ({"train_scale": [0.0, 1.0]}, "--train-scale takes two numbers above 0"),
        ({"label_smoothing": 1.0}, r"--label-smoothing must lie in \[0, 1\)"),
        ({"mixup": float("nan")}, "--mixup must be finite"),
        ({"mixup": float("inf")}, "--mixup must be finite"),
        ({"crop_pct": float("nan")}, "--crop-pct must be finite"),
        ({"pos_weight_cap": float("nan")}, "--pos-weight-cap must be finite"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AimonkError, match=message):
        config("efficientnet-b0-two-stage", **changes)


@pytest.mark.parametrize("recipe", [recipe.name for recipe in list_recipes()])
def test_every_recipe_runs_by_its_name(recipe: str, sample: Path, tmp_path: Path) -> None:
    n_stages = len(config(recipe).stages)
    flags = [
        "--architecture",
        "test_resnet",
        "--no-pretrained",
        "--image-size",
        "32",
        "--num-workers",
        "0",
        "--stage-epochs",
        "1,1"[: 2 * n_stages - 1],
    ]
    out = tmp_path / "out"
    assert main(["train", "--recipe", recipe, "--data-dir", str(sample), "--output-dir", str(out), *flags]) == 0
    model = AimonkModel.from_pretrained(out)
    tuned = set(model.config.thresholds.values()) != {0.5}
    assert tuned == (recipe in ("default", "demo", "fast"))
    assert len((out / "history.csv").read_text().splitlines()) == 1 + n_stages


def test_a_recipe_whose_layer_names_another_network_lacks_is_refused(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    flags = [
        "--architecture",
        "test_vit",
        "--no-pretrained",
        "--num-workers",
        "0",
        "--freeze",
        "conv1+bn1+layer1",
        "--output-dir",
        str(tmp_path / "o"),
    ]
    assert main(["train", "--recipe", "resnet34-partial", "--data-dir", str(sample), *flags]) == 2
    assert "--freeze: the network has no layer 'conv1'; it begins with " in capsys.readouterr().err


def test_constant_and_plateau_recipes_give_the_published_rates() -> None:
    made = config("efficientnet-b0-two-stage")
    assert [lr_factor(made.schedule, step, 100, made.warmup) for step in (0, 50, 99)] == [1, 1, 1]
    losses = [{"val_loss": value} for value in (0.5, 0.6, 0.6, 0.6, 0.4, 0.5, 0.5, 0.5)]
    rates = [made.lr * plateau_factor(losses[:n], made.plateau_factor, made.plateau_patience) for n in range(9)]
    assert rates == pytest.approx([1e-4] * 4 + [5e-5] * 4 + [2.5e-5])
    for name in ("resnet18-adam", "resnet18-finetune", "resnet18-20-epochs", "resnet34-partial"):
        other = config(name)
        assert {lr_factor(other.schedule, step, 40, other.warmup) for step in range(40)} == {1.0}


def test_the_command_lists_recipes_with_what_they_reproduce(capsys: pytest.CaptureFixture) -> None:
    assert main(["recipes"]) == 0
    out = capsys.readouterr().out
    for recipe in list_recipes():
        assert f"{recipe.name}: {recipe.system}" in out
    assert "left unsaid, chosen here: " in out


def test_flags_with_several_values_are_read_and_a_wrong_one_is_named(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--data-dir", "d", "--output-dir", "o", "--stage-epochs", "5,x"])
    assert "argument --stage-epochs: invalid comma-separated int value: '5,x'" in capsys.readouterr().err
