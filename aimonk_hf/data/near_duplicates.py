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
# Comparing every pair in full would take hours for 100,000 pictures. Vectors of length 1 that correlate above .97 are closer than sqrt(.06); what
# is farther apart than that in a projection is farther apart in full too. The last term is for rounding.
_COARSE_SIDE = 8
_FARTHEST = -(1 - _AGREEMENT[0][0]) - 1e-4

Thumbnails = NDArray[np.uint8]


@dataclass
class Pair:
    """Two rows whose pictures are `kind` "exact" or "near" duplicates; `correlation` is that of their thumbnails."""

    first: int
    second: int
    kind: str
    correlation: float


def thumbnail(path: Path) -> Thumbnails | None:
    """Return a picture squeezed to [32, 32, 3], or None where it cannot be read."""
    try:
        with open_image(path) as image:
            image.draft("RGB", (4 * SIDE, 4 * SIDE))  # JPEG decodes itself smaller: the audit need not see every pixel
            small = read_image(image).resize((SIDE, SIDE), Image.Resampling.BOX)
    except ImageError:
        return None
    return np.asarray(small)


def find_duplicates(paths: list[Path], thumbnails: list[Thumbnails | None]) -> list[Pair]:
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
    unit, flat = _unit_greys(table)
    coarse = _coarse(unit)
    left, right = _for_closeness(coarse)
    found = []
    for start in range(0, len(table), _BLOCK):
        block = np.arange(start, min(start + _BLOCK, len(table)))
        near_i, near_j = np.nonzero(left[block] @ right[start:].T >= _FARTHEST)  # no pair is looked at from both sides
        rows, others = block[near_i], near_j + start
        kept = (rows < others) & ~flat[rows] & ~flat[others]
        for row, other in zip(rows[kept].tolist(), others[kept].tolist(), strict=True):
            correlation = float(unit[row] @ unit[other])
            difference = np.abs(table[row].astype(np.int16) - table[other]).mean()
            if any(correlation > least and difference <= most for least, most in _AGREEMENT):
                found.append((row, other, correlation))
    return found


def _unit_greys(table: Thumbnails) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the grey thumbnails without their mean and of length 1 [M, 1024], and which are nearly flat [M]."""
    unit = np.empty((len(table), SIDE * SIDE), dtype=np.float32)
    flat = np.empty(len(table), dtype=bool)
    for start in range(0, len(table), _BLOCK):
        grey = table[start : start + _BLOCK].mean(axis=3, dtype=np.float32).reshape(-1, SIDE * SIDE)
        grey -= grey.mean(axis=1, keepdims=True)
        norm = np.linalg.norm(grey, axis=1)
        flat[start : start + _BLOCK] = norm / SIDE < _LEAST_SPREAD
        unit[start : start + _BLOCK] = grey / np.maximum(norm, 1e-6)[:, None]
    return unit, flat


def _coarse(unit: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the means of squares of 4 x 4 pixels, scaled so that two pictures are never farther apart here [M, 64] than in full [M, 1024]."""
    step = SIDE // _COARSE_SIDE
    squares = unit.reshape(-1, _COARSE_SIDE, step, _COARSE_SIDE, step)
    return squares.sum(axis=(2, 4)).reshape(len(unit), -1) / step


def _for_closeness(points: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return two tables whose product holds minus half the squared distance of every pair of `points`."""
    half, ones = -(points**2).sum(axis=1, keepdims=True) / 2, np.ones((len(points), 1), dtype=np.float32)
    return np.concatenate([points, half, ones], axis=1), np.concatenate([points, ones, half], axis=1)
