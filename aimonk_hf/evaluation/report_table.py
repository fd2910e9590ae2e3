"""Tables for a terminal or a log file."""

from typing import Any

from aimonk_hf.console import figure, interval, table


def metrics_table(report: dict[str, Any]) -> str:
    """Return the figures of metrics.json: per attribute beside the trivial predictors, the averages, where they come from, the verdict."""
    evidence = report.get("macro_ci95") is not None and any(
        row["p_value"] is not None for row in report["per_attribute"].values()
    )
    header = [
        "attribute",
        "pos",
        "neg",
        "NA",
        "threshold",
        "F1",
        "all pos.",
        "precision",
        "recall",
        "avg prec.",
        "prevalence",
        "AUROC",
    ]
    rows = [
        [name, *_attribute_cells(row), *(_evidence_cells(row) if evidence else [])]
        for name, row in report["per_attribute"].items()
    ]
    macro, trivial = report["macro"], report["trivial"]
    everything, prevalence = (
        figure(trivial["all_positive"]["macro_f1"]),
        figure(trivial["prevalence"]["macro_average_precision"]),
    )
    means = [figure(macro["f1"]), everything, figure(macro["precision"]), figure(macro["recall"])]
    means += [figure(macro["average_precision"]), prevalence, figure(macro["auroc"])]
    if evidence:
        header += ["AUROC 95%", "p"]
        means += [interval(report["macro_ci95"]["auroc"]), ""]
    width = len(header)

    def padded(name: str, *cells: str) -> list[str]:
        return [name, "", "", "", "", *cells] + [""] * (width - 5 - len(cells))

    rows.append(padded("macro average", *means))
    rows.append(padded("  everything present", everything, "", "", "", prevalence, "", "0.500"))
    rows.append(padded("  each majority", figure(trivial["majority"]["macro_f1"]), "", "", "", prevalence, "", "0.500"))
    return "\n".join([table(header, rows), *_notes(report)])


def thresholds_table(report: dict[str, Any], before: dict[str, float]) -> str:
    """Return the tuned thresholds of metrics.json with their bootstrap spread, those of `before`, and why some stayed at 0.5."""
    rows = [
        [
            name,
            figure(before[name]),
            figure(row["threshold"]),
            interval(row["threshold_spread95"]),
            row["threshold_fallback"] or "",
        ]
        for name, row in report["per_attribute"].items()
    ]
    return table(["attribute", "before", "threshold", "95% of resamples", "not tuned because"], rows)


def _attribute_cells(row: dict[str, Any]) -> list[str]:
    counts = [str(row[key]) for key in ("n_positive", "n_negative", "n_missing")]
    trivial = row.get("trivial", {})
    values = [
        row["threshold"],
        row["f1"],
        trivial.get("all_positive_f1"),
        row["precision"],
        row["recall"],
        row["average_precision"],
    ]
    return counts + [figure(value) for value in [*values, trivial.get("prevalence_average_precision"), row["auroc"]]]


def _evidence_cells(row: dict[str, Any]) -> list[str]:
    p_value = row["p_value"]
    return [interval(row["auroc_ci95"]), "n/a" if p_value is None else f"{p_value:.3f}{' ' if row['signal'] else '?'}"]


def _notes(report: dict[str, Any]) -> list[str]:
    """Return the lines below the table."""
    macro, trivial = report["macro"], report["trivial"]
    lines = [
        f"Hamming accuracy {figure(macro['hamming_accuracy'])} (majority {figure(trivial['majority']['hamming_accuracy'])}), "
        f"exact match {figure(macro['exact_match'])} (majority {figure(trivial['majority']['exact_match'])}), {report['n_images']} images"
    ]
    n_attributes = len(report["per_attribute"])
    if partial := [f"{name} {n}" for name, n in report.get("macro_covers", {}).items() if n < n_attributes]:
        lines.append(
            f"of {n_attributes} attributes the macro averages cover those where they are defined: {', '.join(partial)}"
        )
    if measured := report.get("measured_on"):
        lines.append(f"measured on {measured['images']}: {measured['note']}")
    if folds := report.get("folds"):
        spread = ", ".join(
            f"{name} {figure(folds['macro'][key]['mean'])} ± {figure(folds['macro'][key]['sd'])}"
            for name, key in (("mAP", "average_precision"), ("AUROC", "auroc"), ("F1", "f1"))
        )
        lines.append(f"mean and standard deviation over {folds['n_folds']} folds: {spread}")
    below = [name for name, row in report["per_attribute"].items() if (row.get("lift", {}).get("f1") or 0) < 0]
    if below:
        lines.append(f"F1 below that of calling everything present: {', '.join(below)}")
    if report.get("verdict"):
        condition = (
            "if the model has not seen these images, " if (measured or {}).get("seen_by_model") == "unknown" else ""
        )
        lines.append(f"verdict: {condition}{report['verdict']}")
    return lines
