"""Count the answers that mend damaged labels: by the labelling queues, at random, and by uncertainty alone.

    python benchmarks/labelling.py --data-dir DATA --architecture NAME [--seeds 3] [--page 24] [--json FILE]

Of the labels in DATA 40% are removed and 5% of the others are flipped, at random. A person who answers as the labels
in DATA say then reviews a page of each attribute, again and again. The quality of the labels is the mAP of the probe's
out-of-fold scores (ridge regression on frozen features), judged by the labels in DATA. Printed is the number of answers
after which half, 90% and all of what the damage took is won back.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from aimonk_hf import AttributeDataset
from aimonk_hf.audit.learner import Learner, cached_features
from aimonk_hf.audit.queues import build_queues, probabilities
from aimonk_hf.console import table
from aimonk_hf.evaluation.metrics import average_precision

REMOVED, FLIPPED = 0.4, 0.05
GOALS = (0.5, 0.9, 1.0)
POLICIES = ("queues", "random", "uncertainty")


def main() -> None:
    """Simulate every policy with every seed, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--architecture", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--page", type=int, default=24, help="answers for each attribute between two refreshes")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    dataset = AttributeDataset.from_folder(options.data_dir)
    truth = dataset.labels.values.astype(np.float64)
    features = cached_features(options.architecture, dataset.paths)
    runs = [
        simulate(features, truth, policy, seed, options.page) for seed in range(options.seeds) for policy in POLICIES
    ]
    n_labels = int((~np.isnan(truth)).sum())
    rows = []
    for policy in POLICIES:
        own = [run for run in runs if run["policy"] == policy]
        cells = [f"{statistics.mean(answers):,.0f}" for answers in zip(*(run["answers"] for run in own), strict=True)]
        rows.append([policy, *cells])
    damaged, whole = (statistics.mean(run[key] for run in runs) for key in ("damaged", "whole"))
    print(f"{n_labels:,} labels; mAP of the probe {damaged:.3f} with the damaged ones, {whole:.3f} with all")
    print(table(["answers until won back", *(f"{goal:.0%}" for goal in GOALS)], rows))
    if options.json:
        options.json.write_text(json.dumps({"labels": n_labels, "runs": runs}, indent=2))


def damage(truth: Any, random: np.random.Generator) -> Any:
    """Return labels [N, K] of which some are removed and some flipped."""
    labels = truth.copy()
    cells = np.argwhere(~np.isnan(truth))
    order = random.permutation(len(cells))
    n_removed = round(REMOVED * len(cells))
    removed, rest = cells[order[:n_removed]], cells[order[n_removed:]]
    labels[tuple(removed.T)] = np.nan
    flipped = tuple(rest[: round(FLIPPED * len(rest))].T)
    labels[flipped] = 1 - labels[flipped]
    return labels


def simulate(features: Any, truth: Any, policy: str, seed: int, page: int) -> dict[str, Any]:
    """Return mAP before, with all labels, and the answers until each goal is reached."""
    random = np.random.default_rng(seed)
    labels = damage(truth, random)
    learner = Learner(features, truth, seed)
    whole, scores = quality(truth, learner.start), learner.scores(labels)
    damaged = quality(truth, scores)
    open_cells = ~np.isnan(truth)
    given, reached = 0, dict.fromkeys(GOALS, 0)
    while open_cells.any() and not all(reached.values()):
        for column in range(truth.shape[1]):
            rows = choose(policy, labels[:, column], scores[:, column], open_cells[:, column], page, random)
            labels[rows, column] = truth[rows, column]
            open_cells[rows, column] = False
            given += len(rows)
        scores = learner.scores(labels)
        share = (quality(truth, scores) - damaged) / (whole - damaged)
        for goal in GOALS:
            if share >= goal - 1e-9 and not reached[goal]:
                reached[goal] = given
    reached = {goal: answers or given for goal, answers in reached.items()}
    return {"policy": policy, "seed": seed, "damaged": damaged, "whole": whole, "answers": list(reached.values())}


def choose(policy: str, labels: Any, scores: Any, is_open: Any, page: int, random: np.random.Generator) -> Any:
    """Return the next rows of an attribute: half of a page from each kind of queue, at random, or the least certain."""
    probability = probabilities(labels, scores)
    if policy == "queues":
        queues = build_queues(labels, probability, [], np.zeros(len(labels), bool))
        wanted = [[one.row for one in queues[name] if is_open[one.row]] for name in ("suspect", "unsure", "sure")]
        rows = list(dict.fromkeys([*wanted[0][: page // 2], *wanted[1], *wanted[0], *wanted[2]]))[:page]
    elif policy == "uncertainty":
        certainty = np.where(np.isnan(probability), 0.0, np.abs(probability - 0.5))
        rows = [int(row) for row in np.argsort(certainty, kind="stable") if is_open[row]][:page]
    else:
        rows = []
    if len(rows) < page:  # nothing else is left
        others = [int(row) for row in random.permutation(np.flatnonzero(is_open)) if row not in set(rows)]
        rows += others[: page - len(rows)]
    return np.array(rows, dtype=int)


def quality(truth: Any, scores: Any) -> float:
    """Return the mAP of scores [N, K]."""
    known = ~np.isnan(scores)
    return float(np.nanmean(average_precision(np.where(known, truth, np.nan), np.nan_to_num(scores))))


if __name__ == "__main__":
    main()
