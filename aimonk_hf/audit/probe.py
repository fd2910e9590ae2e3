"""Test for signal before any training: a linear probe on frozen backbone features, against permuted labels."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import rankdata
from tqdm.auto import tqdm

from aimonk_hf.audit.checks import Audit, add_suspects
from aimonk_hf.errors import AimonkError, ImageError
from aimonk_hf.evaluation.metrics import nan_to_none
from aimonk_hf.evaluation.resampling import ALPHA, corrected_p_values, judge_signal
from aimonk_hf.modeling.backbones import build_network, find_backbone
from aimonk_hf.modeling.devices import resolve_device, torch_network
from aimonk_hf.modeling.model import Normalize
from aimonk_hf.modeling.processing import EvalTransform
from aimonk_hf.modeling.streaming import stream_outputs

Floats = NDArray[np.floating[Any]]

FOLDS = 5
MOST_IMAGES = 3000  # more take long and show the same
COMPONENTS = 192
_BLOCK = 4000  # permuted label columns at a time


@dataclass
class ProbeResult:
    """Out-of-fold AUROC and corrected p-value per attribute [K], with signal and verdict.

    `scores` [M, K] in (0, 1) are those of the `rows` used [M], each by the fit to the other folds.
    """

    auroc: Floats
    p_values: Floats
    scores: Floats
    rows: NDArray[np.int64]
    signal: str | None
    verdict: str


def backbone_features(architecture: str, paths: list[Path], device: str = "cpu") -> Floats:
    """Return the pooled features [N, D] of images by a frozen timm backbone; NaN rows where an image cannot be read."""
    backbone = find_backbone(architecture, pretrained=True)
    parts = backbone.architecture, 0, backbone.pretrained_cfg, backbone.model_args
    place = torch.device(resolve_device(device))
    network = build_network(*parts, weights=backbone.weights).eval().to(place)
    transform = EvalTransform(backbone.pretrained_cfg)
    normalize = Normalize(transform).to(place)

    @torch.inference_mode()
    def features_of(pixels: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = network(normalize(pixels.to(place))).flatten(1)
        return values

    stream = stream_outputs(paths, transform.pixels, torch_network(features_of, place))
    shown = tqdm(stream, "probing", len(paths), unit="img", leave=False, dynamic_ncols=True, disable=None)
    found = {row: own for row, (_, own) in enumerate(shown) if not isinstance(own, ImageError)}
    if not found:
        raise AimonkError(f"None of the {len(paths)} images can be read")
    features = np.full((len(paths), len(next(iter(found.values())))), np.nan, dtype=np.float32)
    features[list(found)] = list(found.values())
    return features


def probe(
    features: Floats,
    labels: Floats,
    attributes: list[str],
    groups: NDArray[np.int64] | None = None,
    n_permutations: int = 499,
    seed: int = 0,
) -> ProbeResult:
    """Test per attribute whether features [N, D] tell anything about labels [N, K] in {0, 1, NaN}.

    A ridge regression is fitted on four fifths of the images and scores the last fifth. The same is done for labels
    permuted within the observed rows, so that the p-values are exact for any number of images; they are corrected for
    the number of attributes. Of images with one number in `groups` [N] one is used: copies would give the labels away.
    """
    rng = np.random.default_rng(seed)
    rows = one_of_each_group(features, np.arange(len(features)) if groups is None else groups, rng)
    labels = np.asarray(labels, dtype=np.float64)[rows]
    area, p_values, scores = (np.full(shape, np.nan) for shape in (labels.shape[1], labels.shape[1], labels.shape))
    both = (labels == 1).any(axis=0) & (labels == 0).any(axis=0)
    if both.any() and len(rows) >= 2 * FOLDS:
        own, score = labels[:, both], ridge_scorer(features[rows], seed)
        scores[:, both] = score(own)
        area[both] = fast_auroc(own, scores[:, both])
        permuted = []
        step = max(1, _BLOCK // own.shape[1])
        for start in range(0, n_permutations, step):
            orders = [rng.permutation(len(rows)) for _ in range(start, min(start + step, n_permutations))]
            columns = np.hstack([_permute_observed(own, order) for order in orders])
            permuted.append(_standardised(columns, fast_auroc(columns, score(columns))).reshape(len(orders), -1))
        p_values[both] = corrected_p_values(_standardised(own, area[both]), np.concatenate(permuted))
    signal, verdict = judge_signal(attributes, p_values, "a linear probe is better than chance")
    squeezed = expit(4 * scores)  # from about -1 to 1 into (0, 1), as those of a model are
    return ProbeResult(area, p_values, squeezed, rows, signal, verdict)


def one_of_each_group(features: Floats, groups: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the rows with features, one of each group of duplicates, and at most `MOST_IMAGES`."""
    rows = np.flatnonzero(~np.isnan(features).any(axis=1))
    rows = rows[np.sort(np.unique(groups[rows], return_index=True)[1])]
    return rows if len(rows) <= MOST_IMAGES else np.sort(rng.choice(rows, MOST_IMAGES, replace=False))


def probe_audit(audited: Audit, architecture: str, device: str = "cpu", with_suspects: bool = True) -> None:
    """Add a probe of the data to an audit's findings; where there is signal, its scores may find suspect labels."""
    dataset = audited.dataset
    labels = dataset.labels.values.astype(float)
    features = backbone_features(architecture, dataset.paths, device)
    result = probe(features, labels, dataset.attributes, audited.groups)
    figures = zip(dataset.attributes, result.auroc.tolist(), result.p_values.tolist(), strict=True)
    images = f"{len(result.rows)} images, one of each group of duplicates"
    method = f"ridge regression on the frozen features of {architecture}, {FOLDS} folds, {images}"
    audited.findings["probe"] = nan_to_none(
        {
            "signal": result.signal,
            "verdict": result.verdict,
            "method": f"{method}; p-values against permuted labels, corrected for the number of attributes",
            "per_attribute": {name: {"auroc": area, "p_value": p_value} for name, area, p_value in figures},
        }
    )
    if with_suspects and result.signal in ("some", "all"):
        scores = np.full(labels.shape, np.nan)
        heard = result.p_values <= ALPHA
        scores[np.ix_(result.rows, np.flatnonzero(heard))] = result.scores[:, heard]
        add_suspects(audited, scores, "the probe's out-of-fold scores")


def ridge_scorer(features: Floats, seed: int) -> Callable[[Floats], Floats]:
    """Return a function of label columns [N, M] that gives out-of-fold scores [N, M].

    They are those of ridge regression on the principal components of the standardised features [N, D]; a missing label
    adds nothing to the fit, and a column without labels of both kinds has NaN.
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import KFold, cross_val_predict
    from sklearn.preprocessing import StandardScaler

    n_images = len(features)
    pca = PCA(min(COMPONENTS, n_images // 2, features.shape[1]), random_state=seed)
    components = pca.fit_transform(StandardScaler().fit_transform(features.astype(np.float32)))
    weight = components.var(axis=0) * n_images
    # leaves about one degree of freedom for ten images
    penalty = max(float(weight[min(n_images // 10, len(weight) - 1)]), 1e-6)
    folds = KFold(FOLDS, shuffle=True, random_state=seed)
    predict = partial(cross_val_predict, Ridge(penalty, fit_intercept=False), components, cv=folds)

    def score(labels: Floats) -> Floats:
        found = np.full(labels.shape, np.nan)
        both = (labels == 1).any(axis=0) & (labels == 0).any(axis=0)
        if both.any():
            own = labels[:, both]
            centred = np.nan_to_num(own - np.nanmean(own, axis=0)).astype(np.float32)
            found[:, both] = predict(centred).reshape(own.shape)
        return found

    return score


def _standardised(labels: Floats, area: Floats) -> Floats:
    """Return (AUROC - 0.5) over its standard deviation without ties, so that rare and common attributes compare."""
    positive, negative = (labels == 1).sum(axis=0), (labels == 0).sum(axis=0)
    statistic: Floats = (area - 0.5) / np.sqrt((positive + negative + 1) / (12.0 * positive * negative))
    return statistic


def _permute_observed(labels: Floats, permutation: NDArray[np.int64]) -> Floats:
    """Permute each column of labels [N, K] within its observed rows, all by the one order of rows that is given."""
    result = np.full(labels.shape, np.nan)
    for k in range(labels.shape[1]):
        observed = ~np.isnan(labels[:, k])
        result[observed, k] = labels[permutation[observed[permutation]], k]
    return result


def fast_auroc(labels: Floats, scores: Floats) -> Floats:
    """Return the AUROC of many columns [N, M] at once, by ranks among the observed rows."""
    missing = np.isnan(labels)
    ranks = rankdata(np.where(missing, -np.inf, scores), axis=0) - missing.sum(axis=0)
    positive, n_negative = labels == 1, (labels == 0).sum(axis=0)
    n_positive = positive.sum(axis=0)
    area: Floats = ((ranks * positive).sum(axis=0) - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)
    return area
