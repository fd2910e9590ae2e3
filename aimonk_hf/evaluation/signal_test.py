"""Is there signal? Permutation p-values of the AUROC, corrected for the number of attributes, and the sentence that follows from them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

# The chance of one or more false alarms among all attributes, if none had signal.
ALPHA = 0.05
_BLOCK_BYTES = 1 << 20  # of permutations: so many stay in the processor's cache
_MOST_IN_BLOCK, _FEWEST_IN_BLOCK = 200, 4
_MOST_NAMES = 20


def permutation_p_values(labels: Floats, scores: Floats, n_permutations: int = 999, seed: int = 0) -> Floats:
    """Return a corrected p-value per attribute [K] of "scores [N, K] rank the positives of labels [N, K] no better than chance".

    The statistic is the AUROC in units of its standard deviation under permutation, one-sided. Labels are permuted within the observed rows,
    all attributes by the same permutation, so that dependent attributes stay dependent. Attributes with one class only have NaN. The smallest
    possible value is 1 / (n_permutations + 1), however many attributes there are.
    """
    ranks, minority, mirrored = _ranks(labels, scores)
    tested = np.array([len(rows) > 0 for rows in minority])
    p_values = np.full(labels.shape[1], np.nan)
    if not tested.any():
        return p_values
    columns = np.flatnonzero(tested)
    own = np.array([ranks[minority[k], k].sum() for k in columns])
    permuted = np.empty((n_permutations, len(columns)))
    rng = np.random.default_rng(seed)
    size = int(np.clip(_BLOCK_BYTES // (4 * len(labels)), _FEWEST_IN_BLOCK, _MOST_IN_BLOCK))
    for start in range(0, n_permutations, size):
        block = slice(start, min(start + size, n_permutations))
        moves = rng.permuted(np.tile(np.arange(len(labels), dtype=np.int32), (block.stop - block.start, 1)), axis=1)
        for place, k in enumerate(columns):
            permuted[block, place] = _sum_after(moves, minority[k], ranks[:, k])
    sizes = np.array([len(minority[k]) for k in columns])
    # rank sum of the minority class; where that class is the negatives, a low sum is the good one
    sign = np.where(mirrored[columns], -1.0, 1.0)
    mean, deviation = _moments(ranks[:, columns], sizes)
    p_values[columns] = corrected_p_values(sign * (own - mean) / deviation, sign * (permuted - mean) / deviation)
    return p_values


def corrected_p_values(observed: Floats, permuted: Floats) -> Floats:
    """Return step-down max-T p-values [K] of statistics [K] against their permutations [B, K] (Westfall and Young, 1993).

    They hold the chance of any false alarm at the level that they are compared with.
    """
    order = np.argsort(-observed)
    highest = np.maximum.accumulate(permuted[:, order[::-1]], axis=1)[
        :, ::-1
    ]  # the largest among this attribute and all weaker ones
    exceeded = (highest >= observed[order] - 1e-9).sum(axis=0)
    stepped = np.maximum.accumulate((exceeded + 1) / (len(permuted) + 1))
    p_values = np.empty(len(observed))
    p_values[order] = stepped
    return p_values


def judge_signal(attributes: list[str], p_values: Floats, actor: str = "better than trivial") -> tuple[str | None, str]:
    """Return "none", "some" or "all" (None where nothing could be tested) and the verdict in one sentence."""
    tested = ~np.isnan(p_values)
    found = p_values <= ALPHA
    untested = [name for name, known in zip(attributes, tested, strict=True) if not known]
    silent = [name for name, known, yes in zip(attributes, tested, found, strict=True) if known and not yes]
    n_tested, n_found = int(tested.sum()), int(found.sum())
    remainder = f"; not tested for want of labels of both kinds: {_listed(untested)}" if untested else ""
    if not n_tested:
        return None, f"nothing can be said: no attribute has labels of both kinds ({_listed(attributes)})"
    if not n_found:
        return "none", f"no better than chance on any attribute{remainder}"
    if n_found == n_tested:
        return (
            "all",
            f"{actor} on {'all ' if n_tested > 1 else ''}{n_tested} attribute{'s' * (n_tested > 1)}{remainder}",
        )
    return (
        "some",
        f"{actor} on {n_found} of {n_tested} attributes; no evidence of signal on {_listed(silent)}{remainder}",
    )


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMES])
    return shown if len(names) <= _MOST_NAMES else f"{shown} and {len(names) - _MOST_NAMES} more"


def _ranks(labels: Floats, scores: Floats) -> tuple[Floats, list[NDArray[np.int64]], NDArray[np.bool_]]:
    """Return mid-ranks among the observed rows [N, K] (NaN elsewhere), the rows of the rarer class, and whether that is the negatives."""
    from scipy.stats import rankdata

    ranks = np.full(
        labels.shape, np.nan, order="F"
    )  # an attribute's ranks side by side, where permutations pick from them
    minority: list[NDArray[np.int64]] = []
    mirrored = np.zeros(labels.shape[1], dtype=bool)
    for k in range(labels.shape[1]):
        observed = ~np.isnan(labels[:, k])
        ranks[observed, k] = rankdata(scores[observed, k])
        positive, negative = np.flatnonzero(labels[:, k] == 1), np.flatnonzero(labels[:, k] == 0)
        mirrored[k] = len(negative) < len(positive)
        rarer, other = (negative, positive) if mirrored[k] else (positive, negative)
        minority.append(rarer if len(other) else rarer[:0])
    return ranks, minority, mirrored


def _moments(ranks: Floats, sizes: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Return mean and standard deviation under permutation of the sum of `sizes` [K] ranks, ties included; equal scores give deviation 1."""
    n = (~np.isnan(ranks)).sum(axis=0)
    variance = sizes * (n - sizes) / np.maximum(n - 1, 1) * np.nanvar(ranks, axis=0)
    return sizes * np.nanmean(ranks, axis=0), np.where(variance > 0, np.sqrt(variance), 1.0)


def _sum_after(moves: NDArray[np.int32], rows: NDArray[np.int64], ranks: Floats) -> Floats:
    """Return the sum of ranks [B] where permutations [B, N] send `rows`.

    A row sent to one whose label is missing is sent on until it meets an observed one; what is left of a uniform permutation when elements
    are dropped from its cycles is uniform.
    """
    places = moves[:, rows]
    values = ranks[places]
    while (lost := np.isnan(values)).any():
        which, _ = np.nonzero(lost)
        places[lost] = moves[which, places[lost]]
        values[lost] = ranks[places[lost]]
    total: Floats = values.sum(axis=1)
    return total
