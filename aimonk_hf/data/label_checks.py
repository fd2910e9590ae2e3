"""Find constant and copied attributes, and labels that are missing not at random, in a table of labels."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

NEARLY_CONSTANT = 0.01
NEARLY_COPIED = 0.9
_ALPHA = 0.01  # chance of one or more false alarms among all pairs of attributes
_FEWEST_SHARED = 20
_ROWS = 8192


def count_labels(column: Floats) -> tuple[int, int, int]:
    """Return the numbers of positive, negative and missing labels of an attribute [N]."""
    return int((column == 1).sum()), int((column == 0).sum()), int(np.isnan(column).sum())


def one_sided_attributes(labels: Floats, attributes: list[str]) -> dict[str, str]:
    """Return why attributes can hardly be learned: no label, one class only, or a rarer class below 1% or 5 labels."""
    found = {}
    for name, column in zip(attributes, labels.T, strict=True):
        positive, negative, _ = count_labels(column)
        observed, rarer = positive + negative, min(positive, negative)
        if not observed:
            found[name] = "every label is missing"
        elif not rarer:
            found[name] = f"every observed label is {'1' if positive else '0'}"
        elif rarer < NEARLY_CONSTANT * observed or rarer < 5:
            found[name] = f"nearly constant: {positive} positive, {negative} negative"
    return found


def copied_attributes(labels: Floats, attributes: list[str]) -> list[dict[str, Any]]:
    """Return the pairs of attributes whose phi coefficient, over rows where both are observed, is beyond +-0.9."""
    counts = _count_pairs(labels)
    both_one, both_zero, one_zero = counts[1, :, 1], counts[0, :, 0], counts[1, :, 0]
    shared = both_one + both_zero + one_zero + one_zero.T
    margins = (both_one + one_zero) * (one_zero.T + both_zero) * (both_one + one_zero.T) * (one_zero + both_zero)
    phi = np.divide(
        both_one * both_zero - one_zero * one_zero.T, np.sqrt(margins), out=np.zeros_like(shared), where=margins > 0
    )
    pairs = np.argwhere(np.triu((np.abs(phi) >= NEARLY_COPIED) & (shared >= _FEWEST_SHARED), 1))
    return [
        {"attributes": [attributes[i], attributes[j]], "phi": float(phi[i, j]), "n_shared": int(shared[i, j])}
        for i, j in pairs
    ]


def missing_patterns(labels: Floats, attributes: list[str]) -> list[dict[str, Any]]:
    """Return where an attribute's NA rate depends on another attribute's label, strongest first.

    Each is a chi-squared test of (missing or not) against (1 or 0), corrected by Holm; rates are shares of rows.
    """
    from scipy.stats import power_divergence

    counts = _count_pairs(labels)
    observed = np.stack([counts[2, :, :2], counts[0, :, :2] + counts[1, :, :2]]).swapaxes(1, 2)  # [gap or not, 0 or 1]
    total = np.maximum(observed.sum(axis=(0, 1)), 1)
    expected = observed.sum(axis=0) * observed.sum(axis=1)[:, None] / total
    testable = (expected.min(axis=(0, 1)) >= 5) & ~np.eye(len(attributes), dtype=bool)
    places = np.argwhere(testable)
    tables = (table[:, :, testable].reshape(4, -1) for table in (observed, expected))
    p_values = power_divergence(*tables, ddof=2).pvalue
    rates = observed[0] / np.maximum(observed.sum(axis=0), 1)
    found = []
    for rank, place in enumerate(np.argsort(p_values)):
        corrected = min(1.0, float(p_values[place]) * (len(places) - rank))
        if corrected > _ALPHA:
            break
        i, j = places[place]
        names = {"attribute": attributes[i], "other": attributes[j]}
        shares = {"na_rate_where_0": float(rates[0, i, j]), "na_rate_where_1": float(rates[1, i, j])}
        found.append(names | shares | {"p_value": corrected})
    return found


def _count_pairs(labels: Floats) -> NDArray[np.float64]:
    """Return counts [3, K, 3, K]: the rows where attribute i is a and attribute j is b, each 0, 1 or (2) missing."""
    n_columns = labels.shape[1]
    counts = np.zeros((3 * n_columns, 3 * n_columns))
    for start in range(0, len(labels), _ROWS):  # a block of rows at a time, for memory's sake
        block = labels[start : start + _ROWS]
        values = np.hstack([block == 0, block == 1, np.isnan(block)]).astype(np.float32)
        counts += values.T @ values  # exact: float32 holds whole numbers up to 2**24
    return counts.reshape(3, n_columns, 3, n_columns)
