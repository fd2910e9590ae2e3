"""Judging a model on labelled images."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from aimonk_hf.data import AttributeDataset
from aimonk_hf.errors import AimonkError, ImageError, near_names
from aimonk_hf.metrics import build_report
from aimonk_hf.modeling import AimonkModel
from aimonk_hf.thresholds import decide

_logger = logging.getLogger(__name__)


def evaluate(model: AimonkModel, dataset: AttributeDataset, batch_size: int = 32, progress: bool = False) -> dict[str, Any]:
    """Return the dict of metrics.json for the model's stored thresholds; unreadable images are named in the log and left out.

    Columns are matched by name; an attribute of the model that the labels lack raises `AimonkError`.
    """
    labels = match_columns(model.config.attributes, dataset)
    scores, failures = score_images(model, dataset.paths, batch_size, progress)
    for path, reason in failures.items():
        _logger.warning("left out %s: %s", path, reason)
    readable = ~np.isnan(scores).all(axis=1)
    if not readable.any():
        raise AimonkError(f"none of the {len(dataset)} images in {dataset.images_dir} can be read")
    thresholds = model.config.thresholds
    decisions = decide(scores[readable], list(thresholds.values()))
    return build_report(labels[readable], scores[readable], decisions, model.config.attributes, thresholds)


def match_columns(attributes: list[str], dataset: AttributeDataset) -> NDArray[np.float32]:
    """Return the label columns of `attributes`, in that order."""
    own = dataset.attributes
    if missing := [name for name in attributes if name not in own]:
        hint = near_names(missing[0], own) or f"; the labels have {', '.join(own[:8])}"
        raise AimonkError(f"{dataset.labels.source} has no attribute {missing[0]!r}{hint} (--attributes names the columns of a labels.txt)")
    return dataset.labels.values[:, [own.index(name) for name in attributes]]


def score_images(
    model: AimonkModel, paths: Iterable[Path], batch_size: int = 32, progress: bool = False
) -> tuple[NDArray[np.float64], dict[Path, str]]:
    """Return scores [N, K], NaN rows where an image cannot be read, and the reason for each of those."""
    paths = list(paths)
    scores = np.full((len(paths), len(model.config.attributes)), np.nan)
    failures: dict[Path, str] = {}
    stream = model.stream(paths, batch_size=batch_size)
    for row, (_, prediction) in enumerate(
        tqdm(stream, "scoring", len(paths), unit="img", leave=False, disable=not progress, dynamic_ncols=True)
    ):
        if isinstance(prediction, ImageError):
            failures[paths[row]] = str(prediction)
        else:
            scores[row] = list(prediction.scores.values())
    return scores, failures
