"""What adds up within an epoch, so that a run killed in its middle goes on with the sums."""

from dataclasses import dataclass
from typing import Any


@dataclass
class EpochSums:
    """The loss summed over observed labels, their number, steps without any, steps taken, and seconds."""

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
