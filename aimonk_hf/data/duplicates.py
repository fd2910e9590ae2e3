"""Pictures that are copies of each other: byte for byte, or nearly so, confirmed on their pixels."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from aimonk_hf.data.dataset import duplicate_groups
from aimonk_hf.data.images import open_image, read_image, shrink
from aimonk_hf.errors import ImageError

SIDE = 32
# Two pictures are near-duplicates if their thumbnails correlate above the first number and differ by no more than the second, a mean step of
# 255. The stricter correlation allows for another exposure.
_AGREEMENT = ((0.97, 12.0), (0.99, 30.0))
# Below this spread of grey a thumbnail is nearly flat, and its correlation would be that of noise.
_LEAST_SPREAD = 4.0
# Comparing every pair in full would take hours for 100,000 pictures. As unit vectors they lie on a sphere, where a correlation above .97 is a small
# angle; seen with less detail no angle grows, so what is too far apart there is too far apart in full. The last terms are for rounding.
_COARSE_SIDE = 8
_ROUGH = 24
_LEAST_PRODUCT = _AGREEMENT[0][0] - 5e-4
_WIDEST = math.acos(_AGREEMENT[0][0]) + 5e-3
_BLOCK = 512

Thumbnails = NDArray[np.uint8]
Places = NDArray[np.int64]
Points = NDArray[np.float32]


@dataclass(slots=True)
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
            shrink(image, 4 * SIDE)
            small = read_image(image).resize((SIDE, SIDE), Image.Resampling.BOX)
    except ImageError:
        return None
    return np.asarray(small)


def find_duplicates(paths: list[Path], thumbnails: list[Thumbnails | None]) -> list[Pair]:
    """Return the pairs of rows with identical bytes, and those whose thumbnails agree in structure and in colour.

    No pair is missed, as those of different hashes would be; a group of n copies of one file gives n - 1 pairs with its first row.
    """
    usable = [row for row, small in enumerate(thumbnails) if small is not None]
    if not usable:
        return []
    group_of = duplicate_groups([paths[row] for row in usable])
    pairs = [Pair(usable[group], usable[place], "exact", 1.0) for place, group in enumerate(group_of) if group != place]
    first = [usable[place] for place in range(len(usable)) if group_of[place] == place]
    near = _near_pairs([small for row in first if (small := thumbnails[row]) is not None])
    return pairs + [Pair(first[i], first[j], "near", float(r)) for i, j, r in zip(*near, strict=True)]


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


def _near_pairs(small: list[Thumbnails]) -> tuple[Places, Places, Points]:
    """Return i, j and correlation [P] of the thumbnails that agree, in the order of i < j."""
    coarse = np.empty((len(small), _COARSE_SIDE**2), dtype=np.float32)
    flat = np.empty(len(small), dtype=bool)
    for start in range(0, len(small), _BLOCK):
        block = slice(start, start + _BLOCK)
        unit, flat[block] = _unit_greys(np.stack(small[block]))
        coarse[block] = _coarse(unit)
    rows = np.flatnonzero(~flat)
    found = [
        _confirmed(small, *np.sort([rows[one], rows[other]], axis=0))
        for one, other in _candidates(coarse[rows])
        if len(one)
    ]
    i, j, correlation = (
        np.concatenate(parts) for parts in zip((rows[:0], rows[:0], coarse[:0, 0]), *found, strict=True)
    )
    order = np.lexsort((j, i))
    return i[order], j[order], correlation[order]


def _unit_greys(table: Thumbnails) -> tuple[Points, NDArray[np.bool_]]:
    """Return the grey thumbnails without their mean and of length 1 [M, 1024], and which are nearly flat [M]."""
    red, green, blue = np.moveaxis(table.reshape(len(table), -1, 3), 2, 0)
    grey = (red.astype(np.float32) + green + blue) / 3
    grey -= grey.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(grey, axis=1)
    return grey / np.maximum(norm, 1e-6)[:, None], norm / SIDE < _LEAST_SPREAD


def _coarse(unit: Points) -> Points:
    """Return the means of squares of 4 x 4 pixels, scaled so that two pictures are never farther apart here [M, 64] than in full [M, 1024]."""
    step = SIDE // _COARSE_SIDE
    gather = np.repeat(np.eye(_COARSE_SIDE, dtype=np.float32), step, axis=0) / np.float32(math.sqrt(step))
    return (gather.T @ unit.reshape(-1, SIDE, SIDE) @ gather).reshape(len(unit), -1)


def _on_sphere(points: Points) -> Points:
    """Return points [M, D + 1] of length 1: the last number is the length of what `points` leave out, which brings no two farther apart."""
    rest = np.sqrt(np.maximum(0, 1 - (points**2).sum(axis=1, keepdims=True)))
    return np.concatenate([points, rest], axis=1)


def _candidates(coarse: Points) -> Iterator[tuple[Places, Places]]:
    """Yield the places of pairs among `coarse` [M, 64] that may agree, each pair once, a bounded number at a time.

    Every point belongs to the nearest of some centres, and what agrees with one of a centre's own lies hardly farther from the centre than they
    do. So they are compared only with what lies within that reach, and there by the few numbers that tell most.
    """
    turned = coarse @ np.linalg.eigh(coarse.T @ coarse)[1][:, ::-1]
    fine = _on_sphere(turned)
    centres = fine[:: math.isqrt(len(fine)) // 3 + 1]
    owner, least = _owners(fine, centres)
    order = np.argsort(owner, kind="stable")
    fine, rough = fine[order], _on_sphere(turned[order, :_ROUGH])
    begin = np.searchsorted(owner[order], np.arange(len(centres) + 1))
    for first in range(0, len(centres), 16):
        within = centres[first : first + 16] @ fine[begin[first] :].T >= least[first : first + 16, None]
        for centre, inside in enumerate(within, first):
            near = np.flatnonzero(inside) + begin[first]
            for own in _blocks(np.arange(begin[centre], begin[centre + 1]), _BLOCK):
                for others in _blocks(near[near >= own[0]], 8 * _BLOCK):  # those before it looked for it themselves
                    hits = np.flatnonzero(rough[own] @ rough[others].T >= _LEAST_PRODUCT)  # np.nonzero takes far longer
                    i, j = own[hits // len(others)], others[hits % len(others)]
                    yield order[i[i < j]], order[j[i < j]]


def _owners(points: Points, centres: Points) -> tuple[Places, Points]:
    """Return the number of each point's nearest centre [M], and the least cosine that what agrees with a centre's own has to it."""
    owner = np.empty(len(points), dtype=np.int64)
    farthest = np.ones(len(centres), dtype=np.float32)
    for rows in _blocks(np.arange(len(points)), _BLOCK):
        cosines = points[rows] @ centres.T
        owner[rows] = cosines.argmax(axis=1)
        np.minimum.at(farthest, owner[rows], cosines.max(axis=1))
    return owner, np.cos(np.minimum(np.arccos(np.maximum(farthest, -1)) + _WIDEST, np.pi)) - np.float32(1e-5)


def _confirmed(small: list[Thumbnails], i: Places, j: Places) -> tuple[Places, Places, Points]:
    """Return those of the pairs i, j [P] that agree in full, with the correlation."""
    rows, places = np.unique(np.concatenate([i, j]), return_inverse=True)
    table = np.stack([small[row] for row in rows]).reshape(len(rows), -1)
    unit, _ = _unit_greys(table)
    correlation, difference = np.empty(len(i), dtype=np.float32), np.empty(len(i))
    for some in _blocks(np.arange(len(i)), _BLOCK // 4):
        one, other = places[some], places[some + len(i)]
        correlation[some] = np.einsum("pk,pk->p", unit[one], unit[other])
        steps = np.maximum(table[one], table[other]) - np.minimum(table[one], table[other])
        difference[some] = steps.mean(axis=1)
    agrees = np.any([(correlation > least) & (difference <= most) for least, most in _AGREEMENT], axis=0)
    return i[agrees], j[agrees], correlation[agrees]


def _blocks(values: Places, size: int) -> Iterator[Places]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
