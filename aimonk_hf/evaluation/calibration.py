"""Calibration of scores by one scale and shift of the logits per attribute, folded into the classifier's weights."""

from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit
from timm.data import resolve_data_config
from torch import nn

from aimonk_hf.data.splits import split_folds
from aimonk_hf.errors import AimonkError
from aimonk_hf.evaluation.metrics import Floats, Ints
from aimonk_hf.modeling.backbones import classifier_layers

N_BINS = 10
# Two numbers are fitted; with fewer labels of either kind than this they would follow chance.
MIN_OF_EACH = 10
_FOLDS = 5
_SMALLEST_SCALE = 0.05  # below it the ranking would be lost to rounding, at or below zero it would turn round


@dataclass
class Calibration:
    """Per attribute: logits become `scale` * logits + `shift` [K]; `reasons` says why one was left alone (else None).

    `held_out` [N, K] are the logits of the same images, each scaled by the fit to the other folds; `before` and `after`
    are the expected calibration errors [K] without and with that.
    """

    scale: Floats
    shift: Floats
    held_out: Floats
    before: Floats
    after: Floats
    reasons: list[str | None]


def expected_calibration_error(labels: Floats, scores: Floats) -> Floats:
    """Return per attribute [K] the mean gap between score and share of positives over ten bins, weighted by their size.

    Labels [N, K] in {0, 1, NaN}, scores [N, K] in [0, 1]; NaN where nothing is observed (Guo et al., ICML 2017, for one
    sigmoid).
    """
    result = np.full(labels.shape[1], np.nan)
    for k in range(labels.shape[1]):
        observed = ~np.isnan(labels[:, k])
        if observed.any():
            mean_score, share, size = reliability(labels[observed, k], scores[observed, k])
            result[k] = np.nansum(np.abs(mean_score - share) * size) / size.sum()
    return result


def reliability(truth: Floats, scores: Floats) -> tuple[Floats, Floats, Ints]:
    """Return mean score, share of positives and size of each of ten equal bins of the scores [N]; NaN in empty bins."""
    bins = np.minimum((scores * N_BINS).astype(int), N_BINS - 1)
    size = np.bincount(bins, minlength=N_BINS)
    sums = np.stack([np.bincount(bins, weights=values, minlength=N_BINS) for values in (scores, truth)])
    mean = np.divide(sums, size, out=np.full(sums.shape, np.nan), where=size > 0)
    return mean[0], mean[1], size


def fit_scaling(truth: Floats, logits: Floats) -> tuple[float, float]:
    """Return the scale and shift that make sigmoid(scale * logits + shift) most likely for labels [N] (Platt, 1999).

    His softened targets and a pull of one observation's weight towards scale 1 keep separable data finite.
    """
    n_positive = float((truth == 1).sum())
    target = np.where(truth == 1, (n_positive + 1) / (n_positive + 2), 1 / (len(truth) - n_positive + 2))

    def cost_and_gradient(point: Floats) -> tuple[float, Floats]:
        scaled = point[0] * logits + point[1]
        error, pull = expit(scaled) - target, point[0] - 1
        return _log_loss(target, scaled).sum() + pull**2 / 2, np.array([error @ logits + pull, error.sum()])

    scale, shift = minimize(cost_and_gradient, [1.0, 0.0], jac=True, method="L-BFGS-B", tol=1e-12).x
    return float(scale), float(shift)


def calibrate(labels: Floats, logits: Floats, seed: int = 0, groups: Ints | None = None) -> Calibration:
    """Fit scale and shift per attribute to labels and logits [N, K]; leave those alone that this does not help.

    Help means a lower log loss and no higher calibration error, both over five folds each judged by the fit to the
    other four. Images with one number in `groups` [N] share a fold.
    """
    n_attributes = labels.shape[1]
    before = expected_calibration_error(labels, expit(logits))
    found = Calibration(np.ones(n_attributes), np.zeros(n_attributes), logits.copy(), before, before, [])
    fold_of = split_folds(labels, _FOLDS, seed, groups)
    for k in range(n_attributes):
        observed = ~np.isnan(labels[:, k])
        truth, own, folds = labels[observed, k], logits[observed, k], fold_of[observed]
        if min((truth == 1).sum(), (truth == 0).sum()) < MIN_OF_EACH:
            found.reasons.append(f"fewer than {MIN_OF_EACH} positives or negatives")
            continue
        held_out = own.copy()
        for fold in np.unique(folds):
            scale, shift = fit_scaling(truth[folds != fold], own[folds != fold])
            held_out[folds == fold] = scale * own[folds == fold] + shift
        error = expected_calibration_error(truth[:, None], expit(held_out[:, None]))[0]
        scale, shift = fit_scaling(truth, own)
        if _log_loss(truth, held_out).mean() >= _log_loss(truth, own).mean() or error > before[k]:
            found.reasons.append("it does not help on images that did not fit it")
        elif scale < _SMALLEST_SCALE:
            found.reasons.append("its scores do not rise with the share of positives")
        else:
            found.scale[k], found.shift[k], found.held_out[observed, k] = scale, shift, held_out
            found.reasons.append(None)
    found.after = expected_calibration_error(labels, expit(found.held_out))
    return found


def calibrate_model(network: nn.Module, labels: Floats, logits: Floats, seed: int, groups: Ints) -> Calibration:
    """Calibrate and fold it into the classifier; where the head cannot take it, all attributes are left alone."""
    found = calibrate(labels, logits, seed, groups)
    try:
        if None in found.reasons:
            fold_into_classifier(network, found.scale, found.shift)
    except AimonkError as error:
        n = labels.shape[1]
        return Calibration(np.ones(n), np.zeros(n), logits, found.before, found.before, [str(error)] * n)
    return found


def fold_into_classifier(network: nn.Module, scale: Floats, shift: Floats) -> None:
    """Multiply the logits of a timm network in eval mode by `scale` [K] and add `shift` [K], in its classifier.

    Several heads whose outputs are averaged are all changed. Raises `AimonkError`, and changes nothing, where the
    logits would not follow.
    """
    last = [layer for layer in classifier_layers(network, len(scale)) if layer.bias is not None]
    before = [deepcopy(layer.state_dict()) for layer in last]
    size = resolve_data_config(model=network)["input_size"]
    with torch.no_grad():
        pixels = torch.randn(2, *size, generator=torch.Generator().manual_seed(0)).to(next(network.parameters()))
        factor, offset = (torch.as_tensor(values).to(pixels) for values in (scale, shift))
        wanted = network(pixels) * factor + offset
        for layer in last:
            layer.weight.mul_(factor.view(-1, *[1] * (layer.weight.dim() - 1)))
            layer.get_parameter("bias").mul_(factor).add_(offset)
        tolerance = 1e-3 if pixels.device.type == "cpu" else 1e-2  # TF32
        follows = torch.allclose(network(pixels), wanted, rtol=tolerance, atol=tolerance)
    if not follows:
        for layer, state in zip(last, before, strict=True):
            layer.load_state_dict(state)
        name = type(network).__name__
        raise AimonkError(f"The head of {name} is not linear layers with a bias: its scores cannot be calibrated")


def _log_loss(target: Floats, logits: Floats) -> Floats:
    return np.logaddexp(0, logits) - target * logits
