"""Tables for a terminal or a log file."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from aimonk_hf.labels import Labels


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return aligned columns: the first to the left, the others to the right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def joined(line: Sequence[str]) -> str:
        first, *others = (
            cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        return "  ".join([first, *others]).rstrip()

    return "\n".join([joined(lines[0]), "  ".join("-" * width for width in widths), *map(joined, lines[1:])])


def figure(value: float | None) -> str:
    """Format a metric in [0, 1]; an undefined one is n/a."""
    return "n/a" if value is None or np.isnan(value) else f"{value:.3f}"


def labels_table(labels: Labels) -> str:
    """Return positives, negatives, missing labels and prevalence of each attribute."""
    rows = []
    for column, name in enumerate(labels.attributes):
        values = labels.values[:, column]
        positive, negative, missing = int((values == 1).sum()), int((values == 0).sum()), int(np.isnan(values).sum())
        share = f"{positive / (positive + negative):.1%}" if positive + negative else "n/a"
        rows.append([name, str(positive), str(negative), str(missing), share])
    return table(["attribute", "positive", "negative", "NA", "prevalence"], rows)


def metrics_table(report: dict[str, Any]) -> str:
    """Return the figures of metrics.json: per attribute, the averages, and the trivial predictors below."""
    names = ("f1", "precision", "recall", "average_precision", "auroc")
    header = ["attribute", "pos", "neg", "NA", "threshold", "F1", "precision", "recall", "avg precision", "AUROC"]
    rows = [
        [
            name,
            str(row["n_positive"]),
            str(row["n_negative"]),
            str(row["n_missing"]),
            figure(row["threshold"]),
            *(figure(row[key]) for key in names),
        ]
        for name, row in report["per_attribute"].items()
    ]
    macro, trivial = report["macro"], report["trivial"]
    prevalence = figure(trivial["prevalence"]["macro_average_precision"])
    rows.append(["macro average", "", "", "", "", *(figure(macro[key]) for key in names)])
    rows.append(["  everything present", "", "", "", "", figure(trivial["all_positive"]["macro_f1"]), "", "", prevalence, "0.500"])
    rows.append(["  each majority", "", "", "", "", figure(trivial["majority"]["macro_f1"]), "", "", prevalence, "0.500"])
    accuracy = (
        f"Hamming accuracy {figure(macro['hamming_accuracy'])} (majority {figure(trivial['majority']['hamming_accuracy'])}), "
        f"exact match {figure(macro['exact_match'])} (majority {figure(trivial['majority']['exact_match'])}), {report['n_images']} images"
    )
    return table(header, rows) + "\n" + accuracy


def duration(seconds: float) -> str:
    """Format seconds as 42s, 3:12 or 1:02:03."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
