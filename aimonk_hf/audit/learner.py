"""A head that learns while labels are given: ridge regression on cached features, refreshed after every page."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from aimonk_hf.audit.probe import backbone_features, ridge_scorer
from aimonk_hf.data.dataset import content_hash
from aimonk_hf.data.image_cache import cache_folder
from aimonk_hf.evaluation.metrics import average_precision
from aimonk_hf.evaluation.resampling import resample_metrics
from aimonk_hf.modeling.backbones import find_backbone
from aimonk_hf.storage import atomic_path, make_folder

Floats = NDArray[np.floating[Any]]

_RESAMPLES = 200


class Learner:
    """Out-of-fold scores of all images from the labels as they are now; `features` [N, D] has NaN rows for bad images.

    `start` [N, K] are the labels of the beginning, with which later ones are compared.
    """

    def __init__(self, features: Floats, start: Floats, seed: int = 0) -> None:
        self.rows = np.flatnonzero(~np.isnan(features).any(axis=1))
        self._score = ridge_scorer(features[self.rows], seed)
        self.start = self.scores(start)

    def scores(self, labels: Floats) -> Floats:
        """Return scores [N, K] in (0, 1); NaN for bad images, and for attributes without labels of both kinds."""
        found = np.full(labels.shape, np.nan)
        found[self.rows] = expit(4 * self._score(labels[self.rows].astype(np.float64)))
        return found

    def gain(self, labels: Floats, scores: Floats, column: int, seed: int = 0) -> dict[str, Any] | None:
        """Return the average precision of an attribute before and now, and a 95% interval of the difference.

        Both are judged on the labels [N, K] as they are now. None as long as one of them is undefined.
        """
        before = self.start[:, column]
        known = np.flatnonzero(~np.isnan(labels[:, column] + before + scores[:, column]))
        truth = labels[known, column][:, None]
        if len(np.unique(truth)) < 2:
            return None
        both = [table[known][:, None] for table in (before, scores[:, column])]
        first, now = (float(average_precision(truth, own)[0]) for own in both)
        drawn = [resample_metrics(truth, own, own >= 0.5, _RESAMPLES, seed=seed)["average_precision"] for own in both]
        low, high = np.nanquantile(drawn[1] - drawn[0], (0.025, 0.975))
        return {"before": first, "now": now, "low": float(low), "high": float(high)}


def cached_features(architecture: str, paths: list[Path], device: str = "auto") -> Floats:
    """Return the frozen features of images as `backbone_features`, kept until an image or the backbone changes."""
    weights = find_backbone(architecture, pretrained=True).weights  # a model folder may hold other weights by now
    stamps = [(str(path.absolute()), path.stat().st_mtime_ns if path.exists() else 0) for path in paths]
    digest = content_hash(weights) if weights else ""
    key = hashlib.sha256(repr((architecture, digest, stamps)).encode("utf-8", "surrogateescape")).hexdigest()[:32]
    file = make_folder(cache_folder() / "features") / f"{key}.npy"
    if file.is_file():
        found: Floats = np.load(file, allow_pickle=False)
        return found
    found = backbone_features(architecture, paths, device)
    with atomic_path(file) as temporary:
        np.save(temporary, found)
    return found
