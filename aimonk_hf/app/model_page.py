"""The third tab: what the model is and how good it is, beside what doing nothing scores; and the page shown without a model."""

import html
from collections.abc import Sequence
from typing import Any

from aimonk_hf.modeling.config import AimonkConfig

_FIGURES = ("threshold", "f1", "precision", "recall", "average_precision", "auroc")
MANY = 30
_COUNTS = ("n_positive", "n_negative", "n_missing")


def model_page(name: str, config: AimonkConfig, metrics: dict[str, Any] | None, problem: str = "") -> str:
    """Return HTML: name, attributes, verdict, the averages with the trivial predictors, and a row per attribute.

    `metrics` are checked ones (`check_metrics`); where a metrics.json could not be used, `problem` is the reason.
    """
    height, width = config.image_size
    parts = [
        f"<h2>{html.escape(name)}</h2>",
        f'<p class="facts">Architecture <code>{html.escape(config.architecture)}</code>, pictures of {height} x {width} pixels.</p>',
        _attributes(config.attributes),
    ]
    if problem:
        parts.append(
            f'<p class="problem" role="alert">The figures of this model are not shown: {html.escape(problem)}.</p>'
        )
    elif metrics is None:
        parts.append(
            "<p>Nobody has measured it: no metrics.json lies beside the weights. <code>aimonk-hf evaluate</code> makes one.</p>"
        )
    if metrics is not None:
        if metrics.get("verdict"):
            parts.append(f'<p class="verdict">{html.escape(metrics["verdict"])}</p>')
        parts.append(f"<p>Measured on {metrics['n_images']} images. A missing label counts nowhere.</p>")
        parts += [_averages(metrics), _per_attribute(metrics)]
    return "\n".join(parts)


def missing_model_page(wanted: str, reason: str) -> str:
    """Return HTML that says why there is no model and how to make one."""
    return f"""<div class="empty">
<h2>There is no model to serve yet</h2>
<p class="problem" role="alert">{html.escape(reason)}.</p>
<p>Looked for <code>{html.escape(wanted)}</code>. These commands draw a sample dataset, train a small model on it and serve it:</p>
<pre><code>aimonk-hf sample-data data/sample
aimonk-hf train --recipe demo --data-dir data/sample --output-dir outputs/demo
aimonk-hf app --model outputs/demo</code></pre>
<p>In the repository <code>make demo</code> does all of it. Another model: <code>aimonk-hf app --model FOLDER_OR_USER/REPO</code>,
or the environment variable <code>AIMONK_MODEL</code> (in a Space: Settings, Variables).</p>
</div>"""


def _attributes(names: list[str]) -> str:
    """List the names; many are folded away."""
    listed = ", ".join(f"<code>{html.escape(name)}</code>" for name in names)
    count = f"{len(names)} attribute{'' if len(names) == 1 else 's'}"
    if len(names) <= MANY:
        return f'<p class="facts">{count}: {listed}.</p>'
    return f'<details class="facts"><summary>{count}</summary><p>{listed}</p></details>'


def _averages(metrics: dict[str, Any]) -> str:
    macro, trivial = metrics["macro"], metrics["trivial"]
    header = ["", "macro F1", "macro average precision", "macro AUROC", "Hamming accuracy", "exact match"]
    keys = ("f1", "average_precision", "auroc", "hamming_accuracy", "exact_match")
    rows = [["this model", *(_figure(macro.get(key)) for key in keys)]]
    prevalence = trivial["prevalence"].get("macro_average_precision")
    for label, key in (("everything present", "all_positive"), ("each attribute's majority", "majority")):
        row = trivial[key]
        rows.append(
            [
                label,
                _figure(row.get("macro_f1")),
                _figure(prevalence),
                "0.500",
                _figure(row.get("hamming_accuracy")),
                _figure(row.get("exact_match")),
            ]
        )
    return _table("Averages, with the trivial predictors", header, rows, first_is_own=True)


def _per_attribute(metrics: dict[str, Any]) -> str:
    header = [
        "attribute",
        "threshold",
        "F1",
        "precision",
        "recall",
        "average precision",
        "AUROC",
        "95% of AUROC",
        "positive",
        "negative",
        "missing",
    ]
    rows = []
    for name, row in metrics["per_attribute"].items():
        interval = row.get("auroc_ci95")
        between = f"{_figure(interval[0])} to {_figure(interval[1])}" if interval else "n/a"
        rows.append([name, *(_figure(row.get(key)) for key in _FIGURES), between, *(str(row[key]) for key in _COUNTS)])
    return _table("Each attribute", header, rows)


def _table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]], first_is_own: bool = False) -> str:
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in header)
    body = ""
    for number, row in enumerate(rows):
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        body += f"<tr{' class=own' if first_is_own and number == 0 else ''}>{cells}</tr>"
    return (
        f'<h3>{html.escape(caption)}</h3><div class="wide-table" tabindex="0" role="region" aria-label="{html.escape(caption)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _figure(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "n/a"
