"""What happens to a trained model before it is saved: calibration, thresholds, and figures from images that chose neither."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aimonk_hf.data.dataset import AttributeDataset, duplicate_groups
from aimonk_hf.data.images import shown_name
from aimonk_hf.data.label_checks import copied_attributes, missing_patterns, one_sided_attributes
from aimonk_hf.errors import AimonkError
from aimonk_hf.evaluation.calibration import calibrate, fold_into_classifier, to_logits, to_scores
from aimonk_hf.evaluation.metrics import auroc, average_precision, count_decisions, f1, mean_defined, nan_to_none
from aimonk_hf.evaluation.report import judge_scores, score_images
from aimonk_hf.evaluation.thresholds import cross_fit, decide, threshold_spread, tune_with_reasons
from aimonk_hf.modeling.model import AimonkModel

_logger = logging.getLogger(__name__)

_MOST_PATTERNS = 3

Scores = NDArray[np.float64]
Labels = NDArray[np.float32]


def choose_and_judge(
    model: AimonkModel,
    validation: AttributeDataset,
    report_set: AttributeDataset,
    *,
    calibration: bool,
    objective: str | None,
    epoch_chosen: bool = False,
    seed: int = 0,
    score: Callable[[AimonkModel, list[Path]], tuple[Scores, dict[Path, str]]] | None = None,
) -> dict[str, Any]:
    """Calibrate and tune `model` on the validation images as far as asked for, in place, and return its metrics.json.

    `objective` is that of `tune_thresholds`; None leaves the thresholds. The figures come from `report_set`, which chooses nothing; where it
    is empty, from the validation images: each is then judged by thresholds tuned on the others, and there are intervals and a verdict only
    if nothing at all was chosen on them. Label columns are matched by name. `score` stands in for `score_images`.
    """
    score = score or partial(score_images, progress=True)
    validation, report_set = (part.match(model.config.attributes) for part in (validation, report_set))
    labels, scores, groups = _readable(validation, *score(model, validation.paths))
    choices: dict[str, Any] = {}
    held_out = scores
    if calibration:
        choices["calibration"], scores, held_out = _calibrate(model, labels, scores, groups, seed)
    if objective is not None:
        choices["thresholds"] = choose_thresholds(model, labels, scores, objective, seed, groups)
    stored = model.config.threshold_values
    if len(report_set):
        labels, scores, groups = _readable(report_set, *score(model, report_set.paths))
        words = ("the report part of the split", "its images chose neither epoch, threshold nor calibration")
        report = judge_scores(model, labels, scores, decide(scores, stored), words, True, groups)
    else:
        chosen = ["the epoch"] * epoch_chosen + ["thresholds"] * (objective is not None) + ["calibration"] * calibration
        decisions = _decide_held_out(labels, held_out, groups, stored, objective, seed)
        words = ("the validation images", _what_validation_chose(chosen, objective is not None))
        report = judge_scores(model, labels, scores, decisions, words, not chosen, groups, held_out=held_out)
    _add_choices(report, choices)
    report["measured_on"] |= {"n_validation": len(validation), "n_report": len(report_set)}
    return report | {"thresholds_tuned": objective is not None}


def choose_and_judge_out_of_fold(
    model: AimonkModel,
    labels: Labels,
    scores: Scores,
    fold_of: NDArray[np.int64],
    groups: NDArray[np.int64],
    *,
    calibration: bool,
    objective: str | None,
    seed: int = 0,
) -> tuple[dict[str, Any], Scores]:
    """Calibrate and tune `model`, trained on all images, on out-of-fold scores [N, K], in place.

    Returns its metrics.json, and the scores [N, K] calibrated as the model now is; rows of NaN stay so and are judged nowhere.

    The models of the folds stand in for it: they have seen a little less. No image is judged by a model, a threshold or an epoch that it
    chose, so that there are intervals and a verdict; scaling leaves rankings as they are.
    """
    readable = ~np.isnan(scores).all(axis=1)
    every = scores.copy()
    labels, scores, fold_of, groups = labels[readable], scores[readable], fold_of[readable], groups[readable]
    choices: dict[str, Any] = {}
    held_out = scores
    if calibration:
        choices["calibration"], scores, held_out = _calibrate(model, labels, scores, groups, seed)
    if objective is not None:
        choices["thresholds"] = choose_thresholds(model, labels, scores, objective, seed, groups)
    stored = model.config.threshold_values
    decisions = _decide_held_out(labels, held_out, groups, stored, objective, seed)
    n_folds = int(fold_of.max()) + 1
    note = "each image is scored by the model of the fold that left it out" + (
        ", and decided by thresholds tuned on other images" if objective is not None else ""
    )
    words = (f"out-of-fold scores of {n_folds} folds", note)
    report = judge_scores(model, labels, scores, decisions, words, True, groups, held_out=held_out)
    _add_choices(report, choices)
    if "calibration" in choices:
        report["calibration"]["fitted_on"] = (
            "the out-of-fold scores; errors over five folds, each judged by the fit to the other four"
        )
    report["folds"] = _fold_figures(labels, scores, decisions, fold_of)
    every[readable] = scores
    return report | {"thresholds_tuned": objective is not None}, every


def _fold_figures(
    labels: Labels, scores: Scores, decisions: NDArray[np.bool_], fold_of: NDArray[np.int64]
) -> dict[str, Any]:
    """Return mean, standard deviation and values over the folds of each macro metric."""
    n_folds = int(fold_of.max()) + 1
    figures: dict[str, list[float]] = {"f1": [], "average_precision": [], "auroc": []}
    for fold in range(n_folds):
        own = fold_of == fold
        figures["f1"].append(mean_defined(f1(count_decisions(labels[own], decisions[own]))))
        figures["average_precision"].append(mean_defined(average_precision(labels[own], scores[own])))
        figures["auroc"].append(mean_defined(auroc(labels[own], scores[own])))
    spread: dict[str, Any] = nan_to_none(
        {
            name: {"mean": mean_defined(np.array(values)), "sd": _spread(values), "values": values}
            for name, values in figures.items()
        }
    )
    return {"n_folds": n_folds, "macro": spread}


def _spread(values: list[float]) -> float:
    """Return the standard deviation of the values that are defined; NaN for fewer than two."""
    defined = np.array(values)[~np.isnan(values)]
    return float(defined.std(ddof=1)) if len(defined) > 1 else float("nan")


def choose_thresholds(
    model: AimonkModel,
    labels: Labels,
    scores: Scores,
    objective: str,
    seed: int = 0,
    groups: NDArray[np.int64] | None = None,
) -> dict[str, dict[str, Any]]:
    """Store tuned thresholds in the model's config; return by attribute the threshold, its bootstrap spread, and why it stayed at 0.5."""
    tuned, reasons = tune_with_reasons(labels, scores, objective)
    model.config.thresholds = dict(zip(model.config.attributes, tuned.tolist(), strict=True))
    spread = threshold_spread(labels, scores, objective, seed=seed, groups=groups)
    return {
        name: {
            "threshold": float(tuned[k]),
            "threshold_spread95": None if np.isnan(spread[k]).any() else spread[k].tolist(),
            "threshold_fallback": reasons[k],
        }
        for k, name in enumerate(model.config.attributes)
    }


def describe_data(parts: list[AttributeDataset]) -> dict[str, Any]:
    """Return, for the card, the label counts (positive, negative, missing) of all parts together, and what is odd about the labels."""
    names = parts[0].attributes
    labels = np.concatenate([part.labels.values for part in parts]).astype(float)
    groups = duplicate_groups([path for part in parts for path in part.paths if path.is_file()])
    findings = (
        [f"{len(groups) - len(np.unique(groups))} images are byte-identical copies of others"]
        if len(np.unique(groups)) < len(groups)
        else []
    )
    findings += [f"{name}: {reason}" for name, reason in one_sided_attributes(labels, names).items()]
    findings += [
        f"{' and '.join(pair['attributes'])} are nearly the same (phi {pair['phi']:.2f})"
        for pair in copied_attributes(labels, names)
    ]
    for one in missing_patterns(labels, names)[:_MOST_PATTERNS]:
        rates = f"{one['na_rate_where_1']:.0%} of the images with {one['other']} and {one['na_rate_where_0']:.0%} of those without"
        findings.append(f"labels are not missing at random: {one['attribute']} in {rates}")
    counts = {
        name: [int((column == 1).sum()), int((column == 0).sum()), int(np.isnan(column).sum())]
        for name, column in zip(names, labels.T, strict=True)
    }
    return {"labels": counts, "findings": findings}


def _calibrate(
    model: AimonkModel, labels: Labels, scores: Scores, groups: NDArray[np.int64], seed: int
) -> tuple[dict[str, Any], Scores, Scores]:
    """Fold what helps into the classifier; return the calibration's entries of metrics.json by attribute, and the scores as they now are.

    The scores come back a second time, each calibrated by the fit to other images: these judge the calibration.
    """
    found = calibrate(labels, to_logits(scores), seed, groups)
    if any(reason is None for reason in found.reasons):
        try:
            fold_into_classifier(model.timm_model, found.scale, found.shift)
        except AimonkError as error:
            found.scale[:], found.shift[:], found.held_out, found.after = 1.0, 0.0, to_logits(scores), found.before
            found.reasons = [str(error)] * len(found.reasons)
    entries: dict[str, Any] = nan_to_none(found.to_dict(model.config.attributes))
    return entries, to_scores(found.scale * to_logits(scores) + found.shift), to_scores(found.held_out)


def _decide_held_out(
    labels: Labels, held_out: Scores, groups: NDArray[np.int64], stored: list[float], objective: str | None, seed: int
) -> NDArray[np.bool_]:
    """Return decisions [N, K] on images that chose thresholds and calibration, each by what other images chose."""
    return (
        decide(held_out, stored)
        if objective is None
        else cross_fit(labels, held_out, objective, seed=seed, groups=groups)
    )


def _readable(
    dataset: AttributeDataset, scores: Scores, failures: dict[Path, str]
) -> tuple[Labels, Scores, NDArray[np.int64]]:
    """Return labels and scores [N, K] and duplicate groups [N] of the images that can still be read."""
    for path, reason in failures.items():
        _logger.warning("%s can no longer be read (%s): its labels count nowhere", shown_name(path), reason)
    readable = dataset.select(np.flatnonzero(~np.isnan(scores).all(axis=1)))
    return readable.labels.values, scores[~np.isnan(scores).all(axis=1)], duplicate_groups(readable.paths)


def _what_validation_chose(chosen: list[str], cross_fitted: bool) -> str:
    if not chosen:
        return "they chose neither epoch, threshold nor calibration"
    crossed = "; each image is judged by thresholds tuned on the others" if cross_fitted else ""
    return f"they also chose {' and '.join(chosen)}{crossed}; hence no intervals, no p-values and no verdict"


def _add_choices(report: dict[str, Any], choices: dict[str, Any]) -> None:
    for name, row in report["per_attribute"].items():
        for kind, by_attribute in choices.items():
            row |= by_attribute[name] if kind == "thresholds" else {kind: by_attribute[name]}
    if "calibration" in choices:
        entries = choices["calibration"].values()
        pairs = [(entry["ece_before"], entry["ece_after"]) for entry in entries if entry["ece_before"] is not None]
        report["calibration"] = {
            "fitted_on": "the validation images; errors over five folds, each judged by the fit to the other four",
            "ece_before": float(np.mean([before for before, _ in pairs])) if pairs else None,
            "ece_after": float(np.mean([after for _, after in pairs])) if pairs else None,
            "n_calibrated": sum(entry["left_alone"] is None for entry in entries),
        }
