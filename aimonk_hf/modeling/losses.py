"""Losses on logits and labels with NaN for "missing": a missing label adds nothing, to the sum or to the count.

All take logits [N, K], labels [N, K] in [0, 1] or NaN (mixed and smoothed labels lie between), and `pos_weight` [K], the weight of the
positive part, and return a scalar in float32. The sum is divided by `normalizer`, by default the number of observed labels in this batch;
under several processes pass (observed labels of all of them) / (number of processes), because their gradients are averaged. Without an
observed label the loss is 0 and its gradient too.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Normalizer = Tensor | float | None
Loss = Callable[[Tensor, Tensor, Tensor | None, Normalizer], Tensor]


def masked_bce_with_logits(
    logits: Tensor, labels: Tensor, pos_weight: Tensor | None = None, normalizer: Normalizer = None
) -> Tensor:
    """Return binary cross-entropy over the observed labels."""
    targets = _defined(labels)
    losses = functional.binary_cross_entropy_with_logits(
        logits.float(), targets, pos_weight=pos_weight, reduction="none"
    )
    return _masked_mean(losses, labels, normalizer)


def masked_focal_loss(
    logits: Tensor,
    labels: Tensor,
    pos_weight: Tensor | None = None,
    normalizer: Normalizer = None,
    *,
    gamma: float = 2.0,
) -> Tensor:
    """Return the focal loss (Lin et al., ICCV 2017): cross-entropy times (1 - probability of the label) ** gamma."""
    return masked_asymmetric_loss(
        logits, labels, pos_weight, normalizer, gamma_positive=gamma, gamma_negative=gamma, clip=0.0
    )


def masked_asymmetric_loss(
    logits: Tensor,
    labels: Tensor,
    pos_weight: Tensor | None = None,
    normalizer: Normalizer = None,
    *,
    gamma_positive: float = 1.0,
    gamma_negative: float = 4.0,
    clip: float = 0.05,
) -> Tensor:
    """Return the asymmetric loss (Ben-Baruch et al., ICCV 2021).

    A focal loss with an exponent for each class; negatives whose score is below `clip` cost nothing and the others as if their score were
    lower by it.
    """
    targets = _defined(labels)
    logits = logits.float()
    log_positive, score = functional.logsigmoid(logits), logits.sigmoid()
    if clip:
        shifted = (score - clip).clamp(min=0)
        log_negative = torch.log1p(
            -shifted.clamp(max=1 - 1e-7)
        )  # the clip keeps the score below 1 - clip, but for rounding
    else:
        shifted, log_negative = score, functional.logsigmoid(-logits)
    positive = targets * _power(1 - score, gamma_positive) * log_positive
    if pos_weight is not None:
        positive = positive * pos_weight
    negative = (1 - targets) * _power(shifted, gamma_negative) * log_negative
    return _masked_mean(-(positive + negative), labels, normalizer)


def smooth_labels(labels: Tensor, smoothing: float) -> Tensor:
    """Move labels [N, K] from 1 to 1 - smoothing/2 and from 0 to smoothing/2; missing ones stay missing."""
    return labels * (1 - smoothing) + smoothing / 2


def _defined(labels: Tensor) -> Tensor:
    """Put 0 in the place of NaN, which would make NaN gradients even where it is masked later."""
    return torch.where(torch.isnan(labels), torch.zeros_like(labels), labels).float()


def _power(base: Tensor, exponent: float) -> Tensor:
    # the gradient of x ** gamma at 0 is infinite for gamma below 1
    return torch.ones_like(base) if exponent == 0 else base.clamp(min=1e-8) ** exponent


def _masked_mean(losses: Tensor, labels: Tensor, normalizer: Normalizer) -> Tensor:
    observed = ~torch.isnan(labels)
    total = torch.where(observed, losses, torch.zeros_like(losses)).sum()
    return total / (observed.sum().clamp(min=1) if normalizer is None else normalizer)


def positive_weights(
    labels: NDArray[np.float32],
    power: float = 1.0,
    cap: float = 100.0,
    negatives: str = "observed",
    image_weights: NDArray[np.float64] | None = None,
) -> NDArray[np.float32]:
    """Return the weight of positives per attribute [K]: (negatives / positives) ** power over labels [N, K], at most `cap`.

    `power` 1 balances fully, 0.5 by the square root, 0 not at all. With `negatives` "all-rows" everything but the positives counts as
    negative, missing labels too. `image_weights` [N] counts images as often as they are drawn. An attribute without positives or without
    negatives gets 1: there is nothing to weigh.
    """
    weights = np.ones(len(labels)) if image_weights is None else image_weights
    positives = weights @ (labels == 1)
    others = weights @ ((labels == 0) if negatives == "observed" else (labels != 1))
    ratio = np.where((positives > 0) & (others > 0), others / np.where(positives > 0, positives, 1), 1.0)
    return np.minimum(ratio**power, cap).astype(np.float32)
