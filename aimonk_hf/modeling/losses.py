"""Compute losses on logits and labels with NaN for "missing": a missing label adds nothing, to sum or count.

All take logits [N, K], labels [N, K] in [0, 1] or NaN, and `pos_weight` [K], the weight of the positive part, and
return a scalar in float32. The sum is divided by `normalizer`, by default the number of observed labels in this
batch; several processes pass (observed labels of all) / (number of processes), because their gradients are averaged.
Without an observed label the loss is 0 and its gradient too.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

Normalizer = Tensor | float | None
Loss = Callable[[Tensor, Tensor, Tensor | None, Normalizer], Tensor]


def masked_bce_with_logits(
    logits: Tensor, labels: Tensor, pos_weight: Tensor | None = None, normalizer: Normalizer = None
) -> Tensor:
    """Return binary cross-entropy over the observed labels."""
    targets = _defined(labels)
    losses = binary_cross_entropy_with_logits(logits.float(), targets, pos_weight=pos_weight, reduction="none")
    return _masked_mean(losses, labels, normalizer)


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
    """Return the asymmetric loss (Ben-Baruch et al., ICCV 2021): a focal loss with an exponent for each class.

    The scores of negatives count as lower by `clip`, and those below it as 0. With equal exponents and no clip it is
    the focal loss (Lin et al., ICCV 2017).
    """
    targets, logits = _defined(labels), logits.float()
    score = logits.sigmoid()
    shifted, log_negative = score, logsigmoid(-logits)
    if clip:
        shifted = (score - clip).clamp(min=0)
        log_negative = torch.log1p(-shifted.clamp(max=1 - 1e-7))  # below 1 - clip, but for rounding
    positive = targets * _power(1 - score, gamma_positive) * logsigmoid(logits)
    if pos_weight is not None:
        positive = positive * pos_weight
    negative = (1 - targets) * _power(shifted, gamma_negative) * log_negative
    return _masked_mean(-(positive + negative), labels, normalizer)


def with_soft_targets(loss: Loss, weight: float) -> Loss:
    """Return a loss of targets [N, 2K]: labels, and the soft targets of a teacher, whose BCE is added with `weight`.

    NaN is "missing" in both.
    """

    def both(
        logits: Tensor, targets: Tensor, pos_weight: Tensor | None = None, normalizer: Normalizer = None
    ) -> Tensor:
        labels, soft = targets.chunk(2, dim=1)
        distilled = masked_bce_with_logits(logits, soft, pos_weight, normalizer)
        return loss(logits, labels, pos_weight, normalizer) + weight * distilled

    return both


def smooth_labels(labels: Tensor, smoothing: float) -> Tensor:
    """Move labels [N, K] from 1 to 1 - smoothing/2 and from 0 to smoothing/2; missing ones stay missing."""
    return labels * (1 - smoothing) + smoothing / 2


def positive_weights(
    labels: NDArray[np.float32],
    power: float = 1.0,
    cap: float = 100.0,
    negatives: str = "observed",
    image_weights: NDArray[np.float64] | None = None,
) -> NDArray[np.float32]:
    """Return the weight of positives [K]: (negatives / positives) ** power over labels [N, K], at most `cap`.

    With `negatives` "all-rows" missing labels count as negative. `image_weights` [N] counts images as often as they
    are drawn. An attribute with one class only gets 1.
    """
    weights = np.ones(len(labels)) if image_weights is None else image_weights
    positives = weights @ (labels == 1)
    others = weights @ ((labels == 0) if negatives == "observed" else (labels != 1))
    ratio = np.where((positives > 0) & (others > 0), others / np.where(positives > 0, positives, 1), 1.0)
    return np.minimum(ratio**power, cap).astype(np.float32)


def _defined(labels: Tensor) -> Tensor:
    """Put 0 in the place of NaN, whose gradient would stay NaN even where it is masked later."""
    return labels.nan_to_num(0.0).float()


def _power(base: Tensor, exponent: float) -> Tensor:
    # the gradient of x ** gamma at 0 is infinite for gamma below 1
    return torch.ones_like(base) if exponent == 0 else base.clamp(min=1e-8) ** exponent


def _masked_mean(losses: Tensor, labels: Tensor, normalizer: Normalizer) -> Tensor:
    observed = ~labels.isnan()
    return losses.where(observed, 0.0).sum() / (observed.sum().clamp(min=1) if normalizer is None else normalizer)
