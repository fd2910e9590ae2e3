"""Divide rows into parts: at random or stratified on one or all attributes, groups kept together."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from aimonk_hf.errors import AimonkError

SPLIT_METHODS = ("iterative", "rarest", "random")
NEAR_DUPLICATES = ("group", "ignore")


def split_rows(
    labels: NDArray[np.float32],
    fractions: list[float],
    method: str = "iterative",
    seed: int = 0,
    groups: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Return the part (0, 1, ...) of each row [N], so that part p holds about `fractions[p]` of the rows.

    `labels` [N, K] is {0, 1, NaN}; rows of one group stay together. "iterative" is the iterative stratification of
    Sechidis, Tsoumakas and Vlahavas (ECML 2011) over the indicators of every value, NA being a value of its own;
    "rarest" does the same for the one attribute with the fewest positives; "random" looks at no label. A part that
    would be empty takes a group from the largest one.

    Raises `AimonkError` where there are fewer groups than parts.
    """
    groups = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(groups)
    wanted = np.asarray(fractions, dtype=float)
    needed = np.flatnonzero(wanted > 0)
    if len(sizes) < len(needed):
        raise AimonkError(f"{len(sizes)} different usable image(s) make no {len(needed)} parts; add images")
    indicators = np.zeros((len(sizes), 0), dtype=np.uint8)
    if method != "random":
        positives = (labels == 1).sum(axis=0)
        rarest = int(np.argmin(np.where(positives > 0, positives, len(labels) + 1)))
        columns = labels if method == "iterative" else labels[:, [rarest]]
        values = np.concatenate([columns == 1, columns == 0, np.isnan(columns)], axis=1)
        by_group = np.argsort(groups, kind="stable")
        first = np.flatnonzero(np.diff(groups[by_group], prepend=-1))
        indicators = np.add.reduceat(values[by_group], first, axis=0, dtype=np.min_scalar_type(sizes.max()))
    parts = _stratify(indicators, sizes, wanted / wanted.sum(), np.random.default_rng(seed))
    for part in needed:
        if not (parts == part).any():  # the largest part that has several groups gives one
            counts = np.bincount(parts, weights=sizes, minlength=len(wanted))
            giver = next(other for other in np.argsort(-counts) if (parts == other).sum() > 1)
            parts[np.flatnonzero(parts == giver)[0]] = part
    return parts[groups]


def split_folds(
    labels: NDArray[Any], n_folds: int, seed: int = 0, groups: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Return the fold (0, 1, ...) of each row [N], stratified over `labels` [N, K]; no more folds than groups."""
    n_folds = min(n_folds, len(labels) if groups is None else len(np.unique(groups)))
    if n_folds < 2:
        return np.zeros(len(labels), dtype=np.int64)
    return split_rows(labels.astype(np.float32), [1 / n_folds] * n_folds, seed=seed, groups=groups)


def _stratify(
    indicators: NDArray[Any], sizes: NDArray[np.int64], fractions: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Give each group to the part that misses most of its rarest value; ties go by missing rows, then by chance.

    `indicators` [groups, values] counts each value in each group.
    """
    parts = np.full(len(sizes), -1)
    counts = indicators.sum(axis=0, dtype=np.int64)  # over the groups that have no part yet
    missing_values = np.outer(fractions, counts)
    missing_rows = fractions * sizes.sum()
    order = rng.permutation(len(sizes))

    def place(group: int, column: int | None) -> None:
        keys = (rng.random(len(fractions)), missing_rows) + (() if column is None else (missing_values[:, column],))
        part = int(np.lexsort(keys)[-1])
        parts[group] = part
        missing_values[part] -= indicators[group]
        missing_rows[part] -= sizes[group]

    has_value = np.ascontiguousarray(indicators.T > 0)  # a value's groups side by side
    while counts.any():
        column = int(np.argmin(np.where(counts > 0, counts, np.inf)))
        chosen = order[has_value[column, order] & (parts[order] < 0)]
        for group in chosen:
            place(group, column)
        counts -= indicators[chosen].sum(axis=0, dtype=np.int64)
    for group in order[parts[order] < 0]:
        place(group, None)
    return parts
