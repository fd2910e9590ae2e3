"""95% intervals by the bootstrap over images, or over groups of duplicates; all attributes share the resamples, so averages get intervals too."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]

METRICS = ("auroc", "average_precision", "f1")
LEVEL = 0.95
# Below this many positives or negatives the resamples tell more about chance than about the model; there is no interval then.
MIN_OF_EACH = 5
_BLOCK_BYTES = 5 << 20  # of weights: so many stay in the processor's cache
_MOST_IN_BLOCK, _FEWEST_IN_BLOCK = 128, 16  # resamples at a time


def bootstrap_intervals(
    labels: Floats,
    scores: Floats,
    decisions: Bools,
    n_resamples: int = 1000,
    groups: NDArray[np.int64] | None = None,
    seed: int = 0,
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Return, by metric, the intervals of each attribute [K, 2] and of their mean [2], for labels, scores and decisions [N, K].

    Images with one number in `groups` [N] are drawn together. An attribute with fewer than 5 positives or negatives has NaN, and the mean is
    over the others. The percentiles are widened for small samples (Hesterberg, "What teachers should know about the bootstrap", 2015); where
    every resample is perfect, the other end is the exact bound for that many successes in a row.
    """
    n_positive, n_negative = (labels == 1).sum(axis=0), (labels == 0).sum(axis=0)
    enough = np.minimum(n_positive, n_negative) >= MIN_OF_EACH
    per_attribute = {name: np.full((labels.shape[1], 2), np.nan) for name in METRICS}
    mean = {name: np.full(2, np.nan) for name in METRICS}
    if not enough.any():
        return per_attribute, mean
    values = resample_metrics(labels[:, enough], scores[:, enough], decisions[:, enough], n_resamples, groups, seed)
    n_images = len(labels) if groups is None else len(np.unique(groups))
    for name, resampled in values.items():
        successes = n_positive if name == "average_precision" else np.minimum(n_positive, n_negative)
        per_attribute[name][enough] = [_percentiles(column, int(n)) for column, n in zip(resampled.T, successes[enough], strict=True)]
        averages = np.nanmean(resampled[~np.isnan(resampled).all(axis=1)], axis=1)
        mean[name] = _percentiles(averages, n_images)
    return per_attribute, mean


def resample_metrics(
    labels: Floats, scores: Floats, decisions: Bools, n_resamples: int, groups: NDArray[np.int64] | None = None, seed: int = 0
) -> dict[str, Floats]:
    """Return AUROC, average precision and F1 of every resample and attribute, each [n_resamples, K]; NaN where one is undefined."""
    rng = np.random.default_rng(seed)
    group_of = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    columns = [_Ranking(labels[:, k], scores[:, k]) for k in range(labels.shape[1])]
    size = int(np.clip(_BLOCK_BYTES // (4 * max(len(labels), 1)), _FEWEST_IN_BLOCK, _MOST_IN_BLOCK))
    blocks = []
    for start in range(0, n_resamples, size):
        weights = _draw_weights(group_of, min(size, n_resamples - start), rng)
        ranked = [column.metrics(weights) for column in columns]
        blocks.append(
            (
                np.array([auroc for auroc, _ in ranked]).reshape(len(columns), -1).T,
                np.array([precision for _, precision in ranked]).reshape(len(columns), -1).T,
                _f1(labels, decisions, weights),
            )
        )
    return {name: np.concatenate(parts) for name, parts in zip(METRICS, zip(*blocks, strict=True), strict=True)}


def _draw_weights(group_of: NDArray[np.int64], n_resamples: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return how often each row [N] occurs in each resample [N, n_resamples]; groups are drawn with replacement."""
    n_groups = int(group_of.max()) + 1
    drawn = rng.integers(0, n_groups, (n_resamples, n_groups))
    drawn += np.arange(n_resamples)[:, None] * n_groups
    counts = np.bincount(drawn.ravel(), minlength=n_resamples * n_groups).reshape(n_resamples, n_groups)
    return np.ascontiguousarray(counts.T.astype(np.float32)[group_of])


class _Ranking:
    """One attribute's observed rows in the order of their scores, from which weighted metrics follow by cumulative sums."""

    def __init__(self, labels: Floats, scores: Floats) -> None:
        positive, negative = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
        self.positive = positive[np.argsort(-scores[positive], kind="stable")]
        self.negative = negative[np.argsort(-scores[negative], kind="stable")]
        high, low = -scores[self.positive], -scores[self.negative]
        self.negatives_above = np.searchsorted(low, high, side="left")
        self.negatives_not_below = np.searchsorted(low, high, side="right")
        self.last_of_equal = np.searchsorted(high, high, side="right") - 1
        self.has_ties = bool((self.negatives_above != self.negatives_not_below).any())
        self.has_equal = bool((np.diff(high) == 0).any())

    def metrics(self, weights: NDArray[np.float32]) -> tuple[Floats, Floats]:
        """Return AUROC and average precision of each resample for weights [N, B]."""
        negative = np.zeros((len(self.negative) + 1, weights.shape[1]), dtype=np.float32)
        np.cumsum(weights[self.negative], axis=0, out=negative[1:])
        positive = weights[self.positive]
        found = np.cumsum(positive, axis=0)
        n_positive, n_negative = (table[-1].astype(float) if len(table) else np.zeros(weights.shape[1]) for table in (found, negative))
        wrong = negative[self.negatives_not_below]
        above = (negative[self.negatives_above] + wrong) / 2 if self.has_ties else wrong
        defined = (n_positive > 0) & (n_negative > 0)
        auroc = 1 - _divide(np.einsum("pb,pb->b", positive, above), n_positive * n_negative, defined)
        if self.has_equal:
            found = found[self.last_of_equal]
        precision = _divide(found, found + wrong, found > 0)
        return auroc, _divide(np.einsum("pb,pb->b", positive, np.nan_to_num(precision, copy=False)), n_positive, defined)


def _f1(labels: Floats, decisions: Bools, weights: NDArray[np.float32]) -> Floats:
    """Return F1 [B, K]: 2 TP / (predicted + positive), over observed labels."""
    positive, observed = (labels == 1), ~np.isnan(labels)
    hits, predicted, positives = (weights.T @ table.astype(np.float32) for table in (positive & decisions, observed & decisions, positive))
    return _divide(2 * hits, predicted + positives, positives > 0)


def _divide(numerator: Floats, denominator: Floats, where: Bools) -> Floats:
    return np.divide(numerator, denominator, out=np.full(np.shape(denominator), np.nan, dtype=denominator.dtype), where=where)


def _percentiles(values: Floats, n: int) -> Floats:
    """Return the two ends of the interval of resampled `values` [B]; `n` is the sample size that the widening goes by."""
    from scipy.stats import norm, t

    tail = (1 - LEVEL) / 2
    values = values[~np.isnan(values)]
    if not len(values):
        return np.array([np.nan, np.nan])
    if values.min() == values.max() and values[0] in (0, 1):
        bound = tail ** (1 / n)  # n successes in a row are this rare at a success rate of `bound`
        return np.array([bound, 1.0]) if values[0] == 1 else np.array([0.0, 1 - bound])
    wider = norm.cdf(np.sqrt(n / (n - 1)) * t.ppf(tail, n - 1))
    return np.quantile(values, [wider, 1 - wider]).clip(0, 1)
