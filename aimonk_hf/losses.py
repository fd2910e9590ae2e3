"""Losses on logits and labels with NaN for "missing": a missing label adds nothing, to the sum or to the count."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional


def masked_bce_with_logits(
    logits: Tensor, labels: Tensor, pos_weight: Tensor | None = None, normalizer: Tensor | float | None = None
) -> Tensor:
    """Return binary cross-entropy over the observed labels, a scalar in float32.

    `logits` [N, K]; `labels` [N, K] in {0, 1, NaN}; `pos_weight` [K] weighs the positives. The sum is divided by `normalizer`, by default the
    number of observed labels in this batch; under several processes pass (observed labels of all of them) / (number of processes), because
    their gradients are averaged. Without an observed label the loss is 0 and its gradient too.
    """
    observed = ~torch.isnan(labels)
    targets = torch.where(
        observed, labels, torch.zeros_like(labels)
    ).float()  # a NaN target would make NaN gradients even when masked later
    losses = functional.binary_cross_entropy_with_logits(logits.float(), targets, pos_weight=pos_weight, reduction="none")
    total = torch.where(observed, losses, torch.zeros_like(losses)).sum()
    if normalizer is None:
        normalizer = observed.sum().clamp(min=1)
    return total / normalizer


def positive_weights(labels: NDArray[np.float32], power: float = 1.0, cap: float = 100.0) -> NDArray[np.float32]:
    """Return the weight of positives per attribute [K]: (negatives / positives) ** power over observed labels [N, K], at most `cap`.

    `power` 1 balances fully, 0.5 by the square root, 0 not at all. An attribute without positives gets 1: there is nothing to weigh.
    """
    positives = (labels == 1).sum(axis=0)
    negatives = (labels == 0).sum(axis=0)
    ratio = np.where((positives > 0) & (negatives > 0), negatives / np.maximum(positives, 1), 1.0)
    return np.minimum(ratio**power, cap).astype(np.float32)
