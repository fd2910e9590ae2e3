"""A model folder, a checkpoint and a train_config.json of the version before (tests/fixtures/before/README.md)."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from train_support import rows_of

from aimonk_hf import AimonkModel, TrainConfig
from aimonk_hf.cli.main import main
from aimonk_hf.data.sample_data import write_sample_data
from aimonk_hf.errors import AimonkError
from aimonk_hf.training.settings import Stage

BEFORE = Path(__file__).parent / "fixtures" / "before"
EXPECTED: dict[str, Any] = json.loads((BEFORE / "expected.json").read_text())
SETTINGS: dict[str, Any] = json.loads((BEFORE / "run" / "train_config.json").read_text())["settings"]


def test_its_model_gives_the_same_logits_decisions_and_figures() -> None:
    rows, columns = np.mgrid[0:40, 0:48]
    image = np.stack([rows * 6, columns * 5, (rows * columns) % 256], axis=-1).astype(np.uint8)
    model = AimonkModel.from_pretrained(BEFORE / "model")
    prediction = model.predict(image)
    logits = torch.tensor(EXPECTED["logits"])
    assert list(prediction.scores.values()) == pytest.approx(torch.sigmoid(logits).tolist(), abs=1e-6)
    assert prediction.attributes == EXPECTED["attributes"]
    assert model.config.thresholds == EXPECTED["thresholds"]
    assert model.metrics is not None
    assert model.metrics["macro"]["f1"] == EXPECTED["macro_f1"]


def test_its_run_resumes_within_the_epoch_and_ends_as_it_would_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(BEFORE, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)  # its paths are relative
    data = write_sample_data(Path("data"), n_images=24, seed=3)
    noted = tmp_path / "run" / "checkpoints" / "data.csv"
    rows = rows_of(noted)
    for row in rows[1:]:  # the first names the attributes; another Pillow may write files of other sizes
        row["bytes"] = str((data / "images" / row["image"]).stat().st_size)
    with open(noted, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    flags = ["--recipe", "efficientnet-b0-two-stage", "--architecture", "local-dir:model", "--image-size", "32"]
    flags += ["--data-dir", "data", "--output-dir", "run", "--num-workers", "0", "--mixed-precision", "no"]
    flags += ["--stage-epochs", "2,3", "--batch-size", "4", "--ema-decay", "0.9", "--augmentation", "strong"]
    assert main(["train", *flags, "--resume"]) == 0
    history = rows_of(Path("run/history.csv"))
    assert len(history) == len(EXPECTED["history"])
    for row, expected in zip(history, EXPECTED["history"], strict=True):
        assert {name: float(row[name]) for name in expected} == pytest.approx(expected, abs=0.01)
    assert AimonkModel.from_pretrained("run").metrics is not None


def test_its_settings_are_read() -> None:
    config = TrainConfig(**SETTINGS)
    assert config.stages == [Stage(2, 1e-3, "backbone"), Stage(3, 1e-4, "first-5/16")]
    assert (config.recipe, config.ema_decay, config.metric_for_best_model) == (SETTINGS["recipe"], 0.9, "val_loss")


@pytest.mark.parametrize(
    "changes",
    [
        *({"image_cache": True}, {"image_cache": False}, {"feature_views": 2}, {"prefix_views": 3}),
        *({"mixed_precision": "no"}, {"mixed_precision": "bf16"}, {"drop_rate": 0.0}),
    ],
    ids=str,
)
def test_old_spellings_are_translated_or_refused_by_name(changes: dict[str, Any]) -> None:
    name, refusal = next(iter(changes)).replace("_", "-"), ""
    try:
        TrainConfig(**SETTINGS | changes)
    except AimonkError as error:
        refusal = str(error)
    assert not refusal or name in refusal
