"""Losses of optimiser steps, read from an accelerator some steps later, so that no step waits for the device."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from aimonk_hf.data.images import shown_name
from aimonk_hf.errors import NotFiniteError


@dataclass
class TakenStep:
    """A step: its number, learning rate and images, the observed labels of all processes, and its mean loss.

    `on_device` is the loss as a scalar tensor; `loss` is None until it is read, and where no label was observed.
    """

    number: int
    lr: float
    images: list[str]
    observed: float
    on_device: Tensor
    loss: float | None = None


def steps_between_reads(device: torch.device) -> int:
    """Return after how many steps losses are read; a CPU computes each before the next one anyway."""
    return 1 if device.type == "cpu" else 10


def read_losses(steps: list[TakenStep]) -> None:
    """Read the losses of steps in one transfer; raise `NotFiniteError` for the first that is infinite or NaN."""
    for step, loss in zip(steps, torch.stack([step.on_device for step in steps]).tolist(), strict=True):
        if not math.isfinite(loss):
            read = [shown_name(name) for name in step.images]
            told = ", ".join(read[:5]) + (f" and {len(read) - 5} more" if len(read) > 5 else "")
            number = step.number - 1
            raise NotFiniteError(f"The loss of step {number} is {loss}: try a lower --lr; the batch was {told}")
        step.loss = loss if step.observed else None
