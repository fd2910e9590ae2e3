"""Find images that belong together: copies byte for byte, near-duplicates, images of one value in a group column."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from aimonk_hf.data.dataset import AttributeDataset, duplicate_groups
from aimonk_hf.data.image_cache import ImageCache
from aimonk_hf.data.images import open_image, read_image, shrink
from aimonk_hf.errors import ImageError

SIDE = 32
# Thumbnails of near-duplicates correlate above the first number and differ by no more than the second, a mean step of
# 255. The stricter correlation allows for another exposure.
_AGREEMENT = ((0.97, 12.0), (0.99, 30.0))
# Below this spread of grey a thumbnail is nearly flat, and its correlation would be that of noise.
_LEAST_SPREAD = 4.0
_COARSE_SIDE = 8
_LEAST_PRODUCT = _AGREEMENT[0][0] - 5e-4  # for rounding
_BLOCK = 512

Thumbnails = NDArray[np.uint8]
Places = NDArray[np.int64]
Points = NDArray[np.float32]


@dataclass(slots=True)
class Pair:
    """Two rows whose images are `kind` "exact" or "near" duplicates; `correlation` is that of their thumbnails."""

    first: int
    second: int
    kind: str
    correlation: float


def thumbnail(path: Path) -> Thumbnails:
    """Return an image squeezed to [32, 32, 3]; raises `ImageError` where it cannot be read."""
    with open_image(path) as image:
        shrink(image, 4 * SIDE)
        return np.asarray(read_image(image, in_place=True).resize((SIDE, SIDE), Image.Resampling.BOX))


def keep_thumbnail(kept: dict[Path, Thumbnails], cache: ImageCache | None, path: Path) -> str | None:
    """Enter an image's thumbnail in `kept`, from the cache if it has it; return the reason if it cannot be read."""
    try:
        kept[path] = thumbnail(path) if cache is None else cache.get(path, lambda: thumbnail(path))
    except ImageError as error:
        return str(error)
    return None


def find_duplicates(paths: list[Path], thumbnails: Sequence[Thumbnails | None], spanning: bool = False) -> list[Pair]:
    """Return the pairs of rows with identical bytes, and those whose thumbnails agree in structure and in colour.

    No pair is missed, as those of different hashes would be; n copies of one file give n - 1 pairs with its first row.
    Pairs that are `spanning` join the same groups, but are no more than these need: a still camera gives millions.
    """
    small = {row: image for row, image in enumerate(thumbnails) if image is not None}
    rows = list(small)
    first_of = {
        row: rows[group] for row, group in zip(rows, duplicate_groups([paths[row] for row in rows]), strict=True)
    }
    pairs = [Pair(first, row, "exact", 1.0) for row, first in first_of.items() if first != row]
    distinct = [row for row, first in first_of.items() if first == row]
    near = sorted(zip(*_near_pairs([small[row] for row in distinct], spanning), strict=True))
    return pairs + [Pair(distinct[i], distinct[j], "near", float(correlation)) for i, j, correlation in near]


def group_numbers(n_rows: int, pairs: list[Pair], values: list[str] | None = None) -> Places:
    """Return a group number per row [n_rows], its first row; rows that share one are joined, also through others.

    They are joined by pairs, and by one value of `values` [n_rows], where "" joins nothing.
    """
    first: dict[str, int] = {}
    joined = [(pair.first, pair.second) for pair in pairs]
    joined += [(first.setdefault(value, row), row) for row, value in enumerate(values or []) if value]
    return _components(n_rows, np.array(joined, dtype=np.int64).reshape(-1, 2).T)


def _components(n_rows: int, ends: Places) -> Places:
    """Return the first row [n_rows] of the rows that edges with these `ends` [2, E] connect to each row."""
    graph = coo_array((np.ones(ends.shape[1]), tuple(ends)), shape=(n_rows, n_rows))
    component = connected_components(graph, directed=False)[1]
    _, first, group = np.unique(component, return_index=True, return_inverse=True)
    return first[group]


def image_groups(dataset: AttributeDataset, near: bool = True, kept: dict[Path, Thumbnails] | None = None) -> Places:
    """Return a group number per image [N]; those of one group stay on one side of every division.

    They are copies, near-duplicates unless `near` is off, and images of one value in the group column. Thumbnails are
    taken from `kept`, where they are given. A run finds its groups once, and its parts have them.
    """
    if dataset.groups is not None:
        return dataset.groups
    paths, pairs = dataset.paths, []
    if near and kept is None:
        kept = {}
        dataset.find_problems(check=partial(keep_thumbnail, kept, None))
    if near and kept is not None:
        pairs = find_duplicates(paths, list(map(kept.get, paths)), spanning=True)
    else:
        pairs = [Pair(first, row, "exact", 1.0) for row, first in enumerate(duplicate_groups(paths).tolist())]
    return group_numbers(len(dataset), pairs, dataset.labels.groups)


def conflicts(pair: Pair, labels: NDArray[Any], attributes: list[str]) -> dict[str, tuple[int, int]]:
    """Return the attributes on which both images are labelled, differently, with the two labels."""
    both = np.flatnonzero(np.abs(labels[pair.first] - labels[pair.second]) == 1)
    return {attributes[k]: (int(labels[pair.first, k]), int(labels[pair.second, k])) for k in both}


def _near_pairs(small: list[Thumbnails], spanning: bool) -> tuple[Places, Places, Points]:
    """Return i < j and correlation [P] of the thumbnails that agree; `spanning` passes over those that are connected.

    Comparing every pair in full would take hours for 100,000 images, so those that agree with less detail come first.
    """
    blocks = [np.stack(small[start : start + _BLOCK]) for start in range(0, len(small), _BLOCK)]
    coarse = np.concatenate([np.empty((0, _COARSE_SIDE**2 + 1), np.float32), *map(_coarse, blocks)])
    structured = np.flatnonzero(~np.isnan(coarse[:, 0]))
    points = coarse[structured]
    found = [(structured[:0], structured[:0], np.empty(0, np.float32))]
    group = np.arange(len(small))
    for row in range(0, len(points), _BLOCK):
        for column in range(row, len(points), 8 * _BLOCK):
            agree = points[row : row + _BLOCK] @ points[column : column + 8 * _BLOCK].T >= _LEAST_PRODUCT
            i, j = np.divmod(np.flatnonzero(agree), agree.shape[1])  # np.nonzero takes far longer
            i, j = structured[row + i], structured[column + j]
            new = (i < j) & (group[i] != group[j])
            i, j = i[new], j[new]
            for start in range(0, len(i), _BLOCK):
                one, other = i[start : start + _BLOCK], j[start : start + _BLOCK]
                apart = group[one] != group[other]
                if apart.any():
                    found.append(_confirmed(small, one[apart], other[apart]))
                    if spanning and len(found[-1][0]):
                        ends = zip((group, np.arange(len(small))), found[-1][:2], strict=True)
                        group = _components(len(small), np.stack([np.concatenate(both) for both in ends]))
    i, j, correlation = map(np.concatenate, zip(*found, strict=True))
    return i, j, correlation


def _unit_greys(table: Thumbnails) -> Points:
    """Return the grey thumbnails without their mean and of length 1 [M, 1024]; NaN where they are nearly flat."""
    grey = table.reshape(len(table), -1, 3).mean(axis=2, dtype=np.float32)
    grey -= grey.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(grey, axis=1, keepdims=True)
    return grey / np.where(norm / SIDE < _LEAST_SPREAD, np.nan, norm)


def _coarse(table: Thumbnails) -> Points:
    """Return points of length 1 [M, 65] whose product is never below the correlation of the thumbnails.

    The means of squares of 4 x 4 pixels bring no two points of a sphere farther apart, and neither does the last
    number, the length of what they leave out.
    """
    step = SIDE // _COARSE_SIDE
    squares = _unit_greys(table).reshape(len(table), _COARSE_SIDE, step, _COARSE_SIDE, step)
    means = squares.sum(axis=(2, 4)).reshape(len(table), -1) / np.float32(step)
    rest = np.sqrt(np.maximum(0, 1 - (means**2).sum(axis=1, keepdims=True)))
    return np.concatenate([means, rest], axis=1)


def _confirmed(small: list[Thumbnails], i: Places, j: Places) -> tuple[Places, Places, Points]:
    """Return those of the pairs i, j [P] that agree in full, with the correlation."""
    one, other = (np.stack([small[row] for row in rows]) for rows in (i, j))
    correlation = np.einsum("pk,pk->p", _unit_greys(one), _unit_greys(other))
    difference = np.abs(one.astype(np.int16) - other).mean(axis=(1, 2, 3))
    agrees = np.any([(correlation > least) & (difference <= most) for least, most in _AGREEMENT], axis=0)
    return i[agrees], j[agrees], correlation[agrees]
