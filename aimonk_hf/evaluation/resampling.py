"""Intervals by the bootstrap over groups of images, and p-values by permutation, corrected for many attributes."""

import numpy as np
from numpy.typing import NDArray

from aimonk_hf.console import listed
from aimonk_hf.evaluation.metrics import Bools, Floats, Ints

METRICS = ("auroc", "average_precision", "f1")
LEVEL = 0.95
# Below this many positives or negatives the resamples tell more about chance than about the model.
MIN_OF_EACH = 5
# The chance of one or more false alarms among all attributes, if none had signal.
ALPHA = 0.05
_CACHE_BYTES = 1 << 18  # weights or permutations that are worked on together: so many stay in a core's cache


def bootstrap_intervals(
    labels: Floats, scores: Floats, decisions: Bools, n_resamples: int = 1000, groups: Ints | None = None, seed: int = 0
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Return, by metric, the 95% intervals of each attribute [K, 2] and of their mean [2].

    Images with one number in `groups` [N] are drawn together; all attributes share the resamples. An attribute with
    fewer than 5 groups that hold a positive, or a negative, has NaN, and the mean is over the others. The percentiles
    are widened for small samples (Hesterberg, "What teachers should know about the bootstrap", 2015); where every
    resample is perfect, the other end is the exact bound for that many successes in a row.
    """
    groups = np.arange(len(labels)) if groups is None else groups
    n_positive, n_negative = (np.array([len(set(groups[rows])) for rows in (labels == one).T]) for one in (1, 0))
    enough = np.minimum(n_positive, n_negative) >= MIN_OF_EACH
    per_attribute = {name: np.full((labels.shape[1], 2), np.nan) for name in METRICS}
    mean = {name: np.full(2, np.nan) for name in METRICS}
    if not enough.any():
        return per_attribute, mean
    values = resample_metrics(labels[:, enough], scores[:, enough], decisions[:, enough], n_resamples, groups, seed)
    n_groups = len(np.unique(groups))
    for name, resampled in values.items():
        successes = n_positive if name == "average_precision" else np.minimum(n_positive, n_negative)
        columns = zip(resampled.T, successes[enough], strict=True)
        per_attribute[name][enough] = [_percentiles_of_ratio(column, int(n)) for column, n in columns]
        mean[name] = _percentiles_of_ratio(np.nanmean(resampled[~np.isnan(resampled).all(axis=1)], axis=1), n_groups)
    return per_attribute, mean


def resample_metrics(
    labels: Floats, scores: Floats, decisions: Bools, n_resamples: int, groups: Ints | None = None, seed: int = 0
) -> dict[str, Floats]:
    """Return AUROC, average precision and F1 of every resample, each [n_resamples, K]; NaN where one is undefined."""
    rng = np.random.default_rng(seed)
    group_of = np.arange(len(labels)) if groups is None else groups
    columns = [Ranking(labels[:, k], scores[:, k], decisions[:, k]) for k in range(labels.shape[1])]
    values = np.empty((len(METRICS), n_resamples, len(columns)))
    size = max(_CACHE_BYTES // max(len(labels), 1), 1)
    for start in range(0, n_resamples, size):
        weights = draw_weights(group_of, min(size, n_resamples - start), rng)
        for k, column in enumerate(columns):
            values[:, start : start + size, k] = column.metrics(weights)
    return dict(zip(METRICS, values, strict=True))


def draw_weights(groups: Ints, n_resamples: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw groups with replacement and return the number of times [n_resamples, N] that each row occurs.

    Rows with one number in `groups` [N] are drawn together. More than 255 times has a probability below 1e-500.
    """
    numbers, group_of = np.unique(groups, return_inverse=True)
    drawn = rng.integers(0, len(numbers), (n_resamples, len(numbers)))
    counts = np.stack([np.bincount(row, minlength=len(numbers)) for row in drawn])
    return counts.astype(np.uint8).take(group_of, axis=1)


class Ranking:
    """One attribute's observed rows in the order of their scores; weighted metrics follow by cumulative sums."""

    def __init__(self, labels: Floats, scores: Floats, decisions: Bools) -> None:
        positive, negative = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
        self.hits, self.false_alarms = positive[decisions[positive]], negative[decisions[negative]]
        self.positive = positive[np.argsort(-scores[positive], kind="stable")]
        self.negative = negative[np.argsort(-scores[negative], kind="stable")]
        high, low = -scores[self.positive], -scores[self.negative]
        self.negatives_above = np.searchsorted(low, high, side="left")
        self.negatives_not_below = np.searchsorted(low, high, side="right")
        self.last_of_equal = np.searchsorted(high, high, side="right") - 1

    def metrics(self, weights: NDArray[np.uint8]) -> tuple[Floats, Floats, Floats]:
        """Return AUROC, average precision and F1 (2 TP / (predicted + positive)) of each resample [B] of weights."""
        negative = np.zeros((len(weights), len(self.negative) + 1), dtype=np.int32)
        np.cumsum(weights.take(self.negative, axis=1), axis=1, out=negative[:, 1:])
        positive = weights.take(self.positive, axis=1)
        found = np.cumsum(positive, axis=1, dtype=np.int32)
        n_positive, n_negative = positive.sum(axis=1, dtype=float), negative[:, -1].astype(float)
        n_positive[n_positive == 0], n_negative[n_negative == 0] = np.nan, np.nan
        wrong = negative.take(self.negatives_not_below, axis=1)
        above = (negative.take(self.negatives_above, axis=1) + wrong) / 2
        precision = found.take(self.last_of_equal, axis=1)
        precision = precision / np.maximum(precision + wrong, 1)
        decided = (self.hits, self.false_alarms)
        hits, false_alarms = (weights.take(rows, axis=1).sum(axis=1, dtype=float) for rows in decided)
        auroc = 1 - (positive * above).sum(axis=1) / (n_positive * n_negative)
        average_precision = np.where(np.isnan(auroc), np.nan, (positive * precision).sum(axis=1) / n_positive)
        return auroc, average_precision, 2 * hits / (hits + false_alarms + n_positive)


def percentiles(values: Floats, n: int) -> Floats:
    """Return the two ends of the interval of resampled `values` [B], widened for `n` samples; NaN without values."""
    from scipy.stats import norm, t

    values = values[~np.isnan(values)]
    tail = norm.cdf(np.sqrt(n / (n - 1)) * t.ppf((1 - LEVEL) / 2, n - 1))
    return np.quantile(values, [tail, 1 - tail]) if len(values) else np.array([np.nan, np.nan])


def _percentiles_of_ratio(values: Floats, n: int) -> Floats:
    """Return the ends of the interval of a ratio; where all resamples are perfect, one end is the exact bound."""
    known = values[~np.isnan(values)]
    bound = ((1 - LEVEL) / 2) ** (1 / n)  # n successes in a row are this rare at a success rate of `bound`
    if len(known) and (known == 1).all():
        return np.array([bound, 1.0])
    if len(known) and (known == 0).all():
        return np.array([0.0, 1 - bound])
    return percentiles(known, n).clip(0, 1)


def permutation_p_values(labels: Floats, scores: Floats, n_permutations: int = 999, seed: int = 0) -> Floats:
    """Return a corrected p-value per attribute [K] of "scores [N, K] rank positives no better than chance".

    The statistic is the AUROC in units of its standard deviation under permutation, one-sided. Labels are permuted
    within the observed rows, all attributes by the same permutation, so that dependent attributes stay dependent.
    Attributes with one class only have NaN. The smallest possible value is 1 / (n_permutations + 1).
    """
    p_values = np.full(labels.shape[1], np.nan)
    columns = np.flatnonzero((labels == 1).any(axis=0) & (labels == 0).any(axis=0))
    if not len(columns):
        return p_values
    ranks, rarer, sign = _ranks(labels[:, columns], scores[:, columns])
    own = np.array([ranks[rows, k].sum() for k, rows in enumerate(rarer)])
    permuted = np.empty((n_permutations, len(columns)))
    rng = np.random.default_rng(seed)
    size = max(_CACHE_BYTES // len(labels), 4)
    for start in range(0, n_permutations, size):
        n_moves = min(size, n_permutations - start)
        moves = rng.permuted(np.tile(np.arange(len(labels), dtype=np.int32), (n_moves, 1)), axis=1)
        for k, rows in enumerate(rarer):
            permuted[start : start + size, k] = _sum_after(moves, rows, ranks[:, k])
    n_rarer, n_observed = np.array(list(map(len, rarer))), (~np.isnan(ranks)).sum(axis=0)
    # of the rank sum under permutation, ties included; all scores equal give a deviation of 1
    mean = n_rarer * np.nanmean(ranks, axis=0)
    variance = n_rarer * (n_observed - n_rarer) / (n_observed - 1) * np.nanvar(ranks, axis=0)
    scale = sign / np.where(variance > 0, np.sqrt(variance), 1.0)
    p_values[columns] = corrected_p_values((own - mean) * scale, (permuted - mean) * scale)
    return p_values


def corrected_p_values(observed: Floats, permuted: Floats) -> Floats:
    """Return step-down max-T p-values [K] of statistics [K] against permutations [B, K] (Westfall and Young, 1993).

    They hold the chance of any false alarm at the level that they are compared with.
    """
    order = np.argsort(-observed)
    # the largest among this attribute and all weaker ones
    highest = np.maximum.accumulate(permuted[:, order[::-1]], axis=1)[:, ::-1]
    exceeded = (highest >= observed[order] - 1e-9).sum(axis=0)
    p_values = np.empty(len(observed))
    p_values[order] = np.maximum.accumulate((exceeded + 1) / (len(permuted) + 1))
    return p_values


def judge_signal(attributes: list[str], p_values: Floats, actor: str = "better than trivial") -> tuple[str | None, str]:
    """Return "none", "some" or "all" (None where nothing could be tested) and the verdict in one sentence."""
    named = list(zip(attributes, p_values, strict=True))
    untested = [name for name, p_value in named if np.isnan(p_value)]
    silent = [name for name, p_value in named if p_value > ALPHA]
    n_tested = len(named) - len(untested)
    n_found = n_tested - len(silent)
    remainder = f"; not tested for want of labels of both kinds: {listed(untested)}" if untested else ""
    if not n_tested:
        return None, f"nothing can be said: no attribute has labels of both kinds ({listed(attributes)})"
    if not n_found:
        return "none", f"no better than chance on any attribute{remainder}"
    if silent:
        found = f"{n_found} of {n_tested} attributes; no evidence of signal on {listed(silent)}"
        return "some", f"{actor} on {found}{remainder}"
    return "all", f"{actor} on {'1 attribute' if n_tested == 1 else f'all {n_tested} attributes'}{remainder}"


def _ranks(labels: Floats, scores: Floats) -> tuple[Floats, list[Ints], Ints]:
    """Return mid-ranks among the observed rows [N, K] (NaN elsewhere), the rows of the rarer class, and its sign [K].

    The sign is -1 where that class is the negatives, for which a low rank sum is the good one.
    """
    from scipy.stats import rankdata

    # an attribute's ranks side by side in memory, where permutations pick from them
    ranks = np.asfortranarray(rankdata(np.where(np.isnan(labels), np.nan, scores), axis=0, nan_policy="omit"))
    sign = np.where((labels == 0).sum(axis=0) < (labels == 1).sum(axis=0), -1, 1)
    return ranks, [np.flatnonzero(labels[:, k] == (sign[k] == 1)) for k in range(labels.shape[1])], sign


def _sum_after(moves: NDArray[np.int32], rows: Ints, ranks: Floats) -> Floats:
    """Return the sum of the ranks [B] to which permutations [B, N] send `rows`.

    A row sent to one whose label is missing is sent on until it meets an observed one: a uniform permutation stays
    uniform when elements are dropped from its cycles.
    """
    places = moves[:, rows]
    values = ranks[places]
    while (lost := np.isnan(values)).any():
        places[lost] = moves[np.nonzero(lost)[0], places[lost]]
        values[lost] = ranks[places[lost]]
    total: Floats = values.sum(axis=1)
    return total
