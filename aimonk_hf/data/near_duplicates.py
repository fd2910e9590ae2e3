"""Pictures that are copies of each other: byte for byte, or nearly so, confirmed on their pixels."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from aimonk_hf.data.dataset import duplicate_groups
from aimonk_hf.data.images import open_image, read_image
from aimonk_hf.errors import ImageError

SIDE = 32
# Two pictures are near-duplicates if their thumbnails correlate above the first number and differ by no more than the second, a mean step of
# 255. The stricter correlation allows for another exposure.
_AGREEMENT = ((0.97, 12.0), (0.99, 30.0))
# Below this spread of grey a thumbnail is nearly flat, and its correlation would be that of noise.
_LEAST_SPREAD = 4.0
_BLOCK = 512

Thumbnails = NDArray[np.float32]


@dataclass
class Pair:
    """Two rows whose pictures are `kind` "exact" or "near" duplicates; `correlation` is that of their thumbnails."""

    first: int
    second: int
    kind: str
    correlation: float


def thumbnail(path: Path) -> NDArray[np.float32] | None:
    """Return a picture squeezed to [32, 32, 3] with values 0 to 255, or None where it cannot be read."""
    try:
        with open_image(path) as image:
            image.draft("RGB", (4 * SIDE, 4 * SIDE))  # JPEG decodes itself smaller: the audit need not see every pixel
            small = read_image(image).resize((SIDE, SIDE), Image.Resampling.BOX)
    except ImageError:
        return None
    return np.asarray(small, dtype=np.float32)


def find_duplicates(paths: list[Path], thumbnails: list[NDArray[np.float32] | None]) -> list[Pair]:
    """Return the pairs of rows with identical bytes, and those whose thumbnails agree in structure and in colour.

    Every pair is compared, not only those with one hash; a group of n copies of one file gives n - 1 pairs with its first row.
    """
    usable = [row for row, small in enumerate(thumbnails) if small is not None]
    if not usable:
        return []
    group_of = duplicate_groups([paths[row] for row in usable])
    pairs = [Pair(usable[group], usable[place], "exact", 1.0) for place, group in enumerate(group_of) if group != place]
    first = [usable[place] for place in range(len(usable)) if group_of[place] == place]
    table = np.stack([small for row in first if (small := thumbnails[row]) is not None])
    return pairs + [Pair(first[i], first[j], "near", float(r)) for i, j, r in _near_pairs(table)]


def group_numbers(n_rows: int, pairs: list[Pair]) -> NDArray[np.int64]:
    """Return a group number per row [n_rows]; rows joined by pairs, also through others, share one."""
    parent = list(range(n_rows))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for pair in pairs:
        low, high = sorted((root(pair.first), root(pair.second)))
        parent[high] = low
    return np.array([root(row) for row in range(n_rows)], dtype=np.int64)


def conflicts(pair: Pair, labels: NDArray[Any], attributes: list[str]) -> dict[str, tuple[int, int]]:
    """Return the attributes on which both pictures are labelled, differently, with the two labels."""
    both = np.flatnonzero(np.abs(labels[pair.first] - labels[pair.second]) == 1)
    return {attributes[k]: (int(labels[pair.first, k]), int(labels[pair.second, k])) for k in both}


def _near_pairs(table: Thumbnails) -> list[tuple[int, int, float]]:
    """Return (i, j, correlation) with i < j for thumbnails [M, 32, 32, 3] that agree."""
    grey = table.mean(axis=3).reshape(len(table), -1)
    grey = grey - grey.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(grey, axis=1)
    flat = norm / SIDE < _LEAST_SPREAD
    unit = grey / np.maximum(norm, 1e-6)[:, None]
    found = []
    for start in range(0, len(table), _BLOCK):
        similar = unit[start : start + _BLOCK] @ unit.T
        for i, j in zip(*np.nonzero(similar > _AGREEMENT[0][0]), strict=True):
            row = start + int(i)
            if row >= j or flat[row] or flat[j]:
                continue
            difference, correlation = np.abs(table[row] - table[j]).mean(), float(similar[i, j])
            if any(correlation > least and difference <= most for least, most in _AGREEMENT):
                found.append((row, int(j), correlation))
    return found
