"""Calibrate and tune a trained model, and judge it on images that chose neither."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from aimonk_hf.data.agreement import describe_agreement, read_agreement
from aimonk_hf.data.dataset import AttributeDataset, duplicate_groups
from aimonk_hf.data.duplicates import image_groups
from aimonk_hf.data.images import shown_name
from aimonk_hf.data.label_checks import (
    copied_attributes,
    count_labels,
    describe_copy,
    describe_pattern,
    missing_patterns,
    one_sided_attributes,
)
from aimonk_hf.evaluation import metrics
from aimonk_hf.evaluation.calibration import calibrate_model
from aimonk_hf.evaluation.metrics import Bools, Ints, mean_defined, nan_to_none, spread, to_logits
from aimonk_hf.evaluation.report import build_report, score_images
from aimonk_hf.evaluation.thresholds import cross_fit, decide, tune
from aimonk_hf.modeling.model import AimonkModel

_logger = logging.getLogger(__name__)

Scores = NDArray[np.float64]
Labels = NDArray[np.float32]
Score = Callable[[AimonkModel, list[Path]], tuple[Scores, dict[Path, str]]]


@dataclass
class _Chosen:
    """The calibrated and tuned model's scores [N, K]; for judging on the same images, scores and decisions held out.

    `rows` are the entries of metrics.json by attribute, `overall` those for the whole model.
    """

    scores: Scores
    held_out: Scores
    decisions: Bools
    rows: dict[str, dict[str, Any]]
    overall: dict[str, Any]


def choose_and_judge(
    model: AimonkModel,
    validation: AttributeDataset,
    report_set: AttributeDataset,
    *,
    calibration: bool,
    objective: str | None,
    epoch_chosen: bool = False,
    seed: int = 0,
    score: Score | None = None,
) -> dict[str, Any]:
    """Calibrate and tune `model` on the validation images as far as asked for, in place, and return its metrics.json.

    `objective` is that of `tune_thresholds`; None leaves the thresholds. The figures come from `report_set`, which
    chooses nothing; where it is empty, from the validation images: each is then judged by thresholds tuned on the
    others, and there are intervals and a verdict only if nothing at all was chosen on them. Label columns are matched
    by name. `score` stands in for `score_images`.
    """
    score = score or partial(score_images, progress=True)
    labels, scores, groups = _score_readable(model, validation, score)
    chosen = _choose(model, labels, scores, groups, calibration, objective, seed)
    named = model.config.attributes, model.config.thresholds
    counts = {"n_validation": len(validation), "n_report": len(report_set)}
    if len(report_set):
        labels, scores, groups = _score_readable(model, report_set, score)
        decisions = decide(scores, model.config.threshold_values)
        report = build_report(labels, scores, decisions, *named, held_out=True, groups=groups)
        images, note = "the report part of the split", "its images chose neither epoch, threshold nor calibration"
    else:
        flags = {"the epoch": epoch_chosen, "thresholds": objective is not None, "calibration": calibration}
        chose = [name for name, asked in flags.items() if asked]
        given = labels, chosen.scores, chosen.decisions, *named
        report = build_report(*given, held_out=not chose, groups=groups, calibrated=chosen.held_out)
        images, note = "the validation images", "they chose neither epoch, threshold nor calibration"
        if chose:
            crossed = "; each image is judged by thresholds tuned on the others" if objective else ""
            note = f"they also chose {' and '.join(chose)}{crossed}; hence no intervals, no p-values and no verdict"
    return _complete(report, chosen, {"images": images, "note": note} | counts)


def choose_and_judge_out_of_fold(
    model: AimonkModel,
    labels: Labels,
    scores: Scores,
    fold_of: Ints,
    groups: Ints,
    *,
    calibration: bool,
    objective: str | None,
    seed: int = 0,
) -> tuple[dict[str, Any], Scores]:
    """Calibrate and tune `model`, trained on all images, on out-of-fold scores [N, K], in place.

    Returns its metrics.json, and the scores [N, K] calibrated as the model now is; rows of NaN stay so and are judged
    nowhere. The models of the folds stand in for it: they have seen a little less. No image is judged by a model, a
    threshold or an epoch that it chose, so that there are intervals and a verdict.
    """
    readable = ~np.isnan(scores).all(axis=1)
    labels, fold_of, groups = labels[readable], fold_of[readable], groups[readable]
    chosen = _choose(model, labels, scores[readable], groups, calibration, objective, seed, "the out-of-fold scores")
    named = model.config.attributes, model.config.thresholds
    given = labels, chosen.scores, chosen.decisions, *named
    report = build_report(*given, held_out=True, groups=groups, calibrated=chosen.held_out)
    report["folds"] = _fold_figures(labels, chosen, fold_of)
    tuned = ", and decided by thresholds tuned on other images" if objective else ""
    images = f"out-of-fold scores of {report['folds']['n_folds']} folds"
    note = f"each image is scored by the model of the fold that left it out{tuned}"
    calibrated = np.full(scores.shape, np.nan)
    calibrated[readable] = chosen.scores
    return _complete(report, chosen, {"images": images, "note": note}), calibrated


def _choose(
    model: AimonkModel,
    labels: Labels,
    scores: Scores,
    groups: Ints,
    calibration: bool,
    objective: str | None,
    seed: int,
    source: str = "the validation images",
) -> _Chosen:
    """Calibrate and tune the model on labels and scores [N, K], in place, as far as asked for."""
    names = model.config.attributes
    rows: dict[str, dict[str, Any]] = {name: {} for name in names}
    overall: dict[str, Any] = {"thresholds_tuned": objective is not None}
    held_out = scores
    if calibration:
        found = calibrate_model(model.timm_model, labels, to_logits(scores), seed, groups)
        scores, held_out = expit(found.scale * to_logits(scores) + found.shift), expit(found.held_out)
        columns = zip(names, found.scale, found.shift, found.before, found.after, found.reasons, strict=True)
        for name, scale, shift, before, after, reason in columns:
            errors = {"ece_before": before, "ece_after": after}
            rows[name]["calibration"] = {"scale": scale, "shift": shift, **errors, "left_alone": reason}
        overall["calibration"] = {
            "fitted_on": f"{source}; errors over five folds, each judged by the fit to the other four",
            "ece_before": mean_defined(found.before),
            "ece_after": mean_defined(found.after),
            "n_calibrated": found.reasons.count(None),
        }
    if objective is None:
        return _Chosen(scores, held_out, decide(held_out, model.config.threshold_values), rows, overall)
    tuned = tune(labels, scores, objective, seed, groups)
    model.config.thresholds = dict(zip(names, tuned.thresholds.tolist(), strict=True))
    values = tuned.thresholds.tolist(), tuned.spread, tuned.reasons
    for name, threshold, ends, reason in zip(names, *values, strict=True):
        shown = None if np.isnan(ends).any() else ends.tolist()
        rows[name] |= {"threshold": threshold, "threshold_spread95": shown, "threshold_fallback": reason}
    decisions = cross_fit(labels, held_out, objective, seed=seed, groups=groups)
    return _Chosen(scores, held_out, decisions, rows, overall)


def _complete(report: dict[str, Any], chosen: _Chosen, measured_on: dict[str, Any]) -> dict[str, Any]:
    for name, row in nan_to_none(chosen.rows).items():
        report["per_attribute"][name] |= row
    return report | {"measured_on": measured_on} | dict(nan_to_none(chosen.overall))


def _score_readable(model: AimonkModel, dataset: AttributeDataset, score: Score) -> tuple[Labels, Scores, Ints]:
    """Return labels and scores [N, K] and groups [N] of the images that can still be read."""
    dataset = dataset.match(model.config.attributes)
    scores, failures = score(model, dataset.paths)
    for path, reason in failures.items():
        _logger.warning("%s can no longer be read (%s): its labels count nowhere", shown_name(path), reason)
    readable = ~np.isnan(scores).all(axis=1)
    dataset = dataset.select(np.flatnonzero(readable))
    return dataset.labels.values, scores[readable], image_groups(dataset)


def _fold_figures(labels: Labels, chosen: _Chosen, fold_of: Ints) -> dict[str, Any]:
    """Return mean, standard deviation and values over the folds of each macro metric."""
    folds = [fold_of == fold for fold in range(int(fold_of.max()) + 1)]
    values = {
        "f1": [metrics.f1(metrics.count_decisions(labels[own], chosen.decisions[own])) for own in folds],
        "average_precision": [metrics.average_precision(labels[own], chosen.scores[own]) for own in folds],
        "auroc": [metrics.auroc(labels[own], chosen.scores[own]) for own in folds],
    }
    macro = {name: spread(list(map(mean_defined, columns))) for name, columns in values.items()}
    return {"n_folds": len(folds), "macro": nan_to_none(macro)}


def describe_data(parts: list[AttributeDataset]) -> dict[str, Any]:
    """Return, for the card, the label counts (positive, negative, missing) of all parts, and oddities of the labels."""
    names = parts[0].attributes
    labels = np.concatenate([part.labels.values for part in parts]).astype(float)
    groups = duplicate_groups([path for part in parts for path in part.paths if path.is_file()])
    findings = [f"{name}: {reason}" for name, reason in one_sided_attributes(labels, names).items()]
    if n_copies := len(groups) - len(np.unique(groups)):
        findings.insert(0, f"{n_copies} images are byte-identical copies of others")
    findings += [f"{describe_copy(pair)} (phi {pair['phi']:.2f})" for pair in copied_attributes(labels, names)]
    if annotators := read_agreement(parts[0].labels.source, names):
        findings.insert(0, describe_agreement(annotators))
    patterns = missing_patterns(labels, names)[:3]
    findings += [f"labels are not missing at random: {describe_pattern(one)}" for one in patterns]
    return {"labels": dict(zip(names, count_labels(labels).tolist(), strict=True)), "findings": findings}
