"""Build the third tab: the model and its figures beside the trivial predictors; and the page without a model."""

import html
from typing import Any

from aimonk_hf.modeling.config import AimonkConfig

MANY = 30  # attributes, above which their list is folded away
# Columns of the table of attributes: keys of metrics.json, and their titles.
_FIGURES = {
    "threshold": "threshold",
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
    "average_precision": "average precision",
    "auroc": "AUROC",
}
_COUNTS = {"n_positive": "positive", "n_negative": "negative", "n_missing": "missing"}


def model_page(name: str, config: AimonkConfig, metrics: dict[str, Any] | None, problem: str = "") -> str:
    """Return HTML: name, attributes, verdict, the averages with the trivial predictors, and a row per attribute.

    `metrics` are checked ones (`check_metrics`); where a metrics.json could not be used, `problem` is the reason.
    """
    height, width = config.image_size
    backbone = f"Architecture <code>{html.escape(config.architecture)}</code>, images of {height} x {width} pixels."
    parts = [f"<h2>{html.escape(name)}</h2>", f'<p class="facts">{backbone}</p>', _attributes(config.attributes)]
    if problem:
        told = f"The figures of this model are not shown: {html.escape(problem)}."
        parts.append(f'<p class="problem" role="alert">{told}</p>')
    elif metrics is None:
        parts.append("<p>This model has no metrics.json: <code>aimonk-hf evaluate</code> writes it.</p>")
    else:
        if metrics.get("verdict"):
            parts.append(f'<p class="verdict">{html.escape(metrics["verdict"])}</p>')
        parts.append(f"<p>Measured on {metrics['n_images']} images. A missing label counts nowhere.</p>")
        parts += [_averages(metrics), _per_attribute(metrics)]
    return "\n".join(parts)


def missing_model_page(wanted: str, reason: str) -> str:
    """Return HTML that says why there is no model and how to make one."""
    return f"""<div class="empty">
<h2>There is no model to serve yet</h2>
<p class="problem" role="alert">{html.escape(reason[:1].upper() + reason[1:])}.</p>
<p>Looked for <code>{html.escape(wanted)}</code>. These commands draw a sample dataset, train a small model on it and
serve it:</p>
<pre><code>aimonk-hf sample-data data/sample
aimonk-hf train --recipe demo --data-dir data/sample --output-dir outputs/demo
aimonk-hf app --model outputs/demo</code></pre>
<p>In the repository <code>make demo</code> does all of it. Another model:
<code>aimonk-hf app --model FOLDER_OR_USER/REPO</code>, or the environment variable <code>AIMONK_MODEL</code>
(in a Space: Settings, Variables).</p>
</div>"""


def _attributes(names: list[str]) -> str:
    listed = ", ".join(f"<code>{html.escape(name)}</code>" for name in names)
    count = f"{len(names)} attribute{'' if len(names) == 1 else 's'}"
    if len(names) <= MANY:
        return f'<p class="facts">{count}: {listed}.</p>'
    return f'<details class="facts"><summary>{count}</summary><p>{listed}</p></details>'


def _averages(metrics: dict[str, Any]) -> str:
    header = ["", "macro F1", "macro average precision", "macro AUROC", "Hamming accuracy", "exact match"]
    keys = ("f1", "average_precision", "auroc", "hamming_accuracy", "exact_match")
    trivial = metrics["trivial"]
    rows = [["this model", *(metrics["macro"].get(key) for key in keys)]]
    for label, row in (
        ("everything present", trivial["all_positive"]),
        ("each attribute's majority", trivial["majority"]),
    ):
        prevalence = trivial["prevalence"].get("macro_average_precision")
        rows.append([label, row.get("macro_f1"), prevalence, 0.5, row.get("hamming_accuracy"), row.get("exact_match")])
    return _table("Averages, with the trivial predictors", header, rows).replace("<tbody><tr>", "<tbody><tr class=own>")


def _per_attribute(metrics: dict[str, Any]) -> str:
    rows = []
    for name, row in metrics["per_attribute"].items():
        between = " to ".join(map(_cell, row.get("auroc_ci95") or [])) or None
        rows.append([name, *(row.get(key) for key in _FIGURES), between, *(row[key] for key in _COUNTS)])
    return _table("Each attribute", ["attribute", *_FIGURES.values(), "95% of AUROC", *_COUNTS.values()], rows)


def _table(caption: str, header: list[str], rows: list[list[Any]]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row)}</tr>" for row in rows)
    return (
        f'<h3>{caption}</h3><div class="wide-table" tabindex="0" role="region" aria-label="{caption}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(value: str | float | None) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return "n/a" if value is None else html.escape(str(value))
