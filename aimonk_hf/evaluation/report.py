"""The way of a model's scores to metrics.json."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from aimonk_hf.console import listed
from aimonk_hf.data.dataset import AttributeDataset
from aimonk_hf.data.duplicates import image_groups
from aimonk_hf.data.images import shown_name
from aimonk_hf.errors import AimonkError, ImageError
from aimonk_hf.evaluation import metrics
from aimonk_hf.evaluation.calibration import expected_calibration_error
from aimonk_hf.evaluation.metrics import Bools, Floats, Ints, mean_defined
from aimonk_hf.evaluation.resampling import ALPHA, METRICS, bootstrap_intervals, judge_signal, permutation_p_values
from aimonk_hf.evaluation.split_file import parts_of, seen_images
from aimonk_hf.evaluation.thresholds import decide
from aimonk_hf.modeling.onnx_network import ONNX_FILES
from aimonk_hf.modeling.prediction import Predicting
from aimonk_hf.modeling.predictor import AimonkPredictor

_logger = logging.getLogger(__name__)


@dataclass
class Judged:
    """The readable images of a dataset with labels, scores and decisions [N, K], and the dict of metrics.json."""

    paths: list[Path]
    labels: NDArray[np.float32]
    scores: NDArray[np.float64]
    decisions: Bools
    report: dict[str, Any]


def evaluate(
    model: Predicting, dataset: AttributeDataset, batch_size: int = 32, progress: bool = False
) -> dict[str, Any]:
    """Return the dict of metrics.json for the model's stored thresholds; unreadable images are logged and left out.

    Columns are matched by name, and the attributes of the model that the labels have are judged, as `match_known` does.
    Where the model was trained or tuned on some of the images, by the record in its folder, there is no verdict;
    without a record this is unknown, and the verdict holds only if it was not.
    """
    return judge_dataset(model, dataset, batch_size, progress).report


def judge_dataset(model: Predicting, dataset: AttributeDataset, batch_size: int = 32, progress: bool = False) -> Judged:
    """Evaluate the model on the dataset and keep the scores beside the report."""
    dataset, columns = match_known(dataset, model.config.attributes)
    scores, failures = score_images(model, dataset.paths, batch_size, progress)
    for path, reason in failures.items():
        _logger.warning("left out %s: %s", shown_name(path), reason)
    readable = ~np.isnan(scores).all(axis=1)
    if not readable.any():
        raise AimonkError(f"None of the {len(dataset)} images in {dataset.images_dir} can be read")
    seen, note = seen_images(model, dataset)
    dataset, scores = dataset.select(np.flatnonzero(readable)), scores[readable]
    labels, scores = dataset.labels.values, scores[:, columns]
    decisions = decide(scores, np.asarray(model.config.threshold_values)[columns])
    given = (labels, scores, decisions, dataset.attributes, model.config.thresholds)
    report = build_report(*given, held_out=seen != "some", groups=image_groups(dataset))
    report["measured_on"] = {"images": "the images of this dataset", "note": note, "seen_by_model": seen}
    return Judged(dataset.paths, labels, scores, decisions, report)


def match_known(
    dataset: AttributeDataset, attributes: list[str], whole: bool = False
) -> tuple[AttributeDataset, list[int]]:
    """Return the dataset with the label columns that a model's `attributes` know, and their places in the model [M].

    What either side lacks is logged by name. Raises `AimonkError` where the labels have none of them, or not all of
    them and the `whole` model is needed.
    """
    shared = [name for name in attributes if name in dataset.attributes]
    found = dataset.match(shared if shared and not whole else attributes)
    source, n_shared = dataset.labels.source, len(shared)
    if absent := [name for name in attributes if name not in shared]:
        _logger.warning("%s has no labels of %s: judged on the other %d", source, listed(absent), n_shared)
    if unknown := [name for name in dataset.attributes if name not in shared]:
        _logger.warning("%s has labels that the model does not know, left out: %s", source, listed(unknown))
    return found, [attributes.index(name) for name in found.attributes]


def score_images(
    model: Predicting, paths: Iterable[Path], batch_size: int = 32, progress: bool = False
) -> tuple[NDArray[np.float64], dict[Path, str]]:
    """Return scores [N, K], NaN rows where an image cannot be read, and the reason for each of those."""
    paths = list(paths)
    scores = np.full((len(paths), len(model.config.attributes)), np.nan)
    failures: dict[Path, str] = {}
    shown = {"unit": "img", "leave": False, "disable": None if progress else True, "dynamic_ncols": True}
    stream = tqdm(model.stream(paths, batch_size=batch_size), "scoring", len(paths), **shown)
    for row, (_, prediction) in enumerate(stream):
        if isinstance(prediction, ImageError):
            failures[paths[row]] = str(prediction)
        else:
            scores[row] = list(prediction.scores.values())
    return scores, failures


def score_unseen(model: Predicting, dataset: AttributeDataset) -> tuple[NDArray[np.float64], str]:
    """Return scores [N, K] in the dataset's columns, NaN for images that trained the model, and a note."""
    columns = dataset.columns_of(model.config.attributes)
    parts, unknown = parts_of(model, dataset)
    rows = [row for row, part in enumerate(parts) if part != "train"]
    scores = np.full(dataset.labels.values.shape, np.nan)
    scores[np.ix_(rows, columns)], _ = score_images(model, [*map(dataset.path, rows)], progress=True)
    note = "of which it is unknown whether it was trained on them" if unknown else "which it was not trained on"
    return scores, note


def compare_metrics(folder: Path, dataset: AttributeDataset) -> dict[str, Any]:
    """Judge torch and each ONNX file of a model folder on labelled images, with the model's thresholds.

    Returns {"n_images", "torch": macro figures, FILE: macro figures and "largest_score_difference"}.
    """
    predictors = {"torch": AimonkPredictor.from_pretrained(folder, backend="torch")}
    for precision, file in ONNX_FILES.items():
        if (folder / file).is_file():
            own = AimonkPredictor.from_pretrained(folder, backend="onnx", precision=precision, device="cpu")
            predictors[Path(file).name] = own
    every = {name: judge_dataset(predictor, dataset) for name, predictor in predictors.items()}
    report: dict[str, Any] = {"n_images": len(every["torch"].paths)}
    for name, judged in every.items():
        kept = ("f1", "average_precision", "auroc", "hamming_accuracy", "exact_match")
        difference = float(np.abs(judged.scores - every["torch"].scores).max())
        report[name] = {key: judged.report["macro"][key] for key in kept} | {"largest_score_difference": difference}
    return report


def build_report(
    labels: Floats,
    scores: Floats,
    decisions: Bools,
    attributes: list[str],
    thresholds: dict[str, float],
    held_out: bool = False,
    groups: Ints | None = None,
    calibrated: Floats | None = None,
) -> dict[str, Any]:
    """Return the content of metrics.json for labels, scores and decisions [N, K].

    `decisions` are given rather than derived, because thresholds tuned on the same images must not judge them (see
    `thresholds.cross_fit`); `calibrated` are likewise the scores of whose calibration error is told. Only for images
    that chose nothing of the model (`held_out`) are there intervals, p-values and a verdict; images with one number in
    `groups` [N] belong together. The trivial predictors know the prevalences of the very labels they are
    judged on.
    """
    counts = metrics.count_decisions(labels, decisions)
    figures = {
        "precision": metrics.precision(counts),
        "recall": metrics.recall(counts),
        "f1": metrics.f1(counts),
        "accuracy": metrics.accuracy(counts),
        "average_precision": metrics.average_precision(labels, scores),
        "auroc": metrics.auroc(labels, scores),
        "calibration_error": expected_calibration_error(labels, scores if calibrated is None else calibrated),
    }
    trivial = metrics.trivial_figures(labels)
    per_attribute: dict[str, Any] = {"n_positive": counts.positives, "n_negative": counts.negatives}
    per_attribute |= {"n_missing": counts.missing, "threshold": [thresholds[name] for name in attributes], **figures}
    conclusions: dict[str, Any] = {"macro_ci95": dict.fromkeys(METRICS), "signal": None, "verdict": None}
    evidence = dict.fromkeys([*(f"{name}_ci95" for name in METRICS), "p_value", "signal"], [None] * len(attributes))
    if held_out:
        evidence, conclusions = _evidence(labels, scores, decisions, attributes, groups)
    per_attribute |= evidence
    averaged = ("f1", "precision", "recall", "average_precision", "auroc")
    report = {
        "n_images": len(labels),
        "attributes": list(attributes),
        "macro": {name: mean_defined(figures[name]) for name in (*averaged, "calibration_error")}
        | metrics.agreement(labels, decisions),
        "macro_covers": {name: int((~np.isnan(figures[name])).sum()) for name in averaged},
        "micro": {name: getattr(metrics, name)(counts.total())[0] for name in ("f1", "precision", "recall")},
        "per_attribute": {
            name: _row(per_attribute, k) | {"trivial": _row(trivial, k)} for k, name in enumerate(attributes)
        },
        "trivial": metrics.trivial_predictors(labels),
        **conclusions,
    }
    return dict(metrics.nan_to_none(report))


def _row(columns: dict[str, Any], k: int) -> dict[str, Any]:
    return {name: values[k] for name, values in columns.items()}


def _evidence(
    labels: Floats, scores: Floats, decisions: Bools, attributes: list[str], groups: Ints | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return intervals and p-values by attribute, and the averages' intervals with signal and verdict."""
    intervals, mean_intervals = bootstrap_intervals(labels, scores, decisions, groups=groups)
    # the permutations take one image of each group
    first = np.arange(len(labels)) if groups is None else np.sort(np.unique(groups, return_index=True)[1])
    p_values = permutation_p_values(labels[first], scores[first])
    columns: dict[str, Any] = {f"{name}_ci95": list(map(_ends, column)) for name, column in intervals.items()}
    columns |= {"p_value": p_values, "signal": [None if np.isnan(p) else bool(p <= ALPHA) for p in p_values]}
    signal, verdict = judge_signal(attributes, p_values)
    positive, negative = (labels == 1).any(axis=0), (labels == 0).any(axis=0)
    averages = {}
    for name, ends in mean_intervals.items():
        averaged = positive if name == "f1" else positive & negative
        # with fewer attributes than the macro average it would be the interval of another figure
        averages[name] = None if np.isnan(intervals[name][averaged]).any() else _ends(ends)
    return columns, {"macro_ci95": averages, "signal": signal, "verdict": verdict}


def _ends(interval: Floats) -> list[float] | None:
    return None if np.isnan(interval).any() else interval.tolist()
