"""Build the page as a whole: title, tabs and look; or the page without a model."""

import html
import os
from pathlib import Path
from typing import Any

import gradio as gr

from aimonk_hf.app.batch_tab import build_batch_tab
from aimonk_hf.app.endpoints import add_endpoints
from aimonk_hf.app.gradio_internals import check_inputs_first
from aimonk_hf.app.model_tab import build_model_tab, card_title
from aimonk_hf.app.predict_tab import build_predict_tab, read_static
from aimonk_hf.app.rest import PlainApi
from aimonk_hf.app.scoring import Served

TITLE = "aimonk_hf"


def build_page(served: Served, examples: list[Path]) -> gr.Blocks:
    """Return the page and API of a model; `examples` are images offered beside the upload field."""
    title = card_title(served.model_folder) or served.name
    line = f"{len(served.stored)} attributes, each with a score and a threshold of its own"
    with _blocks(f"{title} - {TITLE}") as page:
        gr.HTML(f"<h1>{html.escape(title)}</h1><p>{line}</p>", elem_id="title")
        if served.note:
            gr.HTML(f"<p>{html.escape(served.note)}</p>", elem_id="note")
        with gr.Tabs() as tabs:
            with gr.Tab("Predict", id="predict"):
                predict = build_predict_tab(served, examples, page)
            build_batch_tab(served, predict, tabs)
            with gr.Tab("Model", id="model"):
                build_model_tab(served)
            if served.labelling is not None:
                with gr.Tab("Labels", id="labels"):
                    gr.HTML('<iframe id="labelling" src="label/" title="Mend labels"></iframe>', padding=False)
        gr.HTML('<a href="docs">Use via API</a>', elem_id="api", padding=False)
        add_endpoints(served)
    page.plain_api = PlainApi(served, examples)
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
