"""Calibration: scores that mean what they say, by one scale and shift per attribute, folded into the classifier so that every reader gets them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.data import resolve_data_config
from torch import nn

from aimonk_hf.data.splits import split_folds
from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling.backbones import heads

Floats = NDArray[np.floating[Any]]

N_BINS = 10
# Two numbers are fitted; with fewer labels of either kind than this they would follow chance.
MIN_OF_EACH = 10
_FOLDS = 5
_SMALLEST_SCALE = 0.05  # below it the ranking would be lost to rounding, at or below zero it would turn round


@dataclass
class Calibration:
    """Per attribute: logits become `scale` * logits + `shift` [K]; `reasons` says why one was left alone (None where it was not).

    `held_out` [N, K] are the logits of the same images, each scaled by the fit to the other folds; `before` and `after` are the expected
    calibration errors [K] without and with that.
    """

    scale: Floats
    shift: Floats
    held_out: Floats
    before: Floats
    after: Floats
    reasons: list[str | None]

    def to_dict(self, attributes: list[str]) -> dict[str, Any]:
        """Return what metrics.json holds of it, by attribute."""
        return {
            name: {
                "scale": float(self.scale[k]),
                "shift": float(self.shift[k]),
                "ece_before": float(self.before[k]),
                "ece_after": float(self.after[k]),
                "left_alone": self.reasons[k],
            }
            for k, name in enumerate(attributes)
        }


def expected_calibration_error(labels: Floats, scores: Floats) -> Floats:
    """Return per attribute [K] the mean gap between score and share of positives over ten equal bins of the score, weighted by their size.

    Labels [N, K] in {0, 1, NaN}, scores [N, K] in [0, 1]; NaN where nothing is observed (Guo et al., ICML 2017, for one sigmoid).
    """
    result = np.full(labels.shape[1], np.nan)
    for k in range(labels.shape[1]):
        observed = ~np.isnan(labels[:, k])
        if observed.any():
            mean_score, share, size = reliability(labels[observed, k], scores[observed, k])
            filled = size > 0
            result[k] = np.abs(mean_score - share)[filled] @ size[filled] / size.sum()
    return result


def reliability(truth: Floats, scores: Floats) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Return mean score, share of positives and size of each of ten bins for one attribute's observed labels [N]; NaN where a bin is empty."""
    bins = np.minimum((scores * N_BINS).astype(int), N_BINS - 1)
    size = np.bincount(bins, minlength=N_BINS)
    sums = np.stack([np.bincount(bins, weights=values, minlength=N_BINS) for values in (scores, truth)])
    mean = np.divide(sums, size, out=np.full(sums.shape, np.nan), where=size > 0)
    return mean[0], mean[1], size


def fit_scaling(truth: Floats, logits: Floats) -> tuple[float, float]:
    """Return the scale and shift that make sigmoid(scale * logits + shift) most likely for observed labels [N] (Platt, 1999).

    His softened targets and a pull of one observation's weight towards scale 1 keep separable data finite.
    """
    n_positive = float((truth == 1).sum())
    target = np.where(truth == 1, (n_positive + 1) / (n_positive + 2), 1 / (len(truth) - n_positive + 2))

    def cost(point: Floats) -> float:
        values = point[0] * logits + point[1]
        return float((np.logaddexp(0, values) - target * values).sum() + (point[0] - 1) ** 2 / 2)

    point = np.array([1.0, 0.0])
    for _ in range(100):
        score = to_scores(point[0] * logits + point[1])
        error, weight = score - target, score * (1 - score)
        gradient = np.array([error @ logits + (point[0] - 1), error.sum()])
        crossed = weight @ logits
        curvature = np.array([[weight @ logits**2 + 1, crossed], [crossed, weight.sum() + 1e-9]])
        step = np.linalg.solve(curvature, gradient)
        while (
            cost(point - step) > cost(point) and np.abs(step).max() > 1e-9
        ):  # Newton overshoots where scores are extreme
            step = step / 2
        point = point - step
        if np.abs(step).max() < 1e-8:
            break
    return float(point[0]), float(point[1])


def calibrate(labels: Floats, logits: Floats, seed: int = 0, groups: NDArray[np.int64] | None = None) -> Calibration:
    """Fit scale and shift per attribute to labels and logits [N, K], and leave alone what that does not help on images that did not fit it.

    Help means a lower log loss and no higher calibration error, both over five folds each judged by the fit to the other four. Images with
    one number in `groups` [N] share a fold.
    """
    n_attributes = labels.shape[1]
    before = expected_calibration_error(labels, to_scores(logits))
    found = Calibration(np.ones(n_attributes), np.zeros(n_attributes), logits.copy(), before, before, [])
    fold_of = split_folds(labels, _FOLDS, seed, groups)
    for k in range(n_attributes):
        observed = ~np.isnan(labels[:, k])
        truth, own = labels[observed, k], logits[observed, k]
        reason, fitted = _worth_it(truth, own, fold_of[observed])
        if reason is None:
            found.scale[k], found.shift[k] = fit_scaling(truth, own)
        if found.scale[k] < _SMALLEST_SCALE:
            found.scale[k], found.shift[k], reason = 1.0, 0.0, "its scores do not rise with the share of positives"
        if reason is None:
            found.held_out[observed, k] = fitted
        found.reasons.append(reason)
    found.after = expected_calibration_error(labels, to_scores(found.held_out))
    return found


def _worth_it(truth: Floats, logits: Floats, fold_of: NDArray[np.int64]) -> tuple[str | None, Floats]:
    """Return why an attribute is better left alone, or None, and its logits [N], each scaled by the fit to the other folds."""
    fitted = logits.copy()
    if min((truth == 1).sum(), (truth == 0).sum()) < MIN_OF_EACH:
        return f"fewer than {MIN_OF_EACH} positives or negatives", fitted
    for fold in np.unique(fold_of):
        held_out = fold_of == fold
        scale, shift = fit_scaling(truth[~held_out], logits[~held_out])
        fitted[held_out] = scale * logits[held_out] + shift
    after = float(expected_calibration_error(truth[:, None], to_scores(fitted)[:, None])[0])
    before = float(expected_calibration_error(truth[:, None], to_scores(logits)[:, None])[0])
    if _log_loss(truth, fitted) >= _log_loss(truth, logits) or after > before:
        return "it does not help on images that did not fit it", fitted
    return None, fitted


def fold_into_classifier(network: nn.Module, scale: Floats, shift: Floats) -> None:
    """Multiply the logits of a timm network in eval mode by `scale` [K] and move them by `shift` [K], through its classifier, in place.

    Several heads whose outputs are averaged are all changed. Raises `AimonkError`, and changes nothing, where the logits would not follow.
    """
    layers = [layer for head in heads(network) for layer in head.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    last = [
        (layer.weight, layer.bias) for layer in layers if len(layer.weight) == len(scale) and layer.bias is not None
    ]
    before = [(weight.clone(), bias.clone()) for weight, bias in last]
    with torch.no_grad():
        pixels = torch.randn(
            2, *resolve_data_config(model=network)["input_size"], generator=torch.Generator().manual_seed(0)
        )
        pixels = pixels.to(next(network.parameters()))
        factor, offset = (torch.as_tensor(values).to(pixels) for values in (scale, shift))
        wanted = network(pixels) * factor + offset
        for weight, bias in last:
            weight.mul_(factor.view(-1, *[1] * (weight.dim() - 1)))
            bias.mul_(factor).add_(offset)
        if not torch.allclose(network(pixels), wanted, rtol=1e-3, atol=1e-3):
            for (weight, bias), (old_weight, old_bias) in zip(last, before, strict=True):
                weight.copy_(old_weight)
                bias.copy_(old_bias)
            raise AimonkError(
                f"the head of {type(network).__name__} is not linear layers with a bias: its scores cannot be calibrated"
            )


def to_logits(scores: Floats) -> Floats:
    """Return the logits of scores [N, K]; those that 32 bits have rounded to 0 or 1 come back as about -+16."""
    clipped = np.clip(scores, 1e-7, 1 - 1e-7)
    return np.log(clipped / (1 - clipped))


def to_scores(logits: Floats) -> NDArray[np.float64]:
    """Return the scores of logits [N, K]."""
    from scipy.special import expit

    values: NDArray[np.float64] = expit(logits)
    return values


def _log_loss(truth: Floats, logits: Floats) -> float:
    return float(np.mean(np.logaddexp(0, logits) - truth * logits))
