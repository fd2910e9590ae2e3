"""Order the labels of one attribute for review: doubtful, missing, conflicting, or at random."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from aimonk_hf.audit.suspects import find_suspects
from aimonk_hf.data.duplicates import Pair
from aimonk_hf.evaluation.calibration import fit_scaling
from aimonk_hf.evaluation.metrics import to_logits

Floats = NDArray[np.floating[Any]]

QUEUES = {
    "suspect": "Labels that the scores contradict",
    "sure": "Missing labels of which the scores are sure",
    "unsure": "Missing labels of which the scores are unsure: these teach most",
    "conflict": "Near-duplicates with different labels",
    "random": "Images at random",
    "report": "Images of the report part: they judge the model, so no suggestion is shown",
}
_SURE = 0.9
_FEWEST = 5  # labels of each kind, below which scores say nothing
RANDOM_SHARE = 0.1  # of each page, so that the gain can be measured without bias


class Waiting(NamedTuple):
    """A row that waits in a queue, and the reason to look at it."""

    row: int
    queue: str
    reason: str = ""


def probabilities(labels: Floats, *scores: Floats) -> Floats:
    """Return the probability [N] that an attribute is present, from one or more scores [N] in (0, 1).

    Each is calibrated on the observed `labels` [N]; the mean of their logits counts. NaN where no score is known, and
    everywhere as long as there are fewer than five labels of each kind.
    """
    if min((labels == 1).sum(), (labels == 0).sum()) < _FEWEST:
        return np.full(len(labels), np.nan)
    logits = []
    for one in scores:
        known = np.flatnonzero(~np.isnan(labels + one))
        if len(np.unique(labels[known])) == 2:
            scale, shift = fit_scaling(labels[known], to_logits(one[known]))
            logits.append(max(scale, 0.0) * to_logits(one) + shift)
    if not logits:
        return np.full(len(labels), np.nan)
    known = ~np.isnan(logits)
    total = np.nansum(logits, axis=0) / np.maximum(known.sum(axis=0), 1)
    return np.where(known.any(axis=0), expit(total), np.nan)


def build_queues(
    labels: Floats, probability: Floats, pairs: Iterable[Pair], report: NDArray[np.bool_], seed: int = 0
) -> dict[str, list[Waiting]]:
    """Return the rows of each of `QUEUES` for labels and probabilities [N] of one attribute, the most useful first.

    Rows of the report part [N] wait in their own queue alone.
    """
    random = np.random.default_rng(seed).permutation(len(labels))
    missing, known = np.isnan(labels) & ~report, ~np.isnan(probability)
    certainty = np.where(known, np.abs(probability - 0.5), -1.0)
    found = find_suspects(labels[:, None], np.where(report, np.nan, probability)[:, None])
    sure = [row for row in np.argsort(-certainty, kind="stable") if missing[row] and certainty[row] >= _SURE - 0.5]
    unsure = [row for row in np.argsort(certainty, kind="stable") if missing[row] and 0 <= certainty[row] < _SURE - 0.5]
    conflicting: dict[int, int] = {}
    for pair in pairs:
        if abs(labels[pair.first] - labels[pair.second]) == 1:
            conflicting.setdefault(pair.first, pair.second)
            conflicting.setdefault(pair.second, pair.first)
    return {
        "suspect": [Waiting(one.row, "suspect", _score(probability[one.row])) for one in found],
        "sure": [Waiting(int(row), "sure", _score(probability[row])) for row in sure],
        "unsure": [Waiting(int(row), "unsure", _score(probability[row])) for row in unsure],
        "conflict": [
            Waiting(row, "conflict", f"its near-duplicate is labelled {'yes' if labels[other] else 'no'}")
            for row, other in conflicting.items()
            if not report[row]
        ],
        "random": [Waiting(int(row), "random") for row in random if not report[row]],
        "report": [Waiting(int(row), "report", "report part") for row in random if report[row]],
    }


def choose_page(
    queues: dict[str, list[Waiting]],
    queue: str,
    size: int,
    done: set[int],
    groups: NDArray[np.int64],
    random: np.random.Generator,
) -> list[Waiting]:
    """Return the next rows of a queue, a tenth of them from "random", none of `done`.

    Of images with one number in `groups` [N] a page shows one, except where near-duplicates are compared.
    """
    n_random = 0 if queue in ("random", "report") else int(random.binomial(size, RANDOM_SHARE))
    seen: set[int] = set()
    page: list[Waiting] = []
    for name, wanted in ((queue, size - n_random), ("random", n_random)):
        for one in queues[name]:
            if wanted <= 0:
                break
            group = one.row if queue == "conflict" else int(groups[one.row])
            if one.row not in done and group not in seen:
                seen.add(group)
                page.append(one)
                wanted -= 1
    return page if any(one.queue == queue for one in page) else []


def _score(probability: float) -> str:
    return f"score {probability:.2f}"
