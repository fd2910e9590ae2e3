"""Build the page as a whole: title, tabs and look; or the page shown where there is no model."""

import html
import os
from pathlib import Path
from typing import Any

import gradio as gr

from aimonk_hf.app.batch_tab import build_batch_tab
from aimonk_hf.app.gradio_internals import check_inputs_first
from aimonk_hf.app.model_tab import missing_model_page, model_page
from aimonk_hf.app.predict_tab import build_predict_tab
from aimonk_hf.app.scoring import Served

TITLE = "aimonk_hf"
_STATIC = Path(__file__).parent / "static"


def build_page(served: Served, examples: list[Path]) -> gr.Blocks:
    """Return the page and API of a model; `examples` are images offered beside the upload field."""
    model = served.scorer.model
    line = f"{len(served.stored)} attributes, each with a score and a threshold of its own"
    with _blocks(f"{served.name} - {TITLE}") as page:
        gr.HTML(f"<h1>{html.escape(served.name)}</h1><p>{line}</p>", elem_id="title")
        with gr.Tabs():
            with gr.Tab("Predict", id="predict"):
                thresholds = build_predict_tab(served, examples, page)
            build_batch_tab(served, thresholds)
            with gr.Tab("Model", id="model"):
                shown = model_page(served.name, model.config, model.metrics, model.metrics_problem)
                gr.HTML(shown, elem_id="model-page")
    check_inputs_first(page, served.limits.folder)
    return page


def build_missing_page(wanted: str, reason: str) -> gr.Blocks:
    """Return the page shown where there is no model."""
    with _blocks(TITLE) as page:
        gr.HTML(missing_model_page(wanted, reason), elem_id="missing")
    return page


def look() -> dict[str, Any]:
    """Return the options of `launch` for the look: one accent colour, and system fonts, so that nothing is fetched."""
    theme = gr.themes.Default(
        primary_hue=gr.themes.colors.teal,
        secondary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
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
    return {
        "theme": theme,
        "css": (_STATIC / "page.css").read_text(encoding="utf-8"),
        "js": (_STATIC / "page.js").read_text(encoding="utf-8"),
    }


def _blocks(title: str) -> gr.Blocks:
    wanted = os.environ.get("GRADIO_ANALYTICS_ENABLED") == "True"  # gradio's own default is to send
    return gr.Blocks(title=title, analytics_enabled=wanted)
