"""Metrics of scores and decisions against labels with NaN for "missing"; a ratio without a denominator is NaN."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


class Counts(NamedTuple):
    """Confusion counts per attribute, each [K]; a missing label counts only in `missing`."""

    true_positive: Ints
    false_positive: Ints
    false_negative: Ints
    true_negative: Ints
    missing: Ints

    @property
    def positives(self) -> Ints:
        """Observed positives [K]."""
        return self.true_positive + self.false_negative

    @property
    def negatives(self) -> Ints:
        """Observed negatives [K]."""
        return self.true_negative + self.false_positive

    def total(self) -> "Counts":
        """Sum over the attributes, for micro averages; each [1]."""
        return Counts(*(np.atleast_1d(values.sum()) for values in self))


def count_decisions(labels: Floats, decisions: Bools) -> Counts:
    """Compare decisions [N, K] with labels [N, K]."""
    positive, negative = labels == 1, labels == 0
    cells = (positive & decisions, negative & decisions, positive & ~decisions, negative & ~decisions, np.isnan(labels))
    return Counts(*(cell.sum(axis=0) for cell in cells))


def precision(counts: Counts) -> Floats:
    """TP / (TP + FP), NaN where nothing was predicted."""
    return _ratio(counts.true_positive, counts.true_positive + counts.false_positive)


def recall(counts: Counts) -> Floats:
    """TP / (TP + FN), NaN without positives."""
    return _ratio(counts.true_positive, counts.positives)


def f1(counts: Counts) -> Floats:
    """2 TP / (2 TP + FP + FN), NaN without positives (nothing could have been found)."""
    value = _ratio(2 * counts.true_positive, 2 * counts.true_positive + counts.false_positive + counts.false_negative)
    return np.where(counts.positives > 0, value, np.nan)


def accuracy(counts: Counts) -> Floats:
    """(TP + TN) / observed, NaN without observed labels."""
    return _ratio(counts.true_positive + counts.true_negative, counts.positives + counts.negatives)


def average_precision(labels: Floats, scores: Floats) -> Floats:
    """Return scikit-learn's average precision per attribute [K] over observed labels; NaN unless both classes occur."""
    from sklearn.metrics import average_precision_score

    return _per_attribute(average_precision_score, labels, scores)


def auroc(labels: Floats, scores: Floats) -> Floats:
    """Return the area under the ROC curve per attribute [K] over observed labels; NaN unless both classes occur."""
    from sklearn.metrics import roc_auc_score

    return _per_attribute(roc_auc_score, labels, scores)


def mean_defined(values: Floats) -> float:
    """Return the mean of the defined values, NaN where there are none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Return mean and standard deviation of the defined values, and all values; undefined ones are NaN."""
    every = np.array(values, dtype=float)
    defined = every[~np.isnan(every)]
    sd = float(defined.std(ddof=1)) if len(defined) > 1 else float("nan")
    return {"mean": mean_defined(every), "sd": sd, "values": every.tolist()}


def to_logits(scores: Floats) -> Floats:
    """Return the logits of scores [N, K]; those that 32 bits have rounded to 0 or 1 come back as about -+16."""
    values: Floats = logit(np.clip(scores, 1e-7, 1 - 1e-7))
    return values


def agreement(labels: Floats, decisions: Bools) -> dict[str, float]:
    """Return the shares of observed labels decided rightly, and of images with every label observed and right."""
    observed, right = ~np.isnan(labels), (decisions == (labels == 1)).astype(float)
    exact = right[observed.all(axis=1)].min(axis=1, initial=1)
    return {"hamming_accuracy": mean_defined(right[observed]), "exact_match": mean_defined(exact)}


def trivial_figures(labels: Floats) -> dict[str, Floats]:
    """Score trivial predictors per attribute [K]: everything positive, the majority, the prevalence as score."""
    share = prevalences(labels)
    everything = f1(count_decisions(labels, np.ones(labels.shape, dtype=bool)))
    return {
        "all_positive_f1": everything,
        "majority_f1": np.where((share > 0) & (share <= 0.5), 0.0, everything),
        "majority_accuracy": np.maximum(share, 1 - share),
        "prevalence_average_precision": np.where((share > 0) & (share < 1), share, np.nan),
    }


def trivial_predictors(labels: Floats) -> dict[str, dict[str, float]]:
    """Average the figures of the trivial predictors on labels [N, K] over the attributes."""
    macro = {name: mean_defined(values) for name, values in trivial_figures(labels).items()}
    everything, majority = np.ones(labels.shape, dtype=bool), np.broadcast_to(prevalences(labels) > 0.5, labels.shape)
    return {
        "all_positive": {"macro_f1": macro["all_positive_f1"]} | agreement(labels, everything),
        "majority": {"macro_f1": macro["majority_f1"]} | agreement(labels, majority),
        "prevalence": {"macro_average_precision": macro["prevalence_average_precision"]},
    }


def prevalences(labels: Floats) -> Floats:
    """Return the share of positives among the observed labels of each attribute [K]."""
    positives, negatives = (labels == 1).sum(axis=0), (labels == 0).sum(axis=0)
    return _ratio(positives, positives + negatives)


def nan_to_none(value: Any) -> Any:
    """Replace NaN by None throughout nested dicts and lists, and numpy's numbers by Python's, as JSON wants it."""
    if isinstance(value, dict):
        return {key: nan_to_none(item) for key, item in value.items()}
    if isinstance(value, list):
        return [nan_to_none(item) for item in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and np.isnan(value) else value


def _ratio(numerator: NDArray[Any], denominator: NDArray[Any]) -> Floats:
    return np.divide(numerator, denominator, out=np.full(np.shape(denominator), np.nan), where=denominator > 0)


def _per_attribute(metric: Callable[[Floats, Floats], float], labels: Floats, scores: Floats) -> Floats:
    values = np.full(labels.shape[1], np.nan)
    for k in range(labels.shape[1]):
        observed = ~np.isnan(labels[:, k])
        truth = labels[observed, k]
        if (truth == 1).any() and (truth == 0).any():
            values[k] = metric(truth, scores[observed, k])
    return values
