"""Build the third tab: the model's verdict, its figures beside the trivial predictors, its training data and plots."""

import html
import re
import sys
from pathlib import Path
from typing import Any

import gradio as gr

from aimonk_hf.app.examples import write_plots
from aimonk_hf.app.scoring import Served
from aimonk_hf.audit.report import summary
from aimonk_hf.data.images import shown_name
from aimonk_hf.errors import reason_of
from aimonk_hf.modeling.config import AimonkConfig
from aimonk_hf.storage import read_json

MANY = 30  # attributes, above which their list is folded away
LONGEST_TITLE = 100  # characters
MOST_FINDINGS = 100
# Figures with an interval: keys of metrics.json, and their titles.
_MEASURED = {"average_precision": "Average precision", "auroc": "AUROC", "f1": "F1"}
_RULED = ("macro_f1", "hamming_accuracy", "exact_match")
_AVERAGES = {
    "f1": "Macro F1",
    "average_precision": "Macro average precision",
    "auroc": "Macro AUROC",
    "hamming_accuracy": "Hamming accuracy",
    "exact_match": "Exact match",
}
_LEGEND = "In a bar, the thin line is the 95% interval, and the red marks are the trivial predictors."
_PLAIN = {"threshold": "Threshold", "precision": "Precision", "recall": "Recall"}
_COUNTS = {"n_positive": "Positive", "n_negative": "Negative", "n_missing": "Missing"}


def build_model_tab(served: Served) -> None:
    """Lay out the tab."""
    model, audit = served.scorer.model, audit_lines(served.model_folder)
    gr.HTML(model_page(served.name, model.config, model.metrics, model.metrics_problem, audit), elem_id="model-page")
    plots = [
        (str(path), re.sub(r"_\d+$", "", path.stem).replace("_", " ").capitalize())
        for path in write_plots(served.model_folder, served.limits.folder)
    ]
    if plots:
        fit: dict[str, Any] = {"columns": 2, "object_fit": "contain", "fit_columns": False, "height": "auto"}
        gr.Gallery(plots, label="Plots of the run", interactive=False, elem_id="plots", **fit)


def card_title(folder: Path | None) -> str:
    """Return the first heading of a model folder's card as plain text, empty where there is none."""
    card = folder and folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace")[:20_000] if card and card.is_file() else ""
    heading = re.search(r"^# +(\S.*)$", text, re.M)
    plain = html.unescape(re.sub(r"\\(.)", r"\1", heading[1])) if heading else ""
    return shown_name(plain.strip())[:LONGEST_TITLE]


def audit_lines(folder: Path | None) -> list[str]:
    """Return the findings of a model folder's audit.json, one a line; none where it cannot be read."""
    path = folder and folder / "audit.json"
    if not path or path.is_symlink() or not path.is_file():
        return []
    try:
        findings = read_json(path)
        if "suspects" in findings:  # the place of the scores is for the terminal
            findings["suspects"]["source"] = "by a model's scores"
        if "backbones" in findings:
            findings["backbones"]["best"] = Path(findings["backbones"]["best"]).name
        return [shown_name(line)[:500] for line in summary(findings)[:MOST_FINDINGS]]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        print(f"{path} is not shown: {reason_of(error)}", file=sys.stderr)
        return []


def model_page(
    name: str, config: AimonkConfig, metrics: dict[str, Any] | None, problem: str = "", audit: list[str] | None = None
) -> str:
    """Return HTML: verdict, averages beside the trivial predictors, a row per attribute, training data.

    `metrics` are checked ones (`check_metrics`); where a metrics.json could not be used, `problem` is the reason.
    `audit` replaces the findings in the metrics.
    """
    height, width = config.image_size
    backbone = f"Architecture <code>{html.escape(config.architecture)}</code>, images of {height} x {width} pixels."
    names = ", ".join(f"<code>{html.escape(attribute)}</code>" for attribute in config.attributes)
    count = f"{len(config.attributes)} attribute{'' if len(config.attributes) == 1 else 's'}"
    listed = f'<p class="facts">{count}: {names}.</p>'
    if len(config.attributes) > MANY:
        listed = f'<details class="facts"><summary>{count}</summary><p>{names}</p></details>'
    parts = []
    if metrics:
        if verdict := (metrics.get("verdict") or "").rstrip("."):
            parts.append(f'<p class="verdict">{html.escape(verdict[:1].upper() + verdict[1:])}.</p>')
        parts.append(f"<p>Measured on {metrics['n_images']} images. A missing label counts nowhere. {_LEGEND}</p>")
        parts += [_averages(metrics), _per_attribute(metrics)]
    elif problem:
        told = f"The figures of this model are not shown: {html.escape(problem)}."
        parts.append(f'<p class="problem" role="alert">{told}</p>')
    else:
        parts.append("<p>This model has no metrics.json, so that its quality is not known.</p>")
    parts.append(_training((metrics or {}).get("training") or {}, audit))
    return "\n".join([*parts, f'<h3>{html.escape(name)}</h3><p class="facts">{backbone}</p>', listed])


def _averages(metrics: dict[str, Any]) -> str:
    """Return the averages, each as a bar with its interval and marks for the trivial predictors."""
    trivial, own, between = metrics["trivial"], metrics["macro"], metrics.get("macro_ci95") or {}
    by_rule = {"everything present": trivial["all_positive"], "each attribute's majority": trivial["majority"]}
    rules = {key: {words: row.get(key) for words, row in by_rule.items()} for key in _RULED}
    rules["average_precision"] = {"prevalence": trivial["prevalence"].get("macro_average_precision")}
    rules["auroc"] = {"chance": 0.5}
    rows = []
    for key, title in _AVERAGES.items():
        marks = rules.get(key) or rules[f"macro_{key}"]
        told = ", ".join(f"{words} {_cell(value)}" for words, value in marks.items())
        figure = _measured(own.get(key), between.get(key), list(marks.values()))
        rows.append([f'<th scope="row">{title}</th>', figure, f"<td>{told}</td>"])
    return _table("This model and the trivial predictors", ["Average", "This model", "Trivial predictors"], rows)


def _per_attribute(metrics: dict[str, Any]) -> str:
    rows = []
    for name, row in metrics["per_attribute"].items():
        trivial = row.get("trivial") or {}
        marks = {"average_precision": trivial.get("prevalence_average_precision"), "auroc": 0.5}
        marks["f1"] = trivial.get("all_positive_f1")
        cells = [_measured(row.get(key), row.get(f"{key}_ci95"), [marks[key]]) for key in _MEASURED]
        plain = [row.get(key) for key in (*_PLAIN, *_COUNTS)]
        shown = f'<th scope="row" data-key="{html.escape(name)}">{html.escape(name)}</th>'
        rows.append([shown, *cells, *(f'<td data-key="{"" if x is None else x}">{_cell(x)}</td>' for x in plain)])
    heads = ["Attribute", *_MEASURED.values(), *_PLAIN.values(), *_COUNTS.values()]
    return _table("Each attribute", [f'<button type="button">{head}</button>' for head in heads], rows, "sortable")


def _training(training: dict[str, Any], audit: list[str] | None) -> str:
    """Return the sentences on the training data, its labels and the findings of its audit."""
    told, data = "", training.get("data") or {}
    if training:
        counts = f"{training['n_validation']} validated and {training['n_report']} reported it."
        told = f"Trained with the recipe {html.escape(training['recipe'])} for {training['epochs']} epochs on "
        told = f"<p>{told}{training['n_train']} images; {counts}</p>"
    if findings := audit or data.get("findings"):
        found = "".join(f"<li>{html.escape(finding)}</li>" for finding in findings)
        told += f"<p>The audit of the data found:</p><ul>{found}</ul>"
    elif data:
        told += "<p>The audit found nothing.</p>"
    rows = [
        [f'<th scope="row">{html.escape(name)}</th>', *(f"<td>{count}</td>" for count in counts)]
        for name, counts in (data.get("labels") or {}).items()
    ]
    if rows:
        table = _table("Labels of the training data", ["Attribute", *_COUNTS.values()], rows)
        told += f"<details><summary>Labels of each attribute</summary>{table}</details>"
    return told and f"<h3>Training data</h3>{told}"


def _measured(value: float | None, interval: list[float] | None, marks: list[float | None]) -> str:
    """Return a table cell: the figure, its interval and a bar with both and the marks of trivial predictors."""
    if value is None:
        return '<td data-key="">n/a</td>'
    low, high = interval or [value, value]
    ticks = "".join(f'<i class="tick" style="left:{100 * mark:.1f}%"></i>' for mark in marks if mark is not None)
    drawn = f'<i class="fill" style="width:{100 * value:.1f}%"></i>{ticks}'
    if interval:
        drawn += f'<i class="span" style="left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"></i>'
    told = f"<small>{_cell(low)} to {_cell(high)}</small>" if interval else ""
    return f'<td data-key="{value}" class="measured">{_cell(value)} {told}<div aria-hidden="true">{drawn}</div></td>'


def _table(caption: str, header: list[str], rows: list[list[str]], kind: str = "") -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in header)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return (
        f'<h3>{caption}</h3><div class="wide-table {kind}" tabindex="0" role="region" aria-label="{caption}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
