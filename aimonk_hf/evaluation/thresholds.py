"""One threshold per attribute, tuned without judging on the images that tuned it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from aimonk_hf.data.splits import split_folds
from aimonk_hf.errors import AimonkError
from aimonk_hf.evaluation.metrics import Bools, Floats, Ints, to_logits
from aimonk_hf.evaluation.resampling import draw_weights
from aimonk_hf.modeling.config import DEFAULT_THRESHOLD

# With fewer positives than this a tuned threshold is mostly noise: its F1 curve has that many steps.
MIN_POSITIVES = 5
# of these many bootstrap resamples, fewer where there are more than 10,000 images
MOST_RESAMPLES, FEWEST_RESAMPLES = 100, 20
_BLOCK = 4_000_000  # cells of resamples x images at a time


@dataclass
class Tuned:
    """Thresholds [K]; `spread` [K, 2] has 95% of those of resamples, `reasons` why one stayed at 0.5, or None."""

    thresholds: NDArray[np.float64]
    spread: NDArray[np.float64]
    reasons: list[str | None]


def decide(scores: Floats, thresholds: Floats | Sequence[float]) -> Bools:
    """Return decisions [N, K] for scores [N, K] and thresholds [K]."""
    return scores >= np.asarray(thresholds)


def tune_thresholds(labels: Floats, scores: Floats, objective: str = "f1") -> NDArray[np.float64]:
    """Return the best threshold per attribute [K] for labels [N, K] in {0, 1, NaN} and scores [N, K] in [0, 1].

    `objective`: "f1", "youden" (recall + specificity - 1), or "precision=X" (the highest recall at a precision of at
    least X). A threshold is halfway between two neighbouring scores; of equally good ones the one in the widest gap
    wins. For "f1" and "youden" it is the mean over bootstrap resamples, in logits, because the best one of few
    images follows chance (bagging, Breiman 1996). Attributes with fewer than 5 observed positives or negatives, and
    those that cannot reach the precision, keep 0.5.
    """
    return tune(labels, scores, objective).thresholds


def tune(labels: Floats, scores: Floats, objective: str = "f1", seed: int = 0, groups: Ints | None = None) -> Tuned:
    """Return the thresholds of `tune_thresholds` with their spread, resampling the `groups` [N] of rows."""
    kind, target = parse_objective(objective)
    labels, scores = np.asarray(labels, dtype=float), np.asarray(scores, dtype=float)
    if labels.shape != scores.shape or labels.ndim != 2:
        raise AimonkError(f"Labels and scores must have one shape [N, K], found {labels.shape} and {scores.shape}")
    if not np.isfinite(scores[~np.isnan(labels)]).all():
        raise AimonkError("Scores must be finite where there is a label: leave out the rows of images without scores")
    groups, n_attributes = np.arange(len(labels)) if groups is None else groups, labels.shape[1]
    found = Tuned(np.full(n_attributes, DEFAULT_THRESHOLD), np.full((n_attributes, 2), np.nan), [None] * n_attributes)
    for k in range(n_attributes):
        observed = ~np.isnan(labels[:, k])
        truth, own = labels[observed, k] == 1, scores[observed, k]
        if min(truth.sum(), (~truth).sum()) < MIN_POSITIVES:
            found.reasons[k] = f"fewer than {MIN_POSITIVES} positives or negatives"
            continue
        best = _best_thresholds(truth, own, np.ones((1, len(truth)), np.uint8), kind, target)
        if np.isnan(best[0]):
            found.reasons[k] = f"no threshold reaches a precision of {target:g}"
            continue
        n_resamples = min(MOST_RESAMPLES, max(FEWEST_RESAMPLES, 1_000_000 // len(truth)))
        weights = draw_weights(groups[observed], n_resamples, np.random.default_rng(seed))
        drawn = np.nan_to_num(_best_thresholds(truth, own, weights, kind, target), nan=DEFAULT_THRESHOLD)
        found.thresholds[k] = best[0] if kind == "precision" else expit(to_logits(drawn).mean())
        found.spread[k] = np.quantile(drawn, [0.025, 0.975])
    return found


def cross_fit(
    labels: Floats, scores: Floats, objective: str = "f1", seed: int = 0, groups: Ints | None = None
) -> Bools:
    """Return decisions [N, K] in which each row is judged by thresholds tuned on the other four of five folds only.

    Rows with one number in `groups` [N] share a fold; where all do, the thresholds are 0.5.
    """
    groups = np.arange(len(labels)) if groups is None else groups
    fold_of = split_folds(labels, 5, seed, groups)
    decisions = np.zeros(labels.shape, dtype=bool)
    for fold in np.unique(fold_of):
        inside, held_out = fold_of != fold, fold_of == fold
        tuned = tune(labels[inside], scores[inside], objective, seed, groups[inside])
        decisions[held_out] = decide(scores[held_out], tuned.thresholds)
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
        raise AimonkError(f"Unknown objective {objective!r}: use f1, youden, or precision=0.9")
    return kind, target


def _best_thresholds(
    truth: Bools, scores: Floats, weights: NDArray[np.uint8], kind: str, target: float
) -> NDArray[np.float64]:
    """Return the best threshold [B] of each weighting [B, N] of labels and scores [N]; NaN where there is none.

    Rows of weight 0 count as absent. All weightings at once, because scikit-learn's curves would sort each anew.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, truth = scores[order], truth[order]
    last = np.flatnonzero(np.diff(ranked, append=-1))  # the last row of each run of equal scores
    found = [
        _best_cuts(ranked[last], truth, block[:, order], last, kind, target)
        for block in np.array_split(weights, max(1, weights.size // _BLOCK))
    ]
    return np.concatenate(found)


def _best_cuts(
    cuts: Floats, truth: Bools, weights: NDArray[np.uint8], last: Ints, kind: str, target: float
) -> NDArray[np.float64]:
    """Return the middle of the widest gap below one of the best `cuts` [M], which fall after the rows `last` [M]."""
    hits, predicted = (np.cumsum(own, axis=1, dtype=np.int64)[:, last] for own in (weights * truth, weights))
    n_positive = hits[:, -1:]
    n_negative = predicted[:, -1:] - n_positive
    with np.errstate(divide="ignore", invalid="ignore"):
        if kind == "f1":
            quality = 2 * hits / (predicted + n_positive)
        elif kind == "youden":
            quality = hits / n_positive - (predicted - hits) / n_negative
        else:
            quality = np.where(hits / predicted >= target, hits / n_positive, np.nan)
    is_there = np.diff(predicted, axis=1, prepend=0) > 0
    quality = np.where(is_there & ~np.isnan(quality), quality, -1.0)
    highest = quality.max(axis=1, keepdims=True)
    # the next lower score that is there; 0 below the last one
    below = np.maximum.accumulate(np.where(is_there, cuts, 0.0)[:, ::-1], axis=1)[:, ::-1]
    below = np.concatenate([below[:, 1:], np.zeros((len(below), 1))], axis=1)
    widest = np.argmax(np.where(quality >= highest - 1e-12, cuts - below, -1.0), axis=1)
    middle = (cuts[widest] + below[np.arange(len(below)), widest]) / 2
    enough = np.minimum(n_positive, n_negative)[:, 0] >= MIN_POSITIVES
    return np.where(enough & (highest[:, 0] >= 0), middle, np.nan)
