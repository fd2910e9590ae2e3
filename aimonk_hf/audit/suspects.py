"""Find labels that are probably wrong and missing ones that could be filled, by scores of images unseen in training."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from aimonk_hf.data.formats import csv_rows
from aimonk_hf.data.labels import SUGGESTION_COLUMNS
from aimonk_hf.errors import AimonkError
from aimonk_hf.evaluation.calibration import fit_scaling
from aimonk_hf.evaluation.metrics import to_logits
from aimonk_hf.storage import score_columns, write_csv

Floats = NDArray[np.floating[Any]]

# A class needs this many labels before its typical score says anything.
_FEWEST = 5
# A missing label is filled where labels at least this far out agree with the score this often.
_FILL_PURITY = 0.97
_FILL_EVIDENCE = 20


class Suggestion(NamedTuple):
    """One cell of the label table: its label ("1", "0", "NA"), a better one, the score, and "suspect" or "fill"."""

    row: int
    attribute: int
    label: str
    suggested: int
    score: float
    kind: str


def find_suspects(labels: Floats, scores: Floats) -> list[Suggestion]:
    """Return the observed labels that confident learning calls wrong, most doubtful first (Northcutt et al., 2021).

    Per attribute, over its observed labels [N] only and on calibrated scores: a 0 is suspect where the score reaches
    the mean score of the images labelled 1, a 1 where it falls to the mean of those labelled 0. These bounds are kept
    within [.5, .75] and [.25, .5], so that a suspect label is always the less likely one, and confident models find
    more than the worst. NaN scores [N, K] are passed over.
    """
    found: list[tuple[float, Suggestion]] = []
    for k in range(labels.shape[1]):
        observed = np.flatnonzero(~np.isnan(labels[:, k] + scores[:, k]))
        truth = labels[observed, k]
        if min((truth == 1).sum(), (truth == 0).sum()) < _FEWEST:
            continue
        logits = to_logits(scores[observed, k])
        scale, shift = fit_scaling(truth, logits)
        if scale <= 0:
            continue  # the scores do not tell the classes apart
        own = expit(scale * logits + shift)
        high, low = own[truth == 1].mean().clip(0.5, 0.75), own[truth == 0].mean().clip(0.25, 0.5)
        for place in np.flatnonzero(np.where(truth == 0, own >= high, own <= low)):
            label, row = int(truth[place]), int(observed[place])
            doubt = float(abs(own[place] - label))
            found.append((doubt, Suggestion(row, k, str(label), 1 - label, float(scores[row, k]), "suspect")))
    return [suggestion for _, suggestion in sorted(found, key=lambda pair: -pair[0])]


def find_fillable(labels: Floats, scores: Floats) -> list[Suggestion]:
    """Return the missing labels that the scores [N, K] settle: of observed ones as far out, at least 20, 97% agree."""
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
    """Return the largest distance up to which at least 97% of at least 20 labels are right, or minus infinity."""
    order = np.argsort(distance, kind="stable")
    number = np.arange(1, len(order) + 1)
    good = np.flatnonzero((np.cumsum(right[order]) >= _FILL_PURITY * number) & (number >= _FILL_EVIDENCE))
    return float(distance[order[good[-1]]]) if len(good) else -np.inf


def write_suggestions(path: Path, suggestions: list[Suggestion], images: list[str], attributes: list[str]) -> None:
    """Write a CSV with an empty `accept` column, which a person fills in."""
    rows = (
        [images[one.row], attributes[one.attribute], one.label, one.suggested, f"{one.score:.4f}", one.kind, ""]
        for one in suggestions
    )
    write_csv(path, SUGGESTION_COLUMNS, rows)


def read_scores(path: Path, images: list[str], attributes: list[str]) -> Floats:
    """Return scores [N, K] of `images` and `attributes` from a CSV with a column `image` and one per attribute.

    A column is named as in oof.csv, or simply by the attribute. Rows of other images and other columns are passed over;
    an empty cell is NaN, as are the scores of an image without a row. Raises `AimonkError` for a missing or repeated
    column and for values outside [0, 1].
    """
    rows = csv_rows(path)
    _, header = next(rows)
    named = zip(attributes, score_columns(attributes), strict=True)
    columns = ["image", *(own if own in header or name == "image" else name for name, own in named)]
    for column in columns:
        if (n_found := header.count(column)) != 1:
            told = f"{'two columns' if n_found else 'no column'} {column}"
            raise AimonkError(f"{path} has {told}: it must hold image and a score per attribute")
    image, *places = map(header.index, columns)
    row_of = {image: row for row, image in enumerate(images)}
    scores = np.full((len(images), len(attributes)), np.nan)
    for line, cells in rows:
        if cells[image] in row_of:
            scores[row_of[cells[image]]] = [_score_in(cells[place], path, line) for place in places]
    return scores


def _score_in(cell: str, path: Path, line: int) -> float:
    try:
        score = float(cell or 0)
    except ValueError:
        score = np.nan
    if not 0 <= score <= 1:
        told = "is not a number between 0 and 1; leave the cell empty where there is no score"
        raise AimonkError(f"{path}:{line}: the score {cell!r} {told}")
    return score if cell else np.nan
