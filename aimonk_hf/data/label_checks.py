"""What a table of labels says about itself: constant and copied attributes, and labels that are missing not at random."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

NEARLY_CONSTANT = 0.01
NEARLY_COPIED = 0.9
# Chance of one or more false alarms among all pairs of attributes.
_ALPHA = 0.01
_FEWEST_SHARED = 20
_ROWS = 8192


def one_sided_attributes(labels: Floats, attributes: list[str]) -> dict[str, str]:
    """Return why an attribute can hardly be learned: no label, one class only, or a rarer class below 1% of the observed or below 5 labels."""
    found = {}
    for name, column in zip(attributes, labels.T, strict=True):
        positive, negative = int((column == 1).sum()), int((column == 0).sum())
        observed, rarer = positive + negative, min(positive, negative)
        if not observed:
            found[name] = "every label is missing"
        elif not rarer:
            found[name] = f"every observed label is {'1' if positive else '0'}"
        elif rarer < NEARLY_CONSTANT * observed or rarer < 5:
            found[name] = f"nearly constant: {positive} positive, {negative} negative"
    return found


def copied_attributes(labels: Floats, attributes: list[str]) -> list[dict[str, Any]]:
    """Return the pairs of attributes whose phi coefficient, over rows where both are observed, is beyond +-0.9; negative means opposites."""
    both_one, both_zero, one_zero = (
        _pair_counts(labels, *kinds) for kinds in ((_is_one, _is_one), (_is_zero, _is_zero), (_is_one, _is_zero))
    )
    shared = both_one + both_zero + one_zero + one_zero.T
    margins = (both_one + one_zero) * (one_zero.T + both_zero) * (both_one + one_zero.T) * (one_zero + both_zero)
    phi = np.divide(
        both_one * both_zero - one_zero * one_zero.T, np.sqrt(margins), out=np.zeros_like(shared), where=margins > 0
    )
    pairs = zip(*np.nonzero(np.triu((np.abs(phi) >= NEARLY_COPIED) & (shared >= _FEWEST_SHARED), 1)), strict=True)
    return [
        {"attributes": [attributes[i], attributes[j]], "phi": float(phi[i, j]), "n_shared": int(shared[i, j])}
        for i, j in pairs
    ]


def missing_patterns(labels: Floats, attributes: list[str]) -> list[dict[str, Any]]:
    """Return where an attribute's NA rate depends on another attribute's label, strongest first; corrected by Holm for the number of pairs.

    Each is a chi-squared test of (missing or not) against (1 or 0); rates are shares of rows.
    """
    from scipy.stats import chi2

    gap0, gap1 = (_pair_counts(labels, np.isnan, kind) for kind in (_is_zero, _is_one))  # [attribute with gaps, other]
    held0, held1 = (_pair_counts(labels, _is_held, kind) for kind in (_is_zero, _is_one))
    total = gap0 + held0 + gap1 + held1
    margins = (gap0 + gap1) * (held0 + held1) * (gap0 + held0) * (gap1 + held1)
    statistic = np.divide(
        total * (gap0 * held1 - gap1 * held0) ** 2, margins, out=np.zeros_like(total), where=margins > 0
    )
    expected = np.minimum(gap0 + gap1, held0 + held1) * np.minimum(gap0 + held0, gap1 + held1) / np.maximum(total, 1)
    testable = (expected >= 5) & ~np.eye(len(attributes), dtype=bool)
    places = np.argwhere(testable)
    p_values = chi2.sf(statistic[testable], df=1)
    found = []
    for rank, place in enumerate(np.argsort(p_values)):
        corrected = min(1.0, float(p_values[place]) * (len(places) - rank))
        if corrected > _ALPHA:
            break
        i, j = places[place]
        found.append(
            {
                "attribute": attributes[i],
                "other": attributes[j],
                "na_rate_where_0": float(gap0[i, j] / (gap0 + held0)[i, j]),
                "na_rate_where_1": float(gap1[i, j] / (gap1 + held1)[i, j]),
                "p_value": corrected,
            }
        )
    return found


def _is_zero(labels: Floats) -> NDArray[np.bool_]:
    return labels == 0


def _is_one(labels: Floats) -> NDArray[np.bool_]:
    return labels == 1


def _is_held(labels: Floats) -> NDArray[np.bool_]:
    return ~np.isnan(labels)


def _pair_counts(
    labels: Floats, first: Callable[[Floats], Any], second: Callable[[Floats], Any]
) -> NDArray[np.float64]:
    """Return [K, K]: in how many rows attribute i is of the first kind and j of the second; a block of rows at a time, for memory's sake."""
    counts = np.zeros((labels.shape[1],) * 2)
    for start in range(0, len(labels), _ROWS):
        block = labels[start : start + _ROWS]
        counts += first(block).astype(np.float32).T @ second(block).astype(
            np.float32
        )  # exact: float32 holds whole numbers up to 2**24
    return counts
