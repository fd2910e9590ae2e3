"""Metrics of scores and decisions against labels with NaN for "missing"; a ratio without a denominator is NaN, never 0 or 1."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aimonk_hf.evaluation.resampling import bootstrap_intervals
from aimonk_hf.evaluation.signal_test import ALPHA, judge_signal, permutation_p_values

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]


@dataclass
class Counts:
    """Confusion counts per attribute, each [K]; a missing label counts only in `missing`."""

    true_positive: NDArray[np.int64]
    false_positive: NDArray[np.int64]
    false_negative: NDArray[np.int64]
    true_negative: NDArray[np.int64]
    missing: NDArray[np.int64]

    @property
    def positives(self) -> NDArray[np.int64]:
        """Observed positives [K]."""
        return self.true_positive + self.false_negative

    @property
    def negatives(self) -> NDArray[np.int64]:
        """Observed negatives [K]."""
        return self.true_negative + self.false_positive

    def total(self) -> "Counts":
        """Sum over the attributes, for micro averages; each [1]."""
        return Counts(*(np.atleast_1d(values.sum()) for values in vars(self).values()))


def count_decisions(labels: Floats, decisions: Bools) -> Counts:
    """Compare decisions [N, K] with labels [N, K]."""
    positive, negative = labels == 1, labels == 0
    return Counts(
        (positive & decisions).sum(axis=0),
        (negative & decisions).sum(axis=0),
        (positive & ~decisions).sum(axis=0),
        (negative & ~decisions).sum(axis=0),
        np.isnan(labels).sum(axis=0),
    )


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


def hamming_accuracy(labels: Floats, decisions: Bools) -> float:
    """Return the share of observed labels decided rightly."""
    return float(accuracy(count_decisions(labels, decisions).total())[0])


def exact_match(labels: Floats, decisions: Bools) -> float:
    """Return the share of images with every label right, among images with every label observed."""
    complete = ~np.isnan(labels).any(axis=1)
    if not complete.any():
        return float("nan")
    return float(((labels == 1) == decisions)[complete].all(axis=1).mean())


def mean_defined(values: Floats) -> float:
    """Return the mean over the attributes where the value is defined; NaN where none is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def build_report(
    labels: Floats,
    scores: Floats,
    decisions: Bools,
    attributes: list[str],
    thresholds: dict[str, float],
    chose_nothing: bool = False,
    groups: NDArray[np.int64] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the content of metrics.json for labels, scores and decisions [N, K].

    `decisions` are given rather than derived, because thresholds tuned on the same images must not judge them (see `thresholds.cross_fit`);
    `thresholds` are those stored with the model. Only where the images chose nothing of the model (`chose_nothing`) are there intervals,
    p-values and a verdict; images with one number in `groups` [N] are copies of each other. The trivial predictors know the class frequencies
    of the very labels they are judged on.
    """
    counts = count_decisions(labels, decisions)
    columns = {
        "precision": precision(counts),
        "recall": recall(counts),
        "f1": f1(counts),
        "accuracy": accuracy(counts),
        "average_precision": average_precision(labels, scores),
        "auroc": auroc(labels, scores),
    }
    averaged = ("f1", "precision", "recall", "average_precision", "auroc")
    total = counts.total()
    report: dict[str, Any] = {
        "n_images": len(labels),
        "attributes": list(attributes),
        "macro": {name: mean_defined(columns[name]) for name in averaged}
        | {"hamming_accuracy": hamming_accuracy(labels, decisions), "exact_match": exact_match(labels, decisions)},
        "macro_covers": {name: int((~np.isnan(columns[name])).sum()) for name in averaged},
        "micro": {
            "f1": float(f1(total)[0]),
            "precision": float(precision(total)[0]),
            "recall": float(recall(total)[0]),
        },
        "per_attribute": {
            name: {
                "n_positive": int(counts.positives[k]),
                "n_negative": int(counts.negatives[k]),
                "n_missing": int(counts.missing[k]),
                "threshold": thresholds[name],
                **{metric: float(values[k]) for metric, values in columns.items()},
            }
            for k, name in enumerate(attributes)
        },
        "trivial": trivial_predictors(labels),
    }
    _add_trivial_per_attribute(report, labels)
    if chose_nothing:
        _add_evidence(report, labels, scores, decisions, groups, seed)
    else:
        _leave_evidence_out(report)
    cleaned: dict[str, Any] = nan_to_none(report)
    return cleaned


def _add_trivial_per_attribute(report: dict[str, Any], labels: Floats) -> None:
    """Put beside each attribute's metrics what doing nothing scores, and how far the model is above it (`lift`)."""
    prevalence, majority_positive, defined = _frequencies(labels)
    everything = f1(count_decisions(labels, np.ones(labels.shape, dtype=bool)))
    for k, row in enumerate(report["per_attribute"].values()):
        share = float(prevalence[k])
        row["trivial"] = {
            "all_positive_f1": float(everything[k]),
            "majority_f1": (float(everything[k]) if majority_positive[k] else 0.0) if row["n_positive"] else np.nan,
            "majority_accuracy": max(share, 1 - share),
            "prevalence_average_precision": share if defined[k] else np.nan,
        }
        row["lift"] = {
            "f1": row["f1"] - row["trivial"]["all_positive_f1"],
            "average_precision": row["average_precision"] - row["trivial"]["prevalence_average_precision"],
            "auroc": row["auroc"] - 0.5,
        }
    for name in ("f1", "average_precision", "auroc"):
        lifts = np.array([row["lift"][name] for row in report["per_attribute"].values()])
        report.setdefault("macro_lift", {})[name] = mean_defined(lifts)


def _add_evidence(
    report: dict[str, Any],
    labels: Floats,
    scores: Floats,
    decisions: Bools,
    groups: NDArray[np.int64] | None,
    seed: int,
) -> None:
    """Add intervals, p-values, `signal` and `verdict`; of images that are copies of each other the permutations take one."""
    intervals, mean_intervals = bootstrap_intervals(labels, scores, decisions, groups=groups, seed=seed)
    first = np.arange(len(labels)) if groups is None else np.sort(np.unique(groups, return_index=True)[1])
    p_values = permutation_p_values(labels[first], scores[first], seed=seed)
    for k, row in enumerate(report["per_attribute"].values()):
        for metric, ends in intervals.items():
            row[f"{metric}_ci95"] = None if np.isnan(ends[k]).any() else ends[k].tolist()
        row["p_value"] = float(p_values[k])
        row["signal"] = None if np.isnan(p_values[k]) else bool(p_values[k] <= ALPHA)
    report["macro_ci95"] = {
        metric: None if np.isnan(ends).any() else ends.tolist() for metric, ends in mean_intervals.items()
    }
    report["signal"], report["verdict"] = judge_signal(report["attributes"], p_values)


def _leave_evidence_out(report: dict[str, Any]) -> None:
    nothing = dict.fromkeys(("auroc_ci95", "average_precision_ci95", "f1_ci95", "p_value", "signal"))
    for row in report["per_attribute"].values():
        row |= nothing
    report |= {"macro_ci95": dict.fromkeys(("auroc", "average_precision", "f1")), "signal": None, "verdict": None}


def trivial_predictors(labels: Floats) -> dict[str, dict[str, float]]:
    """Return what doing nothing scores on labels [N, K]: everything positive, each attribute's majority, the prevalence as score."""
    prevalence, majority_positive, both = _frequencies(labels)
    everything = np.ones(labels.shape, dtype=bool)
    majority = np.broadcast_to(majority_positive, labels.shape)
    return {
        name: {
            "macro_f1": mean_defined(f1(count_decisions(labels, decisions))),
            "hamming_accuracy": hamming_accuracy(labels, decisions),
            "exact_match": exact_match(labels, decisions),
        }
        for name, decisions in (("all_positive", everything), ("majority", majority))
    } | {"prevalence": {"macro_average_precision": mean_defined(np.where(both, prevalence, np.nan))}}


def _frequencies(labels: Floats) -> tuple[Floats, Bools, Bools]:
    """Return per attribute the prevalence, whether positives are the majority, and whether both kinds occur."""
    positives, negatives = (labels == 1).sum(axis=0), (labels == 0).sum(axis=0)
    return _ratio(positives, positives + negatives), positives > negatives, (positives > 0) & (negatives > 0)


def nan_to_none(value: Any) -> Any:
    """Replace NaN by None throughout nested dicts and lists, as JSON wants it."""
    if isinstance(value, dict):
        return {key: nan_to_none(item) for key, item in value.items()}
    if isinstance(value, list):
        return [nan_to_none(item) for item in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def _ratio(numerator: NDArray[Any], denominator: NDArray[Any]) -> Floats:
    result = np.full(np.shape(denominator), np.nan)
    return np.divide(numerator, denominator, out=result, where=np.asarray(denominator) > 0)


def _per_attribute(metric: Callable[[Floats, Floats], float], labels: Floats, scores: Floats) -> Floats:
    values = np.full(labels.shape[1], np.nan)
    for k in range(labels.shape[1]):
        observed = ~np.isnan(labels[:, k])
        truth = labels[observed, k]
        if (truth == 1).any() and (truth == 0).any():
            values[k] = metric(truth, scores[observed, k])
    return values
