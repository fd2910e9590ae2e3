"""Labels that are probably wrong and missing ones that could be filled, from scores by a model that has not seen the image."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from aimonk_hf.data.labels import Labels
from aimonk_hf.errors import AimonkError
from aimonk_hf.evaluation.calibration import fit_scaling, to_logits
from aimonk_hf.storage import csv_line, score_columns, write_text

Floats = NDArray[np.floating[Any]]

COLUMNS = ("image", "attribute", "label", "suggested", "score", "kind", "accept")
# A class needs this many labels before its typical score says anything.
_FEWEST = 5
# A missing label is filled where labels at least this far out agree with the score this often.
_FILL_PURITY = 0.97
_FILL_EVIDENCE = 20
_YES = ("1", "y", "yes", "x", "true")


@dataclass
class Suggestion:
    """One cell of the label table: what it holds ("1", "0", "NA"), what it should perhaps hold, the score, and "suspect" or "fill"."""

    row: int
    attribute: int
    label: str
    suggested: int
    score: float
    kind: str


def find_suspects(labels: Floats, scores: Floats) -> list[Suggestion]:
    """Return the observed labels that confident learning calls wrong, most doubtful first (Northcutt, Jiang and Chuang, 2021).

    Per attribute, over its observed labels [N] only and on calibrated scores: a 0 is suspect where the score reaches the mean score of the
    images labelled 1, a 1 where it falls to the mean of those labelled 0. These bounds are kept within [.5, .75] and [.25, .5], so that a
    suspect label is always the less likely one, and confident models find more than the worst. NaN scores [N, K] are passed over.
    """
    found: list[tuple[float, Suggestion]] = []
    for k in range(labels.shape[1]):
        observed = np.flatnonzero(~np.isnan(labels[:, k]) & ~np.isnan(scores[:, k]))
        truth = labels[observed, k]
        if min((truth == 1).sum(), (truth == 0).sum()) < _FEWEST:
            continue
        logits = to_logits(scores[observed, k])
        scale, shift = fit_scaling(truth, logits)
        if scale <= 0:
            continue  # the scores do not tell the classes apart
        own = expit(scale * logits + shift)
        high, low = own[truth == 1].mean().clip(0.5, 0.75), own[truth == 0].mean().clip(0.25, 0.5)
        for place in np.flatnonzero(((truth == 0) & (own >= high)) | ((truth == 1) & (own <= low))):
            label, row = int(truth[place]), int(observed[place])
            doubt = float(abs(own[place] - label))
            found.append((doubt, Suggestion(row, k, str(label), 1 - label, float(scores[row, k]), "suspect")))
    return [suggestion for _, suggestion in sorted(found, key=lambda pair: -pair[0])]


def find_fillable(labels: Floats, scores: Floats) -> list[Suggestion]:
    """Return the missing labels that the scores [N, K] settle: among observed ones as far out, at least 20, 97% agree."""
    found: list[Suggestion] = []
    for k in range(labels.shape[1]):
        own = scores[:, k]
        gaps = np.flatnonzero(np.isnan(labels[:, k]) & ~np.isnan(own))
        observed = ~np.isnan(labels[:, k]) & ~np.isnan(own)
        for value, direction in ((1, -1.0), (0, 1.0)):
            limit = _pure_beyond(labels[observed, k] == value, direction * own[observed])
            for row in gaps[direction * own[gaps] <= limit]:
                found.append(Suggestion(int(row), k, "NA", value, float(own[row]), "fill"))
    return sorted(found, key=lambda suggestion: -abs(suggestion.score - 0.5))


def _pure_beyond(right: NDArray[np.bool_], distance: Floats) -> float:
    """Return the largest distance up to which at least 97% of at least 20 labels are right; minus infinity where there is none."""
    order = np.argsort(distance, kind="stable")
    share = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    good = np.flatnonzero((share >= _FILL_PURITY) & (np.arange(len(order)) + 1 >= _FILL_EVIDENCE))
    return float(distance[order[good[-1]]]) if len(good) else -np.inf


def write_suggestions(path: Path, suggestions: list[Suggestion], images: list[str], attributes: list[str]) -> None:
    """Write a CSV with an empty `accept` column, which a person fills in."""
    rows = [
        [images[one.row], attributes[one.attribute], one.label, one.suggested, f"{one.score:.4f}", one.kind, ""]
        for one in suggestions
    ]
    write_text(path, "".join(map(csv_line, [COLUMNS, *rows])))


def accept_suggestions(path: Path, labels: Labels) -> tuple[Labels, int]:
    """Return the labels with the rows of a suggestions CSV whose `accept` says yes (1, y, yes, x), and how many these are.

    Raises `AimonkError` for another header, an unknown image or attribute, or a label that has changed since.
    """
    try:
        rows = list(csv.DictReader(path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")))
    except OSError as error:
        raise AimonkError(f"cannot read {path}: {error.strerror or error}") from error
    if rows and not set(COLUMNS) <= set(rows[0]):
        raise AimonkError(f"{path} is no list of suggestions: its header must be {','.join(COLUMNS)}")
    values = labels.values.copy()
    row_of = {image: row for row, image in enumerate(labels.images)}
    column_of = {attribute: column for column, attribute in enumerate(labels.attributes)}
    accepted = 0
    for number, one in enumerate(rows, start=2):
        if (one["accept"] or "").strip().lower() not in _YES:
            continue
        if one["image"] not in row_of or one["attribute"] not in column_of or one["suggested"] not in ("0", "1"):
            raise AimonkError(
                f"{path}:{number}: {one['image']}, {one['attribute']} = {one['suggested']} does not fit {labels.source}"
            )
        place = row_of[one["image"]], column_of[one["attribute"]]
        if cell_text(labels.values[place]) != one["label"]:
            raise AimonkError(
                f"{path}:{number}: the label is now {cell_text(labels.values[place])}, not {one['label']}: audit again"
            )
        values[place] = float(one["suggested"])
        accepted += 1
    return Labels(labels.images, labels.attributes, values, labels.source), accepted


def write_labels(path: Path, labels: Labels) -> None:
    """Write a table as labels.csv, for `train --labels`."""
    rows = [[image, *map(cell_text, row)] for image, row in zip(labels.images, labels.values, strict=True)]
    write_text(path, "".join(map(csv_line, [["image", *labels.attributes], *rows])))


def read_scores(path: Path, images: list[str], attributes: list[str]) -> Floats:
    """Return scores [N, K] in the order of `images` and `attributes` from a CSV with a column `image` and one per attribute.

    A column is named as in oof.csv, or simply by the attribute. Rows of other images, other columns and empty cells are passed over: an image
    without scores has NaN. Raises `AimonkError` for a missing or repeated column and for values that are NaN or outside [0, 1].
    """
    row_of = {image: row for row, image in enumerate(images)}
    scores = np.full((len(images), len(attributes)), np.nan)
    some = False
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = csv.DictReader(file)
            header = list(rows.fieldnames or [])
            columns = [
                column if column in header or name == "image" else name
                for name, column in zip(attributes, score_columns(attributes), strict=True)
            ]
            for column in ("image", *columns) if header else ():
                if header.count(column) != 1:
                    found = "no column" if column not in header else "two columns"
                    raise AimonkError(f"{path} has {found} {column}: it must hold image and a score per attribute")
            for number, one in enumerate(rows, start=2):  # row by row: dicts of all rows would take gigabytes
                some = True
                if one["image"] in row_of:
                    scores[row_of[one["image"]]] = [_score_in(one[column], path, number) for column in columns]
    except OSError as error:
        raise AimonkError(f"cannot read the scores {path}: {error.strerror or error}") from error
    if not some:
        raise AimonkError(f"{path} has no row: it must hold image and a score per attribute")
    if ((scores < 0) | (scores > 1)).any():
        raise AimonkError(f"{path}: scores must lie between 0 and 1")
    return scores


def _score_in(cell: str | None, path: Path, number: int) -> float:
    if not cell:
        return np.nan
    try:
        score = float(cell)
    except (TypeError, ValueError):
        score = np.nan
    if np.isnan(score):
        raise AimonkError(
            f"{path}:{number}: the score {cell!r} is not a number; leave the cell empty where there is none"
        )
    return score


def cell_text(value: float) -> str:
    """Return a label as it stands in a file."""
    return "NA" if np.isnan(value) else str(int(value))
