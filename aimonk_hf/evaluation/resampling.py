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
_TOGETHER_BYTES = 1 << 18  # of weights that are counted together: so many stay in a core's cache
_DRAWN_BYTES = 1 << 24  # of weights that are drawn before the attributes take their turns


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
        per_attribute[name][enough] = [
            _percentiles(column, int(n)) for column, n in zip(resampled.T, successes[enough], strict=True)
        ]
        averages = np.nanmean(resampled[~np.isnan(resampled).all(axis=1)], axis=1)
        mean[name] = _percentiles(averages, n_images)
    return per_attribute, mean


def resample_metrics(
    labels: Floats,
    scores: Floats,
    decisions: Bools,
    n_resamples: int,
    groups: NDArray[np.int64] | None = None,
    seed: int = 0,
) -> dict[str, Floats]:
    """Return AUROC, average precision and F1 of every resample and attribute, each [n_resamples, K]; NaN where one is undefined."""
    rng = np.random.default_rng(seed)
    group_of = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    columns = [_Ranking(labels[:, k], scores[:, k], decisions[:, k]) for k in range(labels.shape[1])]
    together, at_once = (max(n_bytes // max(len(labels), 1), 1) for n_bytes in (_TOGETHER_BYTES, _DRAWN_BYTES))
    values = np.empty((len(METRICS), n_resamples, len(columns)))
    for start in range(0, n_resamples, at_once):
        end = min(start + at_once, n_resamples)
        # attribute by attribute, so that its rows are read from memory once for many resamples
        drawn = [
            (first, _draw_weights(group_of, min(together, end - first), rng)) for first in range(start, end, together)
        ]
        for k, column in enumerate(columns):
            for first, weights in drawn:
                values[:, first : first + len(weights), k] = column.metrics(weights)
    return dict(zip(METRICS, values, strict=True))


def _draw_weights(group_of: NDArray[np.int64], n_resamples: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return how often each row [N] occurs in each resample [n_resamples, N]; groups are drawn with replacement.

    A group that is drawn more than 255 times has a probability below 1e-500.
    """
    n_groups = int(group_of.max()) + 1
    drawn = rng.integers(0, n_groups, (n_resamples, n_groups))
    drawn += np.arange(n_resamples)[:, None] * n_groups
    counts = np.bincount(drawn.ravel(), minlength=n_resamples * n_groups).reshape(n_resamples, n_groups)
    return counts.astype(np.uint8).take(group_of, axis=1)


class _Ranking:
    """One attribute's observed rows in the order of their scores, from which weighted metrics follow by cumulative sums."""

    def __init__(self, labels: Floats, scores: Floats, decisions: Bools) -> None:
        positive, negative = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
        self.hits = positive[decisions[positive]]
        self.false_alarms = negative[decisions[negative]]
        self.positive = positive[np.argsort(-scores[positive], kind="stable")]
        self.negative = negative[np.argsort(-scores[negative], kind="stable")]
        high, low = -scores[self.positive], -scores[self.negative]
        self.negatives_above = np.searchsorted(low, high, side="left")
        self.negatives_not_below = np.searchsorted(low, high, side="right")
        self.last_of_equal = np.searchsorted(high, high, side="right") - 1
        self.has_ties = bool((self.negatives_above != self.negatives_not_below).any())
        self.has_equal = bool((np.diff(high) == 0).any())

    def metrics(self, weights: NDArray[np.uint8]) -> tuple[Floats, Floats, Floats]:
        """Return AUROC, average precision and F1 (2 TP / (predicted + positive)) of each resample for weights [B, N]."""
        negative = np.zeros((len(weights), len(self.negative) + 1), dtype=np.int32)
        np.cumsum(weights.take(self.negative, axis=1), axis=1, out=negative[:, 1:])
        positive = weights.take(self.positive, axis=1)
        found = np.cumsum(positive, axis=1, dtype=np.int32)
        n_positive, n_negative = positive.sum(axis=1, dtype=float), negative[:, -1].astype(float)
        wrong = negative.take(self.negatives_not_below, axis=1)
        above = (negative.take(self.negatives_above, axis=1) + wrong) / 2 if self.has_ties else wrong
        defined = (n_positive > 0) & (n_negative > 0)
        auroc = 1 - _divide((positive * above).sum(axis=1, dtype=float), n_positive * n_negative, defined)
        if self.has_equal:
            found = found.take(self.last_of_equal, axis=1)
        precision = found / np.maximum(found + wrong, 1)
        average_precision = _divide((positive * precision).sum(axis=1), n_positive, defined)
        hits, false_alarms = (
            weights.take(rows, axis=1).sum(axis=1, dtype=float) for rows in (self.hits, self.false_alarms)
        )
        return auroc, average_precision, _divide(2 * hits, hits + false_alarms + n_positive, n_positive > 0)


def _divide(numerator: Floats, denominator: Floats, where: Bools) -> Floats:
    return np.divide(
        numerator, denominator, out=np.full(np.shape(denominator), np.nan, dtype=denominator.dtype), where=where
    )


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
