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

from aimonk_hf.data.dataset import AttributeDataset, duplicate_groups
from aimonk_hf.data.images import shown_name
from aimonk_hf.data.label_checks import copied_attributes, missing_patterns, one_sided_attributes
from aimonk_hf.errors import AimonkError
from aimonk_hf.evaluation import metrics
from aimonk_hf.evaluation.calibration import Calibration, calibrate, fold_into_classifier, to_logits
from aimonk_hf.evaluation.metrics import Bools, Floats, Ints, mean_defined, nan_to_none
from aimonk_hf.evaluation.report import build_report, score_images
from aimonk_hf.evaluation.thresholds import cross_fit, decide, threshold_spread, tune_with_reasons
from aimonk_hf.modeling.model import AimonkModel

_logger = logging.getLogger(__name__)

_MOST_PATTERNS = 3

Scores = NDArray[np.float64]
Labels = NDArray[np.float32]
Score = Callable[[AimonkModel, list[Path]], tuple[Scores, dict[Path, str]]]


@dataclass
class _Chosen:
    """The calibrated and tuned model's scores [N, K]; for judging on the same images, scores and decisions held out.

    `rows` are the entries of metrics.json by attribute, `overall` those for the whole model.
    """

    scores: Scores
    held_out_scores: Scores
    held_out_decisions: Bools
    rows: dict[str, dict[str, Any]]
    overall: dict[str, Any]

    def report(self, model: AimonkModel, labels: Labels, groups: Ints, held_out: bool) -> dict[str, Any]:
        """Judge the images that chose, each by the choices of others; `held_out` where nothing was chosen by them."""
        given = (labels, self.scores, self.held_out_decisions, model.config.attributes, model.config.thresholds)
        return build_report(*given, held_out, groups, calibrated=self.held_out_scores)

    def add_to(self, report: dict[str, Any]) -> dict[str, Any]:
        """Return the report with the entries of what was chosen."""
        for name, row in self.rows.items():
            report["per_attribute"][name] |= row
        return report | self.overall


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
    names = model.config.attributes
    validation, report_set = validation.match(names), report_set.match(names)
    labels, scores, groups = _readable(validation, *score(model, validation.paths))
    chosen = _choose(model, labels, scores, groups, calibration, objective, seed)
    if len(report_set):
        labels, scores, groups = _readable(report_set, *score(model, report_set.paths))
        decisions = decide(scores, model.config.threshold_values)
        report = build_report(labels, scores, decisions, names, model.config.thresholds, held_out=True, groups=groups)
        images, note = "the report part of the split", "its images chose neither epoch, threshold nor calibration"
    else:
        flags = {"the epoch": epoch_chosen, "thresholds": objective is not None, "calibration": calibration}
        chose = [name for name, asked in flags.items() if asked]
        report = chosen.report(model, labels, groups, held_out=not chose)
        images, note = "the validation images", "they chose neither epoch, threshold nor calibration"
        if chose:
            crossed = "; each image is judged by thresholds tuned on the others" if objective else ""
            note = f"they also chose {' and '.join(chose)}{crossed}; hence no intervals, no p-values and no verdict"
    counts = {"n_validation": len(validation), "n_report": len(report_set)}
    report["measured_on"] = {"images": images, "note": note} | counts
    return chosen.add_to(report)


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
    every = scores.copy()
    labels, scores, fold_of, groups = labels[readable], scores[readable], fold_of[readable], groups[readable]
    chosen = _choose(model, labels, scores, groups, calibration, objective, seed)
    report = chosen.report(model, labels, groups, held_out=True)
    tuned = ", and decided by thresholds tuned on other images" if objective else ""
    report["measured_on"] = {
        "images": f"out-of-fold scores of {int(fold_of.max()) + 1} folds",
        "note": f"each image is scored by the model of the fold that left it out{tuned}",
    }
    report["folds"] = _fold_figures(labels, chosen, fold_of)
    report = chosen.add_to(report)
    if calibration:
        fitted_on = "the out-of-fold scores; errors over five folds, each judged by the fit to the other four"
        report["calibration"]["fitted_on"] = fitted_on
    every[readable] = chosen.scores
    return report, every


def _choose(
    model: AimonkModel, labels: Labels, scores: Scores, groups: Ints, scaling: bool, objective: str | None, seed: int
) -> _Chosen:
    """Calibrate and tune the model on labels and scores [N, K], in place, as far as asked for."""
    names = model.config.attributes
    rows: dict[str, dict[str, Any]] = {name: {} for name in names}
    overall: dict[str, Any] = {"thresholds_tuned": objective is not None}
    held_out = scores
    if scaling:
        found = _fold_in(model, labels, to_logits(scores), seed, groups)
        scores, held_out = expit(found.scale * to_logits(scores) + found.shift), expit(found.held_out)
        for name, entry in nan_to_none(found.to_dict(names)).items():
            rows[name]["calibration"] = entry
        errors = {"ece_before": mean_defined(found.before), "ece_after": mean_defined(found.after)}
        fitted_on = "the validation images; errors over five folds, each judged by the fit to the other four"
        calibrated = {"fitted_on": fitted_on, **errors, "n_calibrated": found.reasons.count(None)}
        overall["calibration"] = nan_to_none(calibrated)
    if objective is None:
        return _Chosen(scores, held_out, decide(held_out, model.config.threshold_values), rows, overall)
    tuned, reasons = tune_with_reasons(labels, scores, objective)
    model.config.thresholds = dict(zip(names, tuned.tolist(), strict=True))
    spread = threshold_spread(labels, scores, objective, seed=seed, groups=groups)
    for name, threshold, ends, reason in zip(names, tuned.tolist(), spread, reasons, strict=True):
        shown = None if np.isnan(ends).any() else ends.tolist()
        rows[name] |= {"threshold": threshold, "threshold_spread95": shown, "threshold_fallback": reason}
    decisions = cross_fit(labels, held_out, objective, seed=seed, groups=groups)
    return _Chosen(scores, held_out, decisions, rows, overall)


def _fold_in(model: AimonkModel, labels: Labels, logits: Floats, seed: int, groups: Ints) -> Calibration:
    """Calibrate and fold it into the classifier; where the head cannot take it, all attributes are left alone."""
    found = calibrate(labels, logits, seed, groups)
    if found.reasons.count(None):
        try:
            fold_into_classifier(model.timm_model, found.scale, found.shift)
        except AimonkError as error:
            n = len(found.reasons)
            return Calibration(np.ones(n), np.zeros(n), logits, found.before, found.before, [str(error)] * n)
    return found


def _readable(dataset: AttributeDataset, scores: Scores, failures: dict[Path, str]) -> tuple[Labels, Scores, Ints]:
    """Return labels and scores [N, K] and duplicate groups [N] of the images that can still be read."""
    for path, reason in failures.items():
        _logger.warning("%s can no longer be read (%s): its labels count nowhere", shown_name(path), reason)
    readable = ~np.isnan(scores).all(axis=1)
    dataset = dataset.select(np.flatnonzero(readable))
    return dataset.labels.values, scores[readable], duplicate_groups(dataset.paths)


def _fold_figures(labels: Labels, chosen: _Chosen, fold_of: Ints) -> dict[str, Any]:
    """Return mean, standard deviation and values over the folds of each macro metric."""
    folds = [fold_of == fold for fold in range(int(fold_of.max()) + 1)]
    decisions, scores = chosen.held_out_decisions, chosen.scores
    figures = {
        "f1": [metrics.f1(metrics.count_decisions(labels[own], decisions[own])) for own in folds],
        "average_precision": [metrics.average_precision(labels[own], scores[own]) for own in folds],
        "auroc": [metrics.auroc(labels[own], scores[own]) for own in folds],
    }
    spread = {}
    for name, columns in figures.items():
        values = np.array([mean_defined(column) for column in columns])
        defined = values[~np.isnan(values)]
        sd = float(defined.std(ddof=1)) if len(defined) > 1 else float("nan")
        spread[name] = {"mean": mean_defined(values), "sd": sd, "values": values.tolist()}
    return {"n_folds": len(folds), "macro": nan_to_none(spread)}


def describe_data(parts: list[AttributeDataset]) -> dict[str, Any]:
    """Return, for the card, the label counts (positive, negative, missing) of all parts, and oddities of the labels."""
    names = parts[0].attributes
    labels = np.concatenate([part.labels.values for part in parts]).astype(float)
    groups = duplicate_groups([path for part in parts for path in part.paths if path.is_file()])
    findings = []
    if n_copies := len(groups) - len(np.unique(groups)):
        findings.append(f"{n_copies} images are byte-identical copies of others")
    findings += [f"{name}: {reason}" for name, reason in one_sided_attributes(labels, names).items()]
    for pair in copied_attributes(labels, names):
        findings.append(f"{' and '.join(pair['attributes'])} are nearly the same (phi {pair['phi']:.2f})")
    for one in missing_patterns(labels, names)[:_MOST_PATTERNS]:
        with_other = f"{one['na_rate_where_1']:.0%} of the images with {one['other']}"
        rates = f"{with_other} and {one['na_rate_where_0']:.0%} of those without"
        findings.append(f"labels are not missing at random: {one['attribute']} in {rates}")
    kinds = ((labels == 1).sum(axis=0), (labels == 0).sum(axis=0), np.isnan(labels).sum(axis=0))
    return {"labels": dict(zip(names, np.stack(kinds, axis=1).tolist(), strict=True)), "findings": findings}
