"""Tables of a report for a terminal or a log file."""

from typing import Any

from aimonk_hf.console import figure, interval, table

_HEADER = ["attribute", "pos", "neg", "NA", "threshold", "F1", "all pos.", "precision", "recall", "avg prec."]
_HEADER += ["prevalence", "AUROC"]


def metrics_table(report: dict[str, Any]) -> str:
    """Return the figures of metrics.json by attribute, the averages, the trivial predictors, and notes."""
    macro, trivial, rows = report["macro"], report["trivial"], []
    evidence = any(row["p_value"] is not None for row in report["per_attribute"].values())
    for name, row in report["per_attribute"].items():
        values = [row["threshold"], row["f1"], row["trivial"]["all_positive_f1"], row["precision"], row["recall"]]
        values += [row["average_precision"], row["trivial"]["prevalence_average_precision"], row["auroc"]]
        rows.append([name, *(str(row[f"n_{kind}"]) for kind in ("positive", "negative", "missing"))])
        rows[-1] += map(figure, values)
        if evidence:
            p_value = "n/a" if row["p_value"] is None else f"{row['p_value']:.3f}{' ' if row['signal'] else '?'}"
            rows[-1] += [interval(row["auroc_ci95"]), p_value]
    everything, majority = (figure(trivial[name]["macro_f1"]) for name in ("all_positive", "majority"))
    prevalence = figure(trivial["prevalence"]["macro_average_precision"])
    ratios = [figure(macro[name]) for name in ("precision", "recall", "average_precision")]
    means = [figure(macro["f1"]), everything, *ratios, prevalence, figure(macro["auroc"])]
    means += [interval(report["macro_ci95"]["auroc"]), ""] if evidence else []
    rows += [
        ["macro average", *[""] * 4, *means],
        ["  everything present", *[""] * 4, everything, "", "", "", prevalence, "", "0.500", *[""] * 2 * evidence],
        ["  each majority", *[""] * 4, majority, "", "", "", prevalence, "", "0.500", *[""] * 2 * evidence],
    ]
    return "\n".join([table([*_HEADER, *["AUROC 95%", "p"] * evidence], rows), *_notes(report)])


def thresholds_table(report: dict[str, Any], before: dict[str, float]) -> str:
    """Return the tuned thresholds with their bootstrap spread, those of `before`, and why some stayed at 0.5."""
    rows = []
    for name, row in report["per_attribute"].items():
        spread, reason = interval(row["threshold_spread95"]), row["threshold_fallback"] or ""
        rows.append([name, figure(before[name]), figure(row["threshold"]), spread, reason])
    return table(["attribute", "before", "threshold", "95% of resamples", "not tuned because"], rows)


def _notes(report: dict[str, Any]) -> list[str]:
    """Return the lines below the table."""
    macro, majority, rows = report["macro"], report["trivial"]["majority"], report["per_attribute"]
    agreement = [
        f"{told} {figure(macro[key])} (majority {figure(majority[key])})"
        for told, key in (("Hamming accuracy", "hamming_accuracy"), ("exact match", "exact_match"))
    ]
    lines = [f"{', '.join(agreement)}, {report['n_images']} images"]
    if partial := [f"{name} {n}" for name, n in report["macro_covers"].items() if n < len(rows)]:
        covered = "the macro averages cover those where they are defined"
        lines.append(f"of {len(rows)} attributes {covered}: {', '.join(partial)}")
    measured = report.get("measured_on", {})
    if measured:
        lines.append(f"measured on {measured['images']}: {measured['note']}")
    if folds := report.get("folds"):
        named = {"mAP": "average_precision", "AUROC": "auroc", "F1": "f1"}
        spread = {name: folds["macro"][key] for name, key in named.items()}
        figures = ", ".join(f"{name} {figure(one['mean'])} ± {figure(one['sd'])}" for name, one in spread.items())
        lines.append(f"mean and standard deviation over {folds['n_folds']} folds: {figures}")
    lower = [
        name for name, row in rows.items() if row["f1"] is not None and row["f1"] < row["trivial"]["all_positive_f1"]
    ]
    if lower:
        lines.append(f"F1 below that of calling everything present: {', '.join(lower)}")
    if report["verdict"]:
        condition = "if the model has not seen these images, " if measured.get("seen_by_model") == "unknown" else ""
        lines.append(f"verdict: {condition}{report['verdict']}")
    return lines
