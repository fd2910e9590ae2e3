"""Build the page as a whole: title, tabs, the model and its figures, and look; or the page without a model."""

import html
import os
from pathlib import Path
from typing import Any

import gradio as gr

from aimonk_hf.app.batch_tab import build_batch_tab
from aimonk_hf.app.gradio_internals import check_inputs_first
from aimonk_hf.app.predict_tab import build_predict_tab, read_static
from aimonk_hf.app.scoring import Served
from aimonk_hf.modeling.config import AimonkConfig

TITLE = "aimonk_hf"
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


def build_page(served: Served, examples: list[Path]) -> gr.Blocks:
    """Return the page and API of a model; `examples` are images offered beside the upload field."""
    model = served.scorer.model
    line = f"{len(served.stored)} attributes, each with a score and a threshold of its own"
    with _blocks(f"{served.name} - {TITLE}") as page:
        gr.HTML(f"<h1>{html.escape(served.name)}</h1><p>{line}</p>", elem_id="title")
        with gr.Tabs():
            with gr.Tab("Predict", id="predict"):
                _, thresholds = build_predict_tab(served, examples, page)
            build_batch_tab(served, thresholds)
            with gr.Tab("Model", id="model"):
                shown = model_page(served.name, model.config, model.metrics, model.metrics_problem)
                gr.HTML(shown, elem_id="model-page")
    check_inputs_first(page, served.limits.folder)
    return page


def build_missing_page(wanted: str, reason: str) -> gr.Blocks:
    """Return the page that says why there is no model and how to make one."""
    with _blocks(TITLE) as page:
        gr.HTML(
            f"""<div class="empty">
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
</div>""",
            elem_id="missing",
        )
    return page


def model_page(name: str, config: AimonkConfig, metrics: dict[str, Any] | None, problem: str = "") -> str:
    """Return HTML: name, attributes, verdict, the averages with the trivial predictors, and a row per attribute.

    `metrics` are checked ones (`check_metrics`); where a metrics.json could not be used, `problem` is the reason.
    """
    height, width = config.image_size
    backbone = f"Architecture <code>{html.escape(config.architecture)}</code>, images of {height} x {width} pixels."
    names = ", ".join(f"<code>{html.escape(attribute)}</code>" for attribute in config.attributes)
    count = f"{len(config.attributes)} attribute{'' if len(config.attributes) == 1 else 's'}"
    parts = [f'<h2>{html.escape(name)}</h2><p class="facts">{backbone}</p>']
    if len(config.attributes) <= MANY:
        parts.append(f'<p class="facts">{count}: {names}.</p>')
    else:
        parts.append(f'<details class="facts"><summary>{count}</summary><p>{names}</p></details>')
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


def _averages(metrics: dict[str, Any]) -> str:
    header = ["", "macro F1", "macro average precision", "macro AUROC", "Hamming accuracy", "exact match"]
    keys = ("f1", "average_precision", "auroc", "hamming_accuracy", "exact_match")
    trivial = metrics["trivial"]
    rows = [["this model", *(metrics["macro"].get(key) for key in keys)]]
    prevalence = trivial["prevalence"].get("macro_average_precision")
    for label, key in (("everything present", "all_positive"), ("each attribute's majority", "majority")):
        row = trivial[key]
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


def look() -> dict[str, Any]:
    """Return the options of `launch` for the look: one accent colour, and system fonts, so that nothing is fetched."""
    colours = gr.themes.colors
    theme = gr.themes.Default(
        primary_hue=colours.teal,
        secondary_hue=colours.teal,
        neutral_hue=colours.slate,
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        button_primary_background_fill="*primary_700",  # white text on the lighter ones is hard to read
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_600",
        link_text_color="*primary_700",
    )
    return {"theme": theme, "css": read_static("page.css"), "js": read_static("page.js")}


def _blocks(title: str) -> gr.Blocks:
    wanted = os.environ.get("GRADIO_ANALYTICS_ENABLED") == "True"  # gradio's own default is to send
    return gr.Blocks(title=title, analytics_enabled=wanted)
