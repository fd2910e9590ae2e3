"""Say before training what more images or another backbone would bring, by the linear probe on frozen features."""

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aimonk_hf.audit.checks import Audit
from aimonk_hf.audit.probe import COMPONENTS, FOLDS, backbone_features, one_of_each_group, ridge_scorer
from aimonk_hf.console import table
from aimonk_hf.errors import AimonkError
from aimonk_hf.evaluation.comparison import Side, compare_sides
from aimonk_hf.evaluation.metrics import auroc, average_precision, mean_defined, nan_to_none
from aimonk_hf.modeling.backbones import build_network, find_backbone

Floats = NDArray[np.floating[Any]]

SHARES = (1 / 8, 1 / 4, 1 / 2, 1.0)
MORE_IMAGES = 500
_RESAMPLES = 200
_EXPONENTS = np.geomspace(0.1, 2, 25)
# A gain below this is none: the next labels are better spent elsewhere.
_WORTHWHILE = 0.005


def compare_backbones(audited: Audit, architectures: list[str], device: str = "cpu") -> dict[str, Any]:
    """Probe the data on several backbones; return a row for each, with its difference to the first in mAP.

    Rows hold AUROC and mAP of out-of-fold scores, features a second on this machine, and millions of parameters. The
    best is clear where no interval of a difference between it and the first, or of the others to it, covers 0.
    """
    rows: list[dict[str, Any]] = []
    labels, first = audited.dataset.labels.values.astype(float), None
    for architecture in architectures:
        start = time.perf_counter()
        features, n_parameters = _features(audited, architecture, device)
        seconds = time.perf_counter() - start
        usable = one_of_each_group(features, audited.groups, np.random.default_rng(0))
        truth = labels[usable]
        scores = ridge_scorer(features[usable], seed=0)(truth)
        side = Side(architecture, [(scores, scores >= 0)])
        row = {"backbone": architecture, "millions": n_parameters / 1e6, "features_per_second": len(labels) / seconds}
        row["auroc"] = mean_defined(auroc(truth, scores))
        row["average_precision"] = mean_defined(average_precision(truth, scores))
        if first is None:
            first = side
        else:
            compared = compare_sides(truth, audited.dataset.attributes, first, side)
            row["difference"] = compared["macro"]["average_precision"]
        rows.append(row)
    best = int(np.nanargmax([row["average_precision"] for row in rows]))
    rivals = rows[1:] if best == 0 else [rows[best]]  # each with its difference to the first
    is_clear = all(np.prod(row["difference"]["ci95"]) > 0 for row in rivals)
    found = dict(nan_to_none({"rows": rows, "best": rows[best]["backbone"], "is_clear": is_clear}))
    audited.findings["backbones"] = found
    return found


def learning_curve(
    features: Floats, labels: Floats, attributes: list[str], groups: NDArray[np.int64]
) -> dict[str, Any]:
    """Return average precision by number of training images, and what the next 500 would bring, by a power law.

    Five times a probe is fitted to 1/8, 1/4, 1/2 and all of four fifths of the images, and judged on the last fifth.
    A curve a - b n^-c goes through the means; intervals are of 200 resamples of the five. `limited_by` is "number"
    where the gain is clear, "flat" where there is none to come (label noise, the backbone, or nothing is left to
    gain), else "unknown".
    """
    rows = one_of_each_group(features, groups, np.random.default_rng(0))
    if len(rows) < 10 * FOLDS:
        raise AimonkError(f"{len(rows)} usable images are too few for a learning curve: {10 * FOLDS} are needed")
    features, labels = features[rows], labels[rows].astype(float)
    random = np.random.default_rng(0)
    fold_of = random.permutation(np.arange(len(rows)) % FOLDS)
    numbers = np.array([round(share * len(rows) * (FOLDS - 1) / FOLDS) for share in SHARES])
    values = np.full((FOLDS, len(SHARES), labels.shape[1]), np.nan)
    for fold in range(FOLDS):
        train, held_out = random.permutation(np.flatnonzero(fold_of != fold)), np.flatnonzero(fold_of == fold)
        for place, number in enumerate(numbers):
            some = train[:number]
            scores = _fit_and_score(features[some], labels[some], features[held_out])
            values[fold, place] = average_precision(labels[held_out], scores)
    columns = {name: values[:, :, k] for k, name in enumerate(attributes)}
    described = {name: _forecast(numbers, own, random) for name, own in columns.items()}
    macro = _forecast(numbers, np.nanmean(values, axis=2), random)
    found = {"n_images": len(rows), "numbers": numbers.tolist(), "more": MORE_IMAGES, "macro": macro}
    return dict(nan_to_none(found | {"per_attribute": described}))


def add_learning_curve(audited: Audit, architecture: str, device: str = "cpu") -> None:
    """Add the learning curve of a backbone's features to an audit's findings."""
    features, _ = _features(audited, architecture, device)
    dataset = audited.dataset
    found = learning_curve(features, dataset.labels.values, dataset.attributes, audited.groups)
    audited.findings["learning_curve"] = found | {"backbone": architecture}


def backbones_table(found: dict[str, Any]) -> str:
    """Return the rows of `compare_backbones` as a table."""
    header = ["backbone", "mAP", "AUROC", "features/s", "parameters", "mAP against the first"]
    rows = []
    for row in found["rows"]:
        figures = f"{row['average_precision']:.3f}", f"{row['auroc']:.3f}", f"{row['features_per_second']:.0f}"
        if own := row.get("difference"):
            low, high = own["ci95"]
            difference = f"{own['difference']:+.3f} ({low:+.3f} to {high:+.3f})"
        rows.append([row["backbone"], *figures, f"{row['millions']:.1f} M", difference if own else ""])
    return table(header, rows)


def power_law(numbers: Floats, limit: float, scale: float, exponent: float) -> Floats:
    """Return limit - scale * (numbers / 100) ** -exponent."""
    return limit - scale * (np.asarray(numbers, float) / 100) ** -exponent


def _forecast(numbers: Floats, values: Floats, random: np.random.Generator) -> dict[str, Any]:
    """Return means and deviations [S] of values [R, S], the fitted curve, and the gain of more images with interval."""
    values = values[~np.isnan(values).any(axis=1)]
    if len(values) < 2:
        return {"limited_by": "unknown"}
    samples = [values[random.integers(0, len(values), len(values))].mean(axis=0) for _ in range(_RESAMPLES)]
    fitted = _fit(numbers, np.stack([values.mean(axis=0), *samples]))
    before, after = (power_law(number, *fitted.T) for number in (numbers[-1], numbers[-1] + MORE_IMAGES))
    gain, *gains = (after - before).tolist()
    low, high = np.quantile(gains, (0.025, 0.975))
    rose = np.quantile([sample[-1] - sample[1] for sample in samples], 0.025)  # the curve itself can only rise
    limited = "flat" if high < 2 * _WORTHWHILE else "unknown"
    if min(low, rose) > 0 and gain >= _WORTHWHILE:
        limited = "number"
    mean, deviation = values.mean(axis=0), values.std(axis=0, ddof=1)
    curve = {"average_precision": mean.tolist(), "deviation": deviation.tolist(), "curve": fitted[0].tolist()}
    return curve | {"gain": gain, "gain_ci95": [float(low), float(high)], "limited_by": limited}


def _fit(numbers: Floats, values: Floats) -> Floats:
    """Return limit, scale and exponent [B, 3] of the power laws nearest to values [B, S], which never fall.

    The exponent is the best of a grid; limit and scale follow by least squares. A curve beyond 1 is flat instead.
    """
    best, found = np.full(len(values), np.inf), np.zeros((len(values), 3))
    found[:, 0], found[:, 2] = values.mean(axis=1), 1.0
    flat = ((values - values.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    for exponent in _EXPONENTS:
        design = np.stack([np.ones(len(numbers)), -((numbers / 100) ** -exponent)], axis=1)
        solved = values @ np.linalg.pinv(design).T
        error = ((values - solved @ design.T) ** 2).sum(axis=1)
        better = (solved[:, 1] >= 0) & (solved[:, 0] <= 1) & (error < np.minimum(best, flat))
        best[better] = error[better]
        found[better] = np.column_stack([solved, np.full(len(values), exponent)])[better]
    return found


def _features(audited: Audit, architecture: str, device: str) -> tuple[Floats, int]:
    """Return the features [N, D] of a backbone, and the number of its parameters."""
    backbone = find_backbone(architecture, pretrained=True)
    network = build_network(backbone.architecture, 0, backbone.pretrained_cfg, backbone.model_args)
    features = backbone_features(architecture, audited.dataset.paths, device)
    return features, sum(parameter.numel() for parameter in network.parameters())


def _fit_and_score(features: Floats, labels: Floats, others: Floats) -> Floats:
    """Fit ridge regression to features [N, D] with labels [N, K], missing ones adding nothing; score `others`."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    components = PCA(min(COMPONENTS, len(features) // 2, features.shape[1]), random_state=0)
    ridge = RidgeCV(np.geomspace(1, 1e6, 7), fit_intercept=False)
    mean = np.nanmean(np.where(np.isnan(labels).all(axis=0), 0.0, labels), axis=0)
    fitted = make_pipeline(StandardScaler(), components, ridge).fit(features, np.nan_to_num(labels - mean))
    return np.asarray(fitted.predict(others)).reshape(len(others), -1)
