"""Training and prediction on the accelerator that is there; on a CPU where there is none. Run by `make test-gpu`."""

import csv
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from aimonk_hf import AimonkModel, AimonkPredictor, TrainConfig, train
from aimonk_hf.cli.main import main
from aimonk_hf.training.callbacks import TrainCallback

pytestmark = pytest.mark.gpu

ON_CPU = not torch.accelerator.is_available()
DEVICE = torch.device("cpu") if ON_CPU else torch.accelerator.current_accelerator()
SETTINGS = {
    "architecture": "test_resnet",
    "pretrained": False,
    "image_size": 64,
    "batch_size": 8,
    "epochs": 2,
    "num_workers": 2,
    "onnx": False,
}


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "history.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_training_in_each_precision_with_ema_and_mixup(precision: str, few: Path, tmp_path: Path) -> None:
    if precision == "fp16" and ON_CPU:
        pytest.skip("accelerate trains in fp16 on accelerators only")
    settings = SETTINGS | {"ema_decay": 0.9, "mixup": 0.2, "mixed_precision": precision}
    model = train(TrainConfig(str(few), str(tmp_path), **settings))
    assert model.device.type == "cpu", "the finished model is where others expect it"
    resolved = json.loads((tmp_path / "train_config.json").read_text())["resolved"]
    assert resolved["device"] == DEVICE.type
    assert resolved["mixed_precision"] == precision
    assert all(
        np.isfinite(float(row["train_loss"])) and np.isfinite(float(row["val_loss"])) for row in rows_of(tmp_path)
    )


def test_training_with_a_compiled_network(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if ON_CPU:  # inductor takes minutes here
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    train(TrainConfig(str(few), str(tmp_path), **SETTINGS | {"compile": True, "mixed_precision": "bf16"}))
    assert not any("_orig_mod" in name for name in AimonkModel.from_pretrained(tmp_path).state_dict())


class Interrupt(TrainCallback):
    def on_step(self, step: int, loss: float | None, lr: float) -> None:
        if step == 4:
            raise KeyboardInterrupt


def test_a_resumed_run_ends_as_the_uninterrupted_one(few: Path, tmp_path: Path) -> None:
    whole = train(TrainConfig(str(few), str(tmp_path / "whole"), **SETTINGS))
    cut = SETTINGS | {"resume": True}
    with pytest.raises(KeyboardInterrupt):
        train(TrainConfig(str(few), str(tmp_path / "cut"), **SETTINGS), callbacks=[Interrupt()])
    resumed = train(TrainConfig(str(few), str(tmp_path / "cut"), **cut))
    for name, tensor in whole.state_dict().items():
        assert torch.allclose(resumed.state_dict()[name], tensor, atol=0 if ON_CPU else 1e-3), name


def test_folds_score_every_image(few: Path, tmp_path: Path) -> None:
    train(TrainConfig(str(few), str(tmp_path), **SETTINGS | {"folds": 2, "epochs": 1}))
    with (tmp_path / "oof.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 24


def test_a_head_only_stage_on_cached_features(few: Path, tmp_path: Path) -> None:
    stages = {
        "stage_epochs": [2, 1],
        "stage_lr": [1e-2, 1e-3],
        "stage_freeze": ["backbone", "none"],
        "feature_views": 1,
    }
    settings = {key: value for key, value in SETTINGS.items() if key != "epochs"}
    train(TrainConfig(str(few), str(tmp_path), **settings | stages | {"feature_views": 1}))
    assert [row["stage"] for row in rows_of(tmp_path)] == ["1", "1", "2"]


@pytest.mark.parametrize(
    ("precision", "tf32", "tolerance"), [("float32", False, 1e-4), ("float32", True, 2e-3), ("bf16", False, 2e-2)]
)
def test_predictions_are_those_of_the_cpu(precision: str, tf32: bool, tolerance: float, sample: Path) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.manual_seed(0)
    model = AimonkModel.from_timm("resnet18", ["one", "two"], pretrained=False, image_size=64).eval()
    paths = sorted((sample / "images").iterdir())[:16]
    expected = [one.scores["two"] for one in model.predict(paths)]
    found = [one.scores["two"] for one in model.to(DEVICE).predict(paths, precision=precision)]
    assert found == pytest.approx(expected, abs=tolerance)


def test_the_predictor_and_the_commands_use_the_device(few: Path, tmp_path: Path, capsys) -> None:
    torch.manual_seed(0)
    model = AimonkModel.from_timm("test_resnet", ["sleeves", "stripes", "collar", "belt"], pretrained=False)
    model.save_pretrained(tmp_path / "m")
    predictor = AimonkPredictor.from_pretrained(tmp_path / "m")
    assert torch.device(predictor.device).type == DEVICE.type
    flags = ["--model", str(tmp_path / "m"), "--device", DEVICE.type]
    assert main(["predict", str(few / "images"), *flags, "--format", "json", "--output", str(tmp_path / "p")]) == 0
    assert len((tmp_path / "p").read_text().splitlines()) == 24
    assert main(["evaluate", "--data-dir", str(few), *flags]) == 0
    assert "macro" in capsys.readouterr().out


def test_one_process_under_torchrun(few: Path, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1", "train.py"]
    flags = ["--architecture", "test_resnet", "--no-pretrained", "--image-size", "64", "--epochs", "1", "--no-onnx"]
    places = ["--data-dir", str(few), "--output-dir", str(tmp_path / "out")]
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root)}
    subprocess.run([*launch, *flags, *places], check=True, cwd=root, env=environment, timeout=110)
    assert (tmp_path / "out" / "model.safetensors").is_file()
