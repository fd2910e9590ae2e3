"""Build the first tab: an image, a bar with a movable threshold per attribute, and heat maps."""

import html
from pathlib import Path
from typing import Any

import gradio as gr

from aimonk_hf.app.gradio_internals import event_value
from aimonk_hf.app.scoring import Served
from aimonk_hf.app.uploads import in_words, open_upload, sentence
from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling.prediction import Prediction

CLOSE_CALL = 0.05  # a score this near to its threshold would be decided otherwise by a slightly different threshold
NAMED = 8  # present attributes in the sentence above the bars, which has two lines
IMAGE_HEIGHT = 380


def build_predict_tab(served: Served, examples: list[Path], page: gr.Blocks) -> gr.State:
    """Lay out the tab and bind its events; return the state with this visitor's thresholds (None: the stored ones)."""
    thresholds: gr.State = gr.State(None)
    with gr.Row(equal_height=False, elem_id="predict-row"):
        with gr.Column(scale=5, min_width=300, elem_id="predict-left"):
            image = gr.Image(
                label="Image",
                type="filepath",
                height=IMAGE_HEIGHT,
                sources=["upload", "clipboard", "webcam"],
                buttons=["fullscreen"],
                alt_text="The image whose attributes are shown",
                elem_id="image",
            )
            if examples:
                listed = [[str(path)] for path in examples]
                gr.Examples(listed, image, label="Examples", examples_per_page=8, elem_id="examples")
            heat = gr.Image(
                label="Heat map",
                height=IMAGE_HEIGHT,
                visible=False,
                interactive=False,
                buttons=["download", "fullscreen"],
                alt_text="Heat map of one attribute over the image",
                elem_id="heat",
            )
            caption = gr.HTML(visible=False, elem_id="heat-caption")
        with gr.Column(scale=6, min_width=300, elem_id="predict-right"):
            panel = gr.HTML(
                panel_value(served, None, None),
                label="Attributes",
                html_template=read_static("panel.html"),
                css_template=read_static("panel.css"),
                js_on_load=read_static("panel.js"),
                apply_default_css=False,
                elem_id="panel",
            )
    _bind(served, image, panel, heat, caption, thresholds)
    if served.save_folder is not None:  # the page's own copy of the stored thresholds dates from the start of the app
        hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        page.load(lambda: panel_value(served, None, None), None, panel, queue=False, **hidden)
    return thresholds


def read_static(name: str) -> str:
    """Return a file of the page's look or behaviour."""
    return (Path(__file__).parent / "static" / name).read_text(encoding="utf-8")


def panel_value(
    served: Served,
    scores: dict[str, float] | None,
    thresholds: dict[str, float] | None,
    message: str = "",
    error: bool = False,
    moves: int | None = None,
) -> dict[str, Any]:
    """Return the value of the panel; `moves` numbers the move of thresholds that it answers, None for new scores."""
    rows = panel_rows(served.stored, thresholds or served.stored, scores)
    return {
        "rows": rows,
        "kind": "scored" if moves is None else "decided",
        "message": f"{summary(rows)} {message}".strip() or "Choose an image: the scores appear here.",
        "error": error,
        "moves": moves or 0,
        "token": "" if served.save_folder is None else served.token,
    }


def panel_rows(
    stored: dict[str, float], thresholds: dict[str, float], scores: dict[str, float] | None
) -> list[dict[str, Any]]:
    """Return a row per attribute, in the model's order; score and state are empty before an image is there."""
    present = Prediction(scores, thresholds).attributes if scores else []
    rows: list[dict[str, Any]] = []
    for name, threshold in thresholds.items():
        row = {"name": name, "threshold": threshold, "stored": stored[name], "score": None, "state": "", "close": False}
        if scores:
            row |= {"score": scores[name], "state": "present" if name in present else "absent"}
            row["close"] = abs(scores[name] - threshold) <= CLOSE_CALL
        rows.append(row)
    return rows


def summary(rows: list[dict[str, Any]]) -> str:
    """Return a sentence that names the present attributes."""
    if rows[0]["score"] is None:
        return ""
    present = [row["name"] for row in rows if row["state"] == "present"]
    close = sum(row["close"] for row in rows)
    named = ", ".join(present[:NAMED]) + (f" and {len(present) - NAMED} more" if len(present) > NAMED else "")
    return f"Present: {named or 'none'}." + (f" {close} close {'call' if close == 1 else 'calls'}." if close else "")


def _bind(
    served: Served, image: gr.Image, panel: gr.HTML, heat: gr.Image, caption: gr.HTML, thresholds: gr.State
) -> None:
    kept: gr.State = gr.State(None)  # this visitor's last scores, by attribute

    def show(value: Any, moved: dict[str, float] | None) -> tuple[Any, ...]:
        scores, message, failed = None, "", False
        try:
            if value is not None:
                pixels, message = served.read(open_upload(value, served.limits))
                scores = served.scorer.score(pixels)
        except AimonkError as error:
            message, failed = sentence(error), True
        hidden = gr.update(visible=False, value=None)
        return panel_value(served, scores, moved, message, failed), scores, hidden, gr.update(visible=False)

    def decide(scores: dict[str, float] | None, event: gr.EventData) -> tuple[Any, Any]:
        moved, moves = _sent(served, event)
        return panel_value(served, scores, moved, moves=moves), moved

    def save(scores: dict[str, float] | None, event: gr.EventData) -> tuple[Any, Any]:
        moved, moves = _sent(served, event)
        try:
            told, failed = served.save_thresholds(moved, event_value(event, "token")), False
        except AimonkError as error:
            told, failed = sentence(error), True
        return panel_value(served, scores, moved) | {"message": told, "error": failed, "moves": moves}, moved

    def explain(value: Any, event: gr.EventData) -> tuple[Any, Any]:
        attribute = str(event_value(event, "attribute"))
        try:
            from aimonk_hf.app.heatmap import heat_map, overlay

            pixels, _ = served.read(open_upload(value, served.limits))
            shown = gr.update(
                visible=True,
                value=overlay(pixels, heat_map(served.scorer, pixels, attribute)),
                label=f"Heat map: {attribute}",
            )
            words = f"Bright parts raised the score of {attribute}. This is the image as the network sees it."
        except AimonkError as error:
            shown, words = gr.update(visible=False), sentence(error)
        except ImportError:
            shown, words = gr.update(visible=False), "Heat maps are not available here."
        return shown, gr.update(visible=True, value=f"<p>{html.escape(words)}</p>")

    private: dict[str, Any] = {"api_visibility": "private", "preprocess": False, "concurrency_limit": None}
    hidden = private | {"show_progress": "hidden"}
    image.change(show, [image, thresholds], [panel, kept, heat, caption], **hidden)
    panel.input(decide, kept, [panel, thresholds], queue=False, trigger_mode="multiple", **hidden)
    panel.select(explain, image, [heat, caption], show_progress="minimal", scroll_to_output=True, **private)
    if served.save_folder is not None:
        panel.submit(save, kept, [panel, thresholds], queue=False, **hidden)


def _sent(served: Served, event: gr.EventData) -> tuple[dict[str, float], int]:
    """Return the thresholds that the page sent, and the number of the move."""
    with in_words():
        thresholds = served.thresholds(event_value(event, "thresholds"))
    moves = event_value(event, "moves")
    return thresholds, moves if isinstance(moves, int) else 0
