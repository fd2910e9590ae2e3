"""Small runs, and what they have written."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from aimonk_hf import AimonkModel, TrainConfig, train
from aimonk_hf.training.callbacks import TrainCallback
from aimonk_hf.training.checkpoints import load_checkpoint

# of the command line, as `small` has them
FLAGS = ["--recipe", "demo", "--epochs", "1", "--batch-size", "16", "--image-size", "32"]
FLAGS += ["--num-workers", "0", "--mixed-precision", "float32"]


def small(data: Path | str, out: Path | str, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {"recipe": "demo", "epochs": 1, "batch_size": 16, "image_size": 32, "num_workers": 0}
    return TrainConfig(str(data), str(out), **values | {"mixed_precision": "float32"} | changes)


def places(data: Path, out: Path) -> list[str]:
    return ["--data-dir", str(data), "--output-dir", str(out)]


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def column(path: Path, name: str) -> dict[str, str]:
    return {row["image"]: row[name] for row in rows_of(path)}


def history(out: Path) -> list[dict[str, str]]:
    """Return the rows of history.csv without times."""
    timing = ("seconds", "images_per_second")
    return [{key: row[key] for key in row if key not in timing} for row in rows_of(out / "history.csv")]


def state_of(out: Path) -> dict[str, Any]:
    """Return the last checkpoint."""
    state = load_checkpoint(out / "checkpoints")
    assert state is not None
    return state


def losses(out: Path) -> list[float]:
    return state_of(out)["losses"].tolist()


def checkpoints(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").glob("step-*"))


def weights(model: AimonkModel) -> dict[str, torch.Tensor]:
    return model.timm_model.state_dict()


def same(first: AimonkModel, second: AimonkModel) -> bool:
    return all(torch.equal(tensor, weights(second)[name]) for name, tensor in weights(first).items())


class Killed(BaseException):
    """Stands in for a process that ends."""


class KillAfter(TrainCallback):
    """Ends the run after the next step, before that is saved."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, step: int, loss: float | None, lr: float) -> None:
        if step > self.step:
            raise Killed


def train_until(step: int, config: TrainConfig) -> None:
    """Train, end as a killed process does, and leave the checkpoint of `step`."""
    with pytest.raises(Killed):
        train(config, callbacks=[KillAfter(step)])
