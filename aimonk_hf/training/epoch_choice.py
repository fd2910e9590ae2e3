"""Decide by validation figures, as functions of the history alone, so that a resumed run decides the same."""

import math
from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

History = list[dict[str, Any]]


def best_epoch(history: History, metric: str) -> int | None:
    """Return the place in `history` of the best epoch: the lowest loss or the highest metric, the earliest of equals.

    Epochs where the metric is undefined are passed over; None where it always is.
    """
    values = [math.nan if (value := row.get(metric)) is None else value for row in history]
    defined = [place for place, value in enumerate(values) if not math.isnan(value)]
    choose = min if metric == "val_loss" else max
    return choose(defined, key=values.__getitem__, default=None)


def epochs_without_improvement(history: History, metric: str) -> int:
    """Return the number of epochs since the best one; 0 while the metric has always been undefined."""
    best = best_epoch(history, metric)
    return 0 if best is None else len(history) - 1 - best


def plateau_factor(history: History, factor: float, patience: int) -> float:
    """Return the factor on the learning rate that torch's ReduceLROnPlateau reaches after these validation losses."""
    if factor == 1:  # which torch refuses
        return 1.0
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = ReduceLROnPlateau(optimizer, factor=factor, patience=patience)
    for row in history:
        if (loss := row.get("val_loss")) is not None:
            scheduler.step(loss)
    return float(optimizer.param_groups[0]["lr"])
