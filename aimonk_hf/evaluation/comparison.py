"""Prove that one model is better than another on the same images: paired differences, intervals and p-values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

from aimonk_hf.console import table
from aimonk_hf.data.dataset import AttributeDataset
from aimonk_hf.data.duplicates import image_groups
from aimonk_hf.errors import AimonkError
from aimonk_hf.evaluation.metrics import Bools, Floats, Ints, mean_defined, nan_to_none
from aimonk_hf.evaluation.report import score_images
from aimonk_hf.evaluation.resampling import (
    ALPHA,
    METRICS,
    MIN_OF_EACH,
    Ranking,
    corrected_p_values,
    percentiles,
    resample_metrics,
)
from aimonk_hf.evaluation.split_file import parts_of
from aimonk_hf.evaluation.thresholds import decide
from aimonk_hf.modeling.prediction import Predicting

FEWEST_IMAGES = 20
SHOWN = {"average_precision": "mAP", "auroc": "AUROC", "f1": "F1"}


@dataclass
class Side:
    """One model, trained with one or more seeds: `runs` are the scores and decisions [N, K] of each."""

    name: str
    runs: list[tuple[Floats, Bools]]

    def part(self, which: Any) -> "Side":
        """Return the side of some images or attributes, by an index of its arrays."""
        return Side(self.name, [(scores[which], decisions[which]) for scores, decisions in self.runs])


@dataclass
class GivenScores:
    """Scores [N, K] of a dataset's images from a file, NaN where there is none; decisions are made at 0.5."""

    attributes: list[str]
    values: Floats


Scorer = Predicting | GivenScores


def compare(
    sides: Mapping[str, Sequence[Scorer]], dataset: AttributeDataset, part: str | None = None
) -> dict[str, Any]:
    """Compare every side with the first one, on the images that no model has seen; return the content of compare.json.

    A side is one model, or several trained alike with other seeds. `part` takes that part of each model's split.csv.
    Images without a score of every side, and attributes that one of them lacks, are left out and named. Raises
    `AimonkError` where nothing is left.
    """
    rows, notes = _unseen(sides, dataset, part)
    every = [scorer for side in sides.values() for scorer in side]
    owned = [one.attributes if isinstance(one, GivenScores) else one.config.attributes for one in every]
    names = [name for name in dataset.attributes if all(name in own for own in owned)]
    lacking = sorted({name for own in (dataset.attributes, *owned) for name in own} - set(names))
    if not names:
        raise AimonkError("The models and the labels have no attribute in common")
    if lacking:
        notes.append(f"Left out, because not all have them: {', '.join(lacking)}.")
    chosen = dataset.select(rows)
    scored = [Side(name, [_score(one, chosen, rows, names) for one in side]) for name, side in sides.items()]
    known = ~np.any([np.isnan(scores).any(axis=1) for side in scored for scores, _ in side.runs], axis=0)
    if not known.all():
        notes.append(f"{int((~known).sum())} images are left out, because one side has no scores of them.")
    labels = chosen.match(names).labels.values[known].astype(float)
    groups = image_groups(chosen)[known]
    baseline, *others = (side.part(known) for side in scored)
    found = [compare_sides(labels, names, baseline, other, groups) for other in others]
    return {"n_images": len(labels), "notes": notes, "comparisons": found}


def comparison_table(found: dict[str, Any]) -> str:
    """Return one comparison of `compare` as lines: macro figures, attributes with evidence, and the verdict."""
    header = ["other - baseline", "baseline", "other", "difference", "95% interval", "p"]
    rows = [[name, *_cells(found["macro"][metric])] for metric, name in SHOWN.items()]
    own = sorted(found["per_attribute"].items(), key=lambda item: -item[1]["average_precision"]["difference"])
    rows += [[f"  AP of {name}", *_cells(row["average_precision"])] for name, row in own]
    return f"{table(header, rows)}\n{found['verdict']}"


def _cells(row: dict[str, Any]) -> list[str]:
    low, high = row["ci95"]
    figures = f"{row['baseline']:.3f}", f"{row['other']:.3f}", f"{row['difference']:+.3f}"
    return [*figures, f"{low:+.3f} to {high:+.3f}", f"{row['p_value']:.3f}"]


def _unseen(
    sides: Mapping[str, Sequence[Scorer]], dataset: AttributeDataset, part: str | None
) -> tuple[list[int], list[str]]:
    """Return the rows that no model has seen, or those in `part` of every split, and notes on what is not known."""
    usable, notes = np.ones(len(dataset), bool), []
    for name, side in sides.items():
        for number, model in enumerate(side):
            if isinstance(model, GivenScores):
                if len(model.values) != len(dataset):
                    raise AimonkError(f"{name} has scores of {len(model.values)} images, the dataset {len(dataset)}")
                notes.append(f"{name}: scores of a file; whether they are of unseen images is not known.")
                continue
            parts, reason = parts_of(model, dataset)
            if part and reason:
                raise AimonkError(f"--part {part}: {name} has no such part ({reason})")
            usable &= [held == part if part else held in (None, "report") for held in parts]
            if reason and not number:
                notes.append(f"{name}: unknown whether it has seen the images ({reason}).")
    if (n_usable := int(usable.sum())) < min(FEWEST_IMAGES, len(dataset)):
        where = f"in the part {part} of every model's split.csv" if part else "unseen by every model"
        advice = "train both with the same parts (--split-column), or give other images"
        raise AimonkError(f"Of {len(dataset)} images {n_usable} are {where}, {FEWEST_IMAGES} are needed: {advice}")
    return np.flatnonzero(usable).tolist(), notes


def _score(scorer: Scorer, dataset: AttributeDataset, rows: list[int], names: list[str]) -> tuple[Floats, Bools]:
    if isinstance(scorer, GivenScores):
        scores = scorer.values[rows][:, [scorer.attributes.index(name) for name in names]]
        return scores, scores >= 0.5
    scores, _ = score_images(scorer, dataset.paths, progress=True)
    columns = [scorer.config.attributes.index(name) for name in names]
    return scores[:, columns], decide(scores, scorer.config.threshold_values)[:, columns]


def compare_sides(
    labels: Floats,
    attributes: list[str],
    baseline: Side,
    other: Side,
    groups: Ints | None = None,
    n_resamples: int = 1000,
    n_permutations: int = 999,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the differences `other` - `baseline` of every metric, by attribute and on average, with a verdict.

    Intervals are 95% of a paired bootstrap over images, those with one number in `groups` [N] together, and over the
    seeds of each side. p-values are of a paired permutation test, two-sided, which exchanges the two sides' scores of
    images; those of the attributes are corrected for their number (step-down max-T). Attributes with fewer than five
    labels of one kind are left out. Raises `AimonkError` for fewer than 20 images, and where no attribute is left.
    """
    if len(labels) < FEWEST_IMAGES:
        raise AimonkError(f"{len(labels)} images are too few to compare models: {FEWEST_IMAGES} are needed")
    enough = np.minimum((labels == 1).sum(axis=0), (labels == 0).sum(axis=0)) >= MIN_OF_EACH
    if not enough.any():
        raise AimonkError(f"No attribute has {MIN_OF_EACH} labels of each kind: nothing can be compared")
    groups = np.arange(len(labels)) if groups is None else groups
    if (n_groups := len(np.unique(groups))) < 2:
        raise AimonkError("All images are copies of each other or one group: nothing can be compared")
    labels = labels[:, enough]
    sides = [one.part(np.s_[:, enough]) for one in (baseline, other)]
    own = [_mean_over_seeds(_rankings(labels, side), np.ones((1, len(labels)), np.uint8))[:, 0] for side in sides]
    resampled = [_resample(labels, side, n_resamples, groups, seed + number) for number, side in enumerate(sides)]
    drawn = resampled[1] - resampled[0]
    permuted = _permute(labels, sides, groups, n_permutations, seed)
    difference = own[1] - own[0]
    names = [name for name, kept in zip(attributes, enough, strict=True) if kept]
    per_attribute: dict[str, dict[str, Any]] = {name: {} for name in names}
    macro: dict[str, Any] = {}
    for metric, name in enumerate(METRICS):
        spread = np.maximum(permuted[metric].std(axis=0), 1e-12)
        p_values = corrected_p_values(np.abs(difference[metric]) / spread, np.abs(permuted[metric]) / spread)
        for k, attribute in enumerate(names):
            ends = percentiles(drawn[metric, :, k], n_groups)
            figures = np.array([one[metric, k] for one in (*own, difference)])
            per_attribute[attribute][name] = _row(figures, ends, p_values[k])
        means = np.array([mean_defined(one[metric]) for one in (*own, difference)])
        exceeded = (np.abs(permuted[metric].mean(axis=1)) >= abs(means[2]) - 1e-9).sum()
        ends = percentiles(np.nanmean(drawn[metric], axis=1), n_groups)
        macro[name] = _row(means, ends, (exceeded + 1) / (n_permutations + 1))
    found = {"baseline": baseline.name, "other": other.name, "n_images": len(labels), "macro": macro}
    left_out = [name for name, kept in zip(attributes, enough, strict=True) if not kept]
    found |= {"per_attribute": per_attribute, "not_compared": left_out}
    found["verdict"] = verdict(found)
    return nan_to_none(found)


def verdict(found: dict[str, Any]) -> str:
    """Return the comparison in one sentence: the difference in mAP, and on how many attributes there is evidence."""
    row, name, base = found["macro"]["average_precision"], found["other"], found["baseline"]
    low, high = row["ci95"]
    interval = f"({_signed(low)} to {_signed(high)})"
    rows = found["per_attribute"].values()
    sure = [own["average_precision"]["difference"] for own in rows if own["average_precision"]["p_value"] <= ALPHA]
    counts = ((sum(one > 0 for one in sure), "better"), (sum(one < 0 for one in sure), "worse"))
    parts = [f"{word} on {number} of {len(rows)} attributes" for number, word in counts if number]
    rest = "; no evidence on the rest" if len(sure) < len(rows) else ""
    detail = (", ".join(parts) + rest) if parts else f"no evidence on any of {len(rows)} attributes"
    if low <= 0 <= high:
        return f"No evidence that {name} and {base} differ: mAP {_signed(row['difference'])} {interval}; {detail}."
    word = "better" if row["difference"] > 0 else "worse"
    return f"{name} is {word} than {base} by {abs(row['difference']):.3f} mAP {interval}; {detail}."


def _signed(value: float) -> str:
    return f"{value:+.3f}"


def _row(figures: Floats, ends: Floats, p_value: float) -> dict[str, Any]:
    named = zip(("baseline", "other", "difference"), figures.tolist(), strict=True)
    return {**dict(named), "ci95": ends.tolist(), "p_value": float(p_value)}


def _rankings(labels: Floats, side: Side) -> list[list[Ranking]]:
    """Return the rankings of each seed and attribute."""
    return [
        [Ranking(labels[:, k], scores[:, k], decisions[:, k]) for k in range(labels.shape[1])]
        for scores, decisions in side.runs
    ]


def _mean_over_seeds(seeds: list[list[Ranking]], weights: Any) -> Floats:
    """Return the metrics [M, B, K] of weighted rows [B, N], each the mean over the seeds."""
    values = [[ranking.metrics(weights) for ranking in columns] for columns in seeds]
    return np.asarray(np.mean(np.array(values), axis=0).transpose(1, 2, 0))


def _resample(labels: Floats, side: Side, n_resamples: int, groups: Ints, seed: int) -> Floats:
    """Return the metrics [M, B, K] of resampled images and seeds; the same images for every side."""
    by_name = [resample_metrics(labels, *run, n_resamples, groups, seed=0) for run in side.runs]
    values = np.array([list(one.values()) for one in by_name])  # [S, M, B, K]
    n_seeds = len(values)
    chosen = np.random.default_rng([1, seed]).integers(0, n_seeds, (n_resamples, n_seeds))
    every = np.arange(n_resamples)
    drawn = np.stack([values[chosen[:, number], :, every] for number in range(n_seeds)])  # [S, B, M, K]
    return np.asarray(drawn.mean(axis=0).swapaxes(0, 1))


def _permute(labels: Floats, sides: list[Side], groups: Ints, n_permutations: int, seed: int) -> Floats:
    """Return the differences [M, P, K] after exchanges of the two sides' scores of random groups of images."""
    numbers, group_of = np.unique(groups, return_inverse=True)
    rng = np.random.default_rng(seed)
    joined = Side("", [])  # both sides below each other, for each pair of seeds
    for number in range(max(len(side.runs) for side in sides)):
        scores, decisions = zip(*(side.runs[number % len(side.runs)] for side in sides), strict=True)
        # ranks, because two models' scores need not be on one scale
        ranks = [rankdata(one, axis=0) for one in scores]
        joined.runs.append((np.concatenate(ranks), np.concatenate(decisions)))
    seeds = _rankings(np.concatenate([labels, labels]), joined)
    found = []
    for start in range(0, n_permutations, 64):
        swapped = rng.integers(0, 2, (min(64, n_permutations - start), len(numbers)), np.uint8)[:, group_of]
        first, second = np.concatenate([1 - swapped, swapped], axis=1), np.concatenate([swapped, 1 - swapped], axis=1)
        found.append(_mean_over_seeds(seeds, second) - _mean_over_seeds(seeds, first))
    return np.nan_to_num(np.concatenate(found, axis=1))
