"""Judging a model on labelled images."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from aimonk_hf.data.dataset import AttributeDataset, duplicate_groups
from aimonk_hf.data.images import shown_name
from aimonk_hf.errors import AimonkError, ImageError
from aimonk_hf.evaluation.calibration import expected_calibration_error
from aimonk_hf.evaluation.metrics import build_report, mean_defined, nan_to_none
from aimonk_hf.evaluation.thresholds import decide
from aimonk_hf.modeling.model import AimonkModel

_logger = logging.getLogger(__name__)

SEEN_UNKNOWN = (
    "unknown",
    "unknown whether the model has seen them: intervals, p-values and verdict hold only if it has not",
)


@dataclass
class Judged:
    """The readable images of a dataset with labels, scores and decisions [N, K], and the dict of metrics.json."""

    paths: list[Path]
    labels: NDArray[np.float32]
    scores: NDArray[np.float64]
    decisions: NDArray[np.bool_]
    report: dict[str, Any]


def evaluate(
    model: AimonkModel, dataset: AttributeDataset, batch_size: int = 32, progress: bool = False
) -> dict[str, Any]:
    """Return the dict of metrics.json for the model's stored thresholds; unreadable images are named in the log and left out.

    A model does not know the images that it has seen: intervals, p-values and the verdict hold only if these are others. Columns are matched
    by name; an attribute of the model that the labels lack raises `AimonkError`.
    """
    return judge_dataset(model, dataset, batch_size, progress).report


def judge_dataset(
    model: AimonkModel,
    dataset: AttributeDataset,
    batch_size: int = 32,
    progress: bool = False,
    seen: tuple[str, str] = SEEN_UNKNOWN,
) -> Judged:
    """Do what `evaluate` does and return the scores as well.

    `seen` says whether the model has seen "some" of the images, "none", or that this is "unknown", with a sentence about it; where it has seen
    some there is no verdict.
    """
    labels = dataset.match(model.config.attributes).labels.values
    scores, failures = score_images(model, dataset.paths, batch_size, progress)
    for path, reason in failures.items():
        _logger.warning("left out %s: %s", shown_name(path), reason)
    readable = np.flatnonzero(~np.isnan(scores).all(axis=1))
    if not len(readable):
        raise AimonkError(f"none of the {len(dataset)} images in {dataset.images_dir} can be read")
    every = dataset.paths
    paths = [every[row] for row in readable]
    decisions = decide(scores[readable], model.config.threshold_values)
    state, note = seen
    words = ("the images of this dataset", note)
    report = judge_scores(
        model, labels[readable], scores[readable], decisions, words, state != "some", duplicate_groups(paths)
    )
    report["measured_on"]["seen_by_model"] = state
    return Judged(paths, labels[readable], scores[readable], decisions, report)


def judge_scores(
    model: AimonkModel,
    labels: NDArray[np.float32],
    scores: NDArray[np.float64],
    decisions: NDArray[np.bool_],
    measured_on: tuple[str, str],
    chose_nothing: bool,
    groups: NDArray[np.int64] | None = None,
    seed: int = 0,
    held_out: NDArray[np.float64] | None = None,
) -> dict[str, Any]:
    """Return metrics.json with calibration errors and `measured_on`: which images these are, and what they chose.

    `held_out` are the scores whose calibration error is reported, where `scores` were calibrated on these very images.
    """
    names = model.config.attributes
    report = build_report(labels, scores, decisions, names, model.config.thresholds, chose_nothing, groups, seed)
    errors = expected_calibration_error(labels, scores if held_out is None else held_out)
    for name, error in zip(names, errors, strict=True):
        report["per_attribute"][name]["calibration_error"] = nan_to_none(float(error))
    report["macro"]["calibration_error"] = nan_to_none(mean_defined(errors))
    report["measured_on"] = dict(zip(("images", "note"), measured_on, strict=True))
    return report


def score_images(
    model: AimonkModel, paths: Iterable[Path], batch_size: int = 32, progress: bool = False
) -> tuple[NDArray[np.float64], dict[Path, str]]:
    """Return scores [N, K], NaN rows where an image cannot be read, and the reason for each of those."""
    paths = list(paths)
    scores = np.full((len(paths), len(model.config.attributes)), np.nan)
    failures: dict[Path, str] = {}
    stream = model.stream(paths, batch_size=batch_size)
    for row, (_, prediction) in enumerate(
        tqdm(
            stream,
            "scoring",
            len(paths),
            unit="img",
            leave=False,
            disable=None if progress else True,
            dynamic_ncols=True,
        )
    ):
        if isinstance(prediction, ImageError):
            failures[paths[row]] = str(prediction)
        else:
            scores[row] = list(prediction.scores.values())
    return scores, failures
