"""Progress of a run between two steps."""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from aimonk_hf.evaluation.metrics import nan_to_none


@dataclass
class EpochSums:
    """Sums within an epoch: the loss over observed labels, their number, steps without any, steps taken, seconds."""

    loss: float = 0.0
    observed: int = 0
    skipped: int = 0
    steps: int = 0
    seconds: float = 0.0

    def add(self, loss: float, observed: int, seconds: float) -> None:
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
    `history` a row for every epoch, `best` the weights of the best epoch where one is kept.
    """

    epoch: int = 0
    step: int = 0
    stage: int = 0
    stage_epoch: int = 0
    epoch_sums: EpochSums = field(default_factory=EpochSums)
    losses: list[float] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Tensor] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for a checkpoint."""
        plain = {name: getattr(self, name) for name in ("epoch", "step", "stage", "stage_epoch", "best")}
        return plain | {
            "epoch_sums": asdict(self.epoch_sums),
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "history": nan_to_none(self.history),
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "RunState":
        """Return the state that a checkpoint holds beside weights."""
        plain = {name: saved[name] for name in ("epoch", "step", "stage", "stage_epoch", "history", "best")}
        return cls(**plain, epoch_sums=EpochSums(**saved["epoch_sums"]), losses=saved["losses"].tolist())
