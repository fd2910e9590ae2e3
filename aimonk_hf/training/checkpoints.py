"""The state of a run and its checkpoints: tensors in safetensors, everything else in JSON, nothing pickled."""

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from aimonk_hf.errors import AimonkError
from aimonk_hf.storage import read_json, staged_folder, write_json

_STATE, _TENSORS = "state.json", "state.safetensors"
_KEPT = 2


@dataclass
class EpochSums:
    """Sums within an epoch: the loss over observed labels, their number, steps without any, steps taken, seconds."""

    loss: float = 0.0
    observed: float = 0
    skipped: int = 0
    steps: int = 0
    seconds: float = 0.0

    def add(self, loss: float, observed: float, seconds: float) -> None:
        """Count a step with its mean loss."""
        self.loss += loss * observed
        self.observed += observed
        self.skipped += observed == 0
        self.steps += 1
        self.seconds += seconds

    def row(self, epoch: int, stage: int, lr: float, n_images: int) -> dict[str, Any]:
        """Return the epoch's row of the history, without its validation figures."""
        return {
            "epoch": epoch,
            "stage": stage,
            "lr": lr,
            "train_loss": self.loss / self.observed if self.observed else None,
            "seconds": self.seconds,
            "images_per_second": n_images / self.seconds if self.seconds else None,
            "skipped_steps": self.skipped,
        }


@dataclass
class RunState:
    """Counts and figures of a run; random numbers, learning rates and the order of images follow from them.

    `epoch` and `stage_epoch` count finished epochs; `losses` holds the training loss of every step with a label,
    `history` a row for every epoch, `best` the weights of the best epoch where one is kept; `seconds` is the time of
    all that is saved, over resumes.
    """

    epoch: int = 0
    step: int = 0
    stage: int = 0
    stage_epoch: int = 0
    best: dict[str, Tensor] | None = None
    epoch_sums: EpochSums = field(default_factory=EpochSums)
    losses: list[float] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    def count_seconds(self, since: float) -> float:
        """Add the seconds since a time of `time.monotonic`, and return the time now."""
        now = time.monotonic()
        self.seconds += now - since
        return now

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for a checkpoint."""
        losses = torch.tensor(self.losses, dtype=torch.float64)
        return vars(self) | {"epoch_sums": vars(self.epoch_sums), "losses": losses}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "RunState":
        """Return the state that a checkpoint holds beside weights."""
        own = {name: saved[name] for name in cls.__dataclass_fields__ if name in saved}  # earlier ones have no seconds
        return cls(**own | {"epoch_sums": EpochSums(**saved["epoch_sums"]), "losses": saved["losses"].tolist()})


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write `folder/step-N` whole and remove all but the last two, and what a killed writer left."""
    tensors: dict[str, Tensor] = {}
    plain = _pack(state, tensors)
    try:
        with staged_folder(folder / f"step-{step:08d}") as stage:
            save_file(tensors, stage / _TENSORS)
            write_json(stage / _STATE, plain)
    except (AimonkError, SafetensorError) as error:  # the latter is safetensors' own word for a full disk and the like
        kept = last_checkpoint(folder)
        last = f"the last good one is {kept.name}" if kept else "there is none before it"
        raise AimonkError(f"Cannot write the checkpoint of step {step} into {folder} ({error}); {last}") from error
    for old in [*sorted(folder.glob("step-*"))[:-_KEPT], *folder.glob(".step-*.tmp")]:
        shutil.rmtree(old, ignore_errors=True)


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint, or None where there is none."""
    return max(folder.glob("step-*"), default=None)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Return the state of the newest checkpoint, or None where there is none."""
    if (newest := last_checkpoint(folder)) is None:
        return None
    try:
        tensors = load_file(newest / _TENSORS)
    except (SafetensorError, OSError) as error:
        advice = "delete it to continue from the one before"
        raise AimonkError(f"The checkpoint {newest} is damaged ({error}); {advice}") from error
    state: dict[str, Any] = _unpack(read_json(newest / _STATE), tensors)
    return state


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Replace tensors by their number, and dicts by pair lists, because optimiser state has integer keys."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, dict):
        return {"pairs": [[key, _pack(item, tensors)] for key, item in value.items()]}
    return [_pack(item, tensors) for item in value] if isinstance(value, list | tuple) else value


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    return {key: _unpack(item, tensors) for key, item in value["pairs"]}
