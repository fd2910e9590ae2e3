"""One threshold per attribute, tuned without judging on the images that tuned it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from aimonk_hf.data.splits import split_folds
from aimonk_hf.errors import AimonkError
from aimonk_hf.evaluation.metrics import Bools, Floats, Ints
from aimonk_hf.evaluation.resampling import draw_weights
from aimonk_hf.modeling.config import DEFAULT_THRESHOLD

# With fewer positives than this a tuned threshold is mostly noise: its F1 curve has that many steps.
MIN_POSITIVES = 5


def decide(scores: Floats, thresholds: Floats | Sequence[float]) -> Bools:
    """Return decisions [N, K] for scores [N, K] and thresholds [K]."""
    return scores >= np.asarray(thresholds)


def tune_thresholds(labels: Floats, scores: Floats, objective: str = "f1") -> NDArray[np.float64]:
    """Return the best threshold per attribute [K] for labels [N, K] in {0, 1, NaN} and scores [N, K] in [0, 1].

    `objective`: "f1", "youden" (recall + specificity - 1), or "precision=X" (the highest recall at a precision of at
    least X). A threshold lies halfway between two neighbouring scores; of equally good ones the one in the widest gap
    wins. Attributes with fewer than 5 observed positives or negatives, and those that cannot reach the precision, keep
    0.5.
    """
    return tune_with_reasons(labels, scores, objective)[0]


def tune_with_reasons(
    labels: Floats, scores: Floats, objective: str = "f1"
) -> tuple[NDArray[np.float64], list[str | None]]:
    """Return the thresholds of `tune_thresholds`, and per attribute why it stayed at 0.5 (None where it was tuned)."""
    kind, target = parse_objective(objective)
    labels, scores = np.asarray(labels, dtype=float), np.asarray(scores, dtype=float)
    if labels.shape != scores.shape or labels.ndim != 2:
        raise AimonkError(f"Labels and scores must have one shape [N, K], found {labels.shape} and {scores.shape}")
    if not np.isfinite(scores[~np.isnan(labels)]).all():
        raise AimonkError("Scores must be finite where there is a label: leave out the rows of images without scores")
    found = [_best_threshold(labels[:, k], scores[:, k], kind, target) for k in range(labels.shape[1])]
    return np.array([threshold for threshold, _ in found]), [reason for _, reason in found]


def threshold_spread(
    labels: Floats, scores: Floats, objective: str, resamples: int = 200, seed: int = 0, groups: Ints | None = None
) -> NDArray[np.float64]:
    """Return per attribute the range [K, 2] of 95% of the thresholds tuned on resamples; NaN where none is tuned.

    Rows with one number in `groups` [N] are drawn together.
    """
    rng, groups = np.random.default_rng(seed), np.arange(len(labels)) if groups is None else groups
    tuned = np.empty((resamples, labels.shape[1]))
    for resample in range(resamples):
        rows = np.repeat(np.arange(len(labels)), draw_weights(groups, 1, rng)[0])
        tuned[resample] = tune_thresholds(labels[rows], scores[rows], objective)
    tuned[:, [reason is not None for reason in tune_with_reasons(labels, scores, objective)[1]]] = np.nan
    return np.quantile(tuned, [0.025, 0.975], axis=0).T


def cross_fit(
    labels: Floats, scores: Floats, objective: str = "f1", folds: int = 5, seed: int = 0, groups: Ints | None = None
) -> Bools:
    """Return decisions [N, K] in which each row is judged by thresholds tuned on the other folds only.

    Rows with one number in `groups` [N] share a fold; where all do, the thresholds are 0.5.
    """
    fold_of = split_folds(labels, folds, seed, groups)
    decisions = np.zeros(labels.shape, dtype=bool)
    for fold in np.unique(fold_of):
        held_out = fold_of == fold
        decisions[held_out] = decide(scores[held_out], tune_thresholds(labels[~held_out], scores[~held_out], objective))
    return decisions


def parse_objective(objective: str) -> tuple[str, float]:
    """Return "f1", "youden" or "precision", and the precision asked for; raises `AimonkError` for anything else."""
    kind, _, number = objective.partition("=")
    if kind in ("f1", "youden") and not number:
        return kind, 0.0
    try:
        target = float(number)
    except ValueError:
        target = -1.0
    if kind != "precision" or not 0 < target <= 1:
        raise AimonkError(f"unknown objective {objective!r}: use f1, youden, or precision=0.9")
    return kind, target


def _best_threshold(labels: Floats, scores: Floats, kind: str, target: float) -> tuple[float, str | None]:
    observed = ~np.isnan(labels)
    truth, scores = labels[observed] == 1, scores[observed]
    n_positive, n_negative = int(truth.sum()), int((~truth).sum())
    if min(n_positive, n_negative) < MIN_POSITIVES:
        return DEFAULT_THRESHOLD, f"fewer than {MIN_POSITIVES} positives or negatives"
    # not scikit-learn's curves, whose checks of the input would be most of the work of many thousand resamples
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    cut = np.flatnonzero(np.diff(ranked, append=-1))  # the last row of each run of equal scores
    true_positive, predicted = np.cumsum(truth[order])[cut], cut + 1
    if kind == "f1":
        quality = 2 * true_positive / (predicted + n_positive)
    elif kind == "youden":
        quality = true_positive / n_positive - (predicted - true_positive) / n_negative
    else:
        quality = np.where(true_positive / predicted >= target, true_positive / n_positive, -1.0)
        if quality.max() < 0:
            return DEFAULT_THRESHOLD, f"no threshold reaches a precision of {target:g}"
    above = ranked[cut]
    below = np.append(above[1:], 0.0)
    widest = np.argmax(np.where(quality >= quality.max() - 1e-12, above - below, -1.0))
    return float((above[widest] + below[widest]) / 2), None
