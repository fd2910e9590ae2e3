"""Hooks for other people's code."""

from typing import Any


class TrainCallback:
    """Follow a run; override the methods that you need. Every process calls them."""

    def on_step(self, step: int, loss: float | None, lr: float) -> None:
        """Take the number of finished steps, the step's training loss (None without a label) and its learning rate."""

    def on_epoch(self, row: dict[str, Any]) -> None:
        """Take the epoch's row of the history, with its validation figures where there are validation images."""
