"""Tables of a report for a terminal or a log file."""

from typing import Any

from aimonk_hf.console import figure, interval, table

_COUNTS = ["attribute", "pos", "neg", "NA", "threshold"]
_FIGURES = ["F1", "all pos.", "precision", "recall", "avg prec.", "prevalence", "AUROC"]


def metrics_table(report: dict[str, Any]) -> str:
    """Return the figures of metrics.json by attribute, the averages, the trivial predictors, and notes."""
    macro, trivial = report["macro"], report["trivial"]
    evidence = any(row["p_value"] is not None for row in report["per_attribute"].values())
    everything = figure(trivial["all_positive"]["macro_f1"])
    majority = figure(trivial["majority"]["macro_f1"])
    prevalence = figure(trivial["prevalence"]["macro_average_precision"])
    means = [figure(macro["f1"]), everything, figure(macro["precision"]), figure(macro["recall"])]
    means += [figure(macro["average_precision"]), prevalence, figure(macro["auroc"])]
    if evidence:
        means.append(interval(report["macro_ci95"]["auroc"]))
    rows = [_cells(name, row, evidence) for name, row in report["per_attribute"].items()]
    rows += [
        ["macro average", *[""] * 4, *means],
        ["  everything present", *[""] * 4, everything, "", "", "", prevalence, "", "0.500"],
        ["  each majority", *[""] * 4, majority, "", "", "", prevalence, "", "0.500"],
    ]
    header = [*_COUNTS, *_FIGURES, *(["AUROC 95%", "p"] if evidence else [])]
    rows = [row + [""] * (len(header) - len(row)) for row in rows]
    return "\n".join([table(header, rows), *_notes(report)])


def thresholds_table(report: dict[str, Any], before: dict[str, float]) -> str:
    """Return the tuned thresholds with their bootstrap spread, those of `before`, and why some stayed at 0.5."""
    rows = []
    for name, row in report["per_attribute"].items():
        spread, reason = interval(row["threshold_spread95"]), row["threshold_fallback"] or ""
        rows.append([name, figure(before[name]), figure(row["threshold"]), spread, reason])
    return table(["attribute", "before", "threshold", "95% of resamples", "not tuned because"], rows)


def _cells(name: str, row: dict[str, Any], evidence: bool) -> list[str]:
    counts = [str(row[key]) for key in ("n_positive", "n_negative", "n_missing")]
    values = [row["threshold"], row["f1"], row["trivial"]["all_positive_f1"], row["precision"], row["recall"]]
    values += [row["average_precision"], row["trivial"]["prevalence_average_precision"], row["auroc"]]
    cells = [name, *counts, *map(figure, values)]
    if evidence:
        p_value = "n/a" if row["p_value"] is None else f"{row['p_value']:.3f}{' ' if row['signal'] else '?'}"
        cells += [interval(row["auroc_ci95"]), p_value]
    return cells


def _notes(report: dict[str, Any]) -> list[str]:
    """Return the lines below the table."""
    macro, majority = report["macro"], report["trivial"]["majority"]
    hamming, exact = (
        f"{figure(macro[key])} (majority {figure(majority[key])})" for key in ("hamming_accuracy", "exact_match")
    )
    lines = [f"Hamming accuracy {hamming}, exact match {exact}, {report['n_images']} images"]
    n_attributes = len(report["per_attribute"])
    if partial := [f"{name} {n}" for name, n in report["macro_covers"].items() if n < n_attributes]:
        lines.append(
            f"of {n_attributes} attributes the macro averages cover those where they are defined: {', '.join(partial)}"
        )
    measured = report.get("measured_on", {})
    if measured:
        lines.append(f"measured on {measured['images']}: {measured['note']}")
    if folds := report.get("folds"):
        named = {"mAP": "average_precision", "AUROC": "auroc", "F1": "f1"}
        spread = {name: folds["macro"][key] for name, key in named.items()}
        figures = ", ".join(f"{name} {figure(one['mean'])} ± {figure(one['sd'])}" for name, one in spread.items())
        lines.append(f"mean and standard deviation over {folds['n_folds']} folds: {figures}")
    if below := [name for name, row in report["per_attribute"].items() if (row["lift"]["f1"] or 0) < 0]:
        lines.append(f"F1 below that of calling everything present: {', '.join(below)}")
    if report["verdict"]:
        condition = "if the model has not seen these images, " if measured.get("seen_by_model") == "unknown" else ""
        lines.append(f"verdict: {condition}{report['verdict']}")
    return lines
