"""Settings that are combined, and settings that no run could use."""

from pathlib import Path
from typing import Any

import pytest

from aimonk_hf import TrainConfig
from aimonk_hf.cli.main import main
from aimonk_hf.errors import AimonkError
from aimonk_hf.training.settings import Stage


def two_stage(**changes: Any) -> TrainConfig:
    return TrainConfig("data", "out", **{"recipe": "efficientnet-b0-two-stage"} | changes)


def test_flags_override_and_epochs_is_the_last_stages() -> None:
    made = two_stage(epochs=3, lr=1e-5, freeze="none", architecture="resnet18")
    assert made.stages == [Stage(5, 1e-3, "backbone"), Stage(3, 1e-5, "none")]
    assert made.architecture == "resnet18"
    both = TrainConfig("data", "out", stage_epochs=[1, 2], stage_freeze=["backbone", "none"])
    assert both.stages == [Stage(1, 8e-4, "backbone"), Stage(2, 8e-4, "none")]
    with pytest.raises(AimonkError, match=r"--stage-lr has 2 value\(s\) for 3 stage\(s\): give one for each"):
        two_stage(stage_epochs=[1, 2, 3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "--epochs must be at least 1"),
        ({"batch_size": 0}, "--batch-size must be at least 1"),
        ({"val_split": 1.0}, r"--val-split must lie in \[0, 1\)"),
        ({"split": "sorted"}, "--split must be one of"),
        ({"augmentation": "heavy"}, "--augmentation must be one of"),
        ({"seed": -1}, "--seed must not be negative"),
        ({"resume": True, "overwrite": True}, "exclude each other"),
        ({"recipe": "defualt"}, r"Unknown recipe 'defualt' \(did you mean default"),
        (
            {"recipe": "demo", "val_split": 0.0, "metric_for_best_model": "macro_f1"},
            "--metric-for-best-model needs validation images",
        ),
        ({"val_split": 0.0}, "--schedule plateau needs validation images"),
        ({"stage_epochs": [0, 2]}, "a stage of 0 epochs trains nothing; leave it out"),
        ({"folds": 3, "report_split": 0.5}, "--folds evaluates on out-of-fold scores, .*leave out --report-split"),
        ({"stage_lr": [0.0, 1e-4]}, "--lr must be above 0"),
        ({"folds": 1}, "--folds must be 0 or at least 2"),
        ({"layer_decay": 0.0}, r"--layer-decay must lie in \(0, 1\]"),
        ({"plateau_factor": 2.0}, r"--plateau-factor must lie in \(0, 1\]"),
        ({"loss": "hinge"}, "--loss must be one of bce, focal, asymmetric"),
        ({"asymmetric_gammas": [1.0]}, "--asymmetric-gammas takes two numbers"),
        ({"mixup": -1.0}, "--mixup must not be negative"),
        ({"train_scale": [0.5]}, "--train-scale takes two numbers above 0 and at most 2, found 0.5"),
        ({"label_smoothing": 1.0}, r"--label-smoothing must lie in \[0, 1\)"),
        ({"mixup": float("nan")}, "--mixup must be finite"),
        ({"crop_pct": float("inf")}, "--crop-pct must be finite"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AimonkError, match=message):
        two_stage(**changes)


def test_a_recipe_whose_layer_names_another_network_lacks_is_refused(
    sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    flags = ["--architecture", "test_vit", "--no-pretrained", "--num-workers", "0", "--freeze", "conv1+bn1+layer1"]
    flags += ["--data-dir", str(sample), "--output-dir", str(tmp_path / "out")]
    assert main(["train", "--recipe", "resnet34-partial", *flags]) == 2
    assert "--freeze: the network has no layer 'conv1'; it begins with " in capsys.readouterr().err


def test_flags_with_several_values_are_read_and_a_wrong_one_is_named(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--data-dir", "d", "--output-dir", "o", "--stage-epochs", "5,x"])
    assert "argument --stage-epochs: invalid comma-separated int value: '5,x'" in capsys.readouterr().err
