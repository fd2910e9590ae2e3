"""A quick test for signal before any training: a cross-validated linear probe on frozen backbone features, against permuted labels."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from tqdm.auto import tqdm

from aimonk_hf.audit.checks import Audit, add_suspects
from aimonk_hf.errors import AimonkError, ImageError
from aimonk_hf.evaluation.metrics import auroc, nan_to_none
from aimonk_hf.evaluation.resampling import ALPHA, corrected_p_values, judge_signal
from aimonk_hf.modeling.backbones import build_network, find_backbone
from aimonk_hf.modeling.inference import stream_logits
from aimonk_hf.modeling.processing import EvalTransform

Floats = NDArray[np.floating[Any]]

FOLDS = 5
# The probe compares every image with every other: 3,000 of them take some seconds, and show what 30,000 would.
MOST_IMAGES = 3000
_COMPONENTS = 192
_BLOCK = 4000  # permuted label columns at a time


@dataclass
class ProbeResult:
    """Cross-validated AUROC and corrected p-value per attribute [K], with signal and verdict; `scores` [M, K] are those of the `rows` used [M],

    in (0, 1), each by the fit to the other folds.
    """

    auroc: Floats
    p_values: Floats
    scores: Floats
    rows: NDArray[np.int64]
    signal: str | None
    verdict: str


def backbone_features(architecture: str, paths: list[Path], pretrained: bool = True, batch_size: int = 32) -> Floats:
    """Return the pooled features [N, D] of images by a frozen timm backbone without its head; NaN rows where an image cannot be read."""
    backbone = find_backbone(architecture, pretrained)
    network = build_network(
        backbone.architecture, 0, backbone.pretrained_cfg, backbone.model_args, weights=backbone.weights
    ).eval()
    transform = EvalTransform(backbone.pretrained_cfg)

    @torch.inference_mode()
    def features_of(pixels: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = network(transform.normalize(pixels)).float().flatten(1)
        return values

    rows: list[NDArray[np.float32] | None] = []
    stream = stream_logits(paths, transform.pixels, features_of, batch_size, on_cpu=True)
    for _, features in tqdm(stream, "probing", len(paths), unit="img", leave=False, dynamic_ncols=True, disable=None):
        rows.append(None if isinstance(features, ImageError) else features.numpy())
    width = next((len(row) for row in rows if row is not None), 0)
    if not width:
        raise AimonkError(f"none of the {len(paths)} images can be read")
    return np.stack([np.full(width, np.nan, dtype=np.float32) if row is None else row for row in rows])


def probe(
    features: Floats,
    labels: Floats,
    attributes: list[str],
    groups: NDArray[np.int64] | None = None,
    n_permutations: int = 499,
    seed: int = 0,
) -> ProbeResult:
    """Test per attribute whether features [N, D] tell anything about labels [N, K] in {0, 1, NaN}.

    A ridge regression is fitted on four fifths of the images and scores the last fifth. The same is done for labels permuted within the
    observed rows, folds and all, so that the p-values are exact whatever the number of images; they are corrected for the number of
    attributes. Of images with one number in `groups` [N] one is used, because copies in two folds would give the labels away.
    """
    rows = np.flatnonzero(~np.isnan(features).any(axis=1))
    if groups is not None:
        rows = rows[np.sort(np.unique(groups[rows], return_index=True)[1])]
    rng = np.random.default_rng(seed)
    if len(rows) > MOST_IMAGES:
        rows = np.sort(rng.choice(rows, MOST_IMAGES, replace=False))
    labels = np.asarray(labels, dtype=np.float64)[rows]
    n_attributes = labels.shape[1]
    both = (labels == 1).any(axis=0) & (labels == 0).any(axis=0)
    area, p_values = np.full(n_attributes, np.nan), np.full(n_attributes, np.nan)
    scores = np.full(labels.shape, np.nan)
    if both.any() and len(rows) >= 2 * FOLDS:
        smoother, fold_of = _smoother(features[rows], rng)
        scores[:, both] = _cross_validated(smoother, fold_of, labels[:, both])
        area[both] = auroc(labels[:, both], scores[:, both])
        statistic = _standardised(labels[:, both], area[both])
        permuted = _permuted_statistics(smoother, fold_of, labels[:, both], n_permutations, rng)
        p_values[both] = corrected_p_values(statistic, permuted)
    signal, verdict = judge_signal(attributes, p_values, "a linear probe is better than chance")
    squeezed = expit(4 * scores)  # from about -1 to 1 into (0, 1), as those of a model are
    return ProbeResult(area, p_values, squeezed, rows, signal, verdict)


def probe_audit(audited: Audit, architecture: str, with_suspects: bool, pretrained: bool = True) -> None:
    """Probe the data of an audit and add the result to its findings; where there is signal, the probe's scores may find suspect labels."""
    dataset = audited.dataset
    labels = dataset.labels.values.astype(float)
    features = backbone_features(architecture, dataset.paths, pretrained)
    result = probe(features, labels, dataset.attributes, audited.groups)
    audited.findings["probe"] = nan_to_none(
        {
            "signal": result.signal,
            "verdict": result.verdict,
            "method": f"ridge regression on the frozen features of {architecture}, {FOLDS} folds, {len(result.rows)} images, one of each group of "
            "duplicates; p-values against permuted labels, corrected for the number of attributes",
            "per_attribute": {
                name: {"auroc": float(result.auroc[k]), "p_value": float(result.p_values[k])}
                for k, name in enumerate(dataset.attributes)
            },
        }
    )
    if with_suspects and result.signal in ("some", "all"):
        scores = np.full(labels.shape, np.nan)
        heard = result.p_values <= ALPHA
        scores[np.ix_(result.rows, np.flatnonzero(heard))] = result.scores[:, heard]
        add_suspects(audited, scores, "the probe's out-of-fold scores")


def _smoother(features: Floats, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the matrix [N, N] that turns centred labels into out-of-fold scores, and the fold of each row [N].

    Features are standardised and reduced to their principal components, without a look at any label. The ridge leaves about one degree
    of freedom for ten images.
    """
    values = (features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 1e-6)
    left, sizes, _ = np.linalg.svd(values.astype(np.float32), full_matrices=False)
    kept = (left * sizes)[:, : min(_COMPONENTS, len(features) // 2)].astype(np.float64)
    fold_of = rng.permutation(len(kept)) % FOLDS
    smoother = np.zeros((len(kept), len(kept)), dtype=np.float32)
    for fold in range(FOLDS):
        test, train = np.flatnonzero(fold_of == fold), np.flatnonzero(fold_of != fold)
        centred = kept[train] - kept[train].mean(axis=0)
        gram = centred.T @ centred
        penalty = _penalty(np.linalg.eigvalsh(gram).clip(0), len(train) / 10)
        solved = np.linalg.solve(gram + penalty * np.eye(len(gram)), centred.T)
        smoother[np.ix_(test, train)] = (kept[test] - kept[train].mean(axis=0)) @ solved
    return smoother, fold_of


def _penalty(eigenvalues: Floats, degrees: float) -> float:
    """Return the ridge penalty that leaves `degrees` of freedom: sum of e / (e + penalty)."""
    low, high = 1e-9 * eigenvalues.max() + 1e-12, 1e6 * eigenvalues.max() + 1e-6
    for _ in range(60):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if (eigenvalues / (eigenvalues + middle)).sum() > degrees else (low, middle)
    return float(np.sqrt(low * high))


def _cross_validated(smoother: NDArray[np.float32], fold_of: NDArray[np.int64], labels: Floats) -> Floats:
    """Return out-of-fold scores [N, M] for label columns [N, M]; a missing label adds nothing to the fit."""
    observed = ~np.isnan(labels)
    filled = np.where(observed, labels, 0.0)
    scores = np.empty(labels.shape)
    for fold in range(FOLDS):
        test = fold_of == fold
        count = np.maximum(observed[~test].sum(axis=0), 1)
        mean = filled[~test].sum(axis=0) / count
        centred = np.where(observed, filled - mean, 0.0)
        centred[test] = 0
        scores[test] = smoother[test] @ centred.astype(np.float32)
    return scores


def _standardised(labels: Floats, area: Floats) -> Floats:
    """Return (AUROC - 0.5) over its standard deviation for scores without ties, so that rare and common attributes compare."""
    positive, negative = (labels == 1).sum(axis=0), (labels == 0).sum(axis=0)
    deviation = np.sqrt((positive + negative + 1) / (12.0 * positive * negative))
    statistic: Floats = (area - 0.5) / deviation
    return statistic


def _permuted_statistics(
    smoother: NDArray[np.float32],
    fold_of: NDArray[np.int64],
    labels: Floats,
    n_permutations: int,
    rng: np.random.Generator,
) -> Floats:
    """Return the statistic of every permutation and attribute [n_permutations, K]; the fit is repeated for each."""
    n_attributes = labels.shape[1]
    step = max(1, _BLOCK // n_attributes)
    result = np.empty((n_permutations, n_attributes))
    for start in range(0, n_permutations, step):
        stop = min(start + step, n_permutations)
        order = rng.permuted(np.tile(np.arange(len(labels)), (stop - start, 1)), axis=1)
        tables = np.stack([_permute_observed(labels, permutation) for permutation in order])
        columns = tables.transpose(1, 0, 2).reshape(len(labels), -1)
        area = _fast_auroc(columns, _cross_validated(smoother, fold_of, columns))
        result[start:stop] = _standardised(columns, area).reshape(stop - start, n_attributes)
    return result


def _permute_observed(labels: Floats, permutation: NDArray[np.int64]) -> Floats:
    """Permute each column of labels [N, K] within its observed rows, all by the one order of rows that is given."""
    result = np.full(labels.shape, np.nan)
    for k in range(labels.shape[1]):
        observed = ~np.isnan(labels[:, k])
        result[observed, k] = labels[permutation[observed[permutation]], k]
    return result


def _fast_auroc(labels: Floats, scores: Floats) -> Floats:
    """Return the AUROC of many columns [N, M] at once, by ranks among the observed rows; scores have no ties."""
    observed = ~np.isnan(labels)
    order = np.argsort(np.where(observed, scores, -np.inf), axis=0)
    sorted_labels = np.take_along_axis(labels, order, axis=0)
    place = np.arange(1, len(labels) + 1)[:, None] - (~observed).sum(axis=0)  # missing ones come first
    positive = sorted_labels == 1
    n_positive, n_negative = positive.sum(axis=0), (labels == 0).sum(axis=0)
    area: Floats = ((place * positive).sum(axis=0) - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)
    return area
