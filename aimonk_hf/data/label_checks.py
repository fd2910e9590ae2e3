"""Find constant and copied attributes, and labels that are missing not at random, in a table of labels."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

_NEARLY_CONSTANT = 0.01
_NEARLY_COPIED = 0.9
_ALPHA = 0.01  # chance of one or more false alarms among all pairs of attributes
_FEWEST_SHARED = 20
_ROWS = 8192


def count_labels(labels: Floats) -> NDArray[np.int64]:
    """Return the numbers of positive, negative and missing labels of each attribute [K, 3]."""
    return np.stack([(labels == 1).sum(axis=0), (labels == 0).sum(axis=0), np.isnan(labels).sum(axis=0)], axis=1)


def one_sided_attributes(labels: Floats, attributes: list[str]) -> dict[str, str]:
    """Return why attributes can hardly be learned: no label, one class only, or a rarer class below 1% or 5 labels."""
    found = {}
    for name, (positive, negative, _) in zip(attributes, count_labels(labels), strict=True):
        observed, rarer = positive + negative, min(positive, negative)
        if not observed:
            found[name] = "every label is missing"
        elif not rarer:
            found[name] = f"every observed label is {'1' if positive else '0'}"
        elif rarer < max(_NEARLY_CONSTANT * observed, 5):
            found[name] = f"nearly constant: {positive} positive, {negative} negative"
    return found


def copied_attributes(labels: Floats, attributes: list[str]) -> list[dict[str, Any]]:
    """Return the pairs of attributes whose phi coefficient, over rows where both are observed, is beyond +-0.9."""
    counts = _count_pairs(labels)
    both_one, both_zero, one_zero = counts[1, :, 1], counts[0, :, 0], counts[1, :, 0]
    shared = both_one + both_zero + one_zero + one_zero.T
    margins = (both_one + one_zero) * (one_zero.T + both_zero) * (both_one + one_zero.T) * (one_zero + both_zero)
    phi = (both_one * both_zero - one_zero * one_zero.T) / np.sqrt(np.where(margins > 0, margins, np.inf))
    pairs = np.argwhere(np.triu((np.abs(phi) >= _NEARLY_COPIED) & (shared >= _FEWEST_SHARED), 1))
    return [
        {"attributes": [attributes[i], attributes[j]], "phi": float(phi[i, j]), "n_shared": int(shared[i, j])}
        for i, j in pairs
    ]


def describe_copy(pair: dict[str, Any]) -> str:
    """Return an entry of `copied_attributes` in words."""
    return f"{' and '.join(pair['attributes'])} are nearly {'copies' if pair['phi'] > 0 else 'opposites'} of each other"


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
    order = np.argsort(p_values)
    corrected = p_values[order] * np.arange(len(order), 0, -1)
    n_found = int(np.cumprod(corrected <= _ALPHA).sum())  # Holm stops at the first that is not
    found = []
    for (i, j), p_value in zip(places[order[:n_found]], corrected.tolist(), strict=False):
        shares = {"na_rate_where_0": float(rates[0, i, j]), "na_rate_where_1": float(rates[1, i, j])}
        found.append({"attribute": attributes[i], "other": attributes[j], **shares, "p_value": p_value})
    return found


def describe_pattern(one: dict[str, Any]) -> str:
    """Return an entry of `missing_patterns` in words."""
    missing = f"{one['attribute']} is missing in {one['na_rate_where_1']:.0%} of the images with {one['other']}"
    return f"{missing} and in {one['na_rate_where_0']:.0%} of those without"


def _count_pairs(labels: Floats) -> NDArray[np.float64]:
    """Return counts [3, K, 3, K]: the rows where attribute i is a and attribute j is b, each 0, 1 or (2) missing."""
    n_columns = labels.shape[1]
    counts = np.zeros((3 * n_columns, 3 * n_columns))
    for start in range(0, len(labels), _ROWS):  # a block of rows at a time, for memory's sake
        block = labels[start : start + _ROWS]
        values = np.hstack([block == 0, block == 1, np.isnan(block)]).astype(np.float32)
        counts += values.T @ values  # exact: float32 holds whole numbers up to 2**24
    return counts.reshape(3, n_columns, 3, n_columns)
