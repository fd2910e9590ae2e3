"""Build the first tab: an image, a bar with a movable threshold per attribute, and heat maps."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from aimonk_hf.app.gradio_internals import event_value
from aimonk_hf.app.heatmap import heat_value
from aimonk_hf.app.scoring import Served
from aimonk_hf.app.uploads import decoded, in_words, open_upload, sentence
from aimonk_hf.data.collected import Collection
from aimonk_hf.data.reviews import LABEL_OF
from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling.prediction import Prediction

CLOSE_CALL = 0.05  # a score this near to its threshold would be decided otherwise by a slightly different threshold
ABSENT_HEAT = 0.6  # the most of a heat map that is drawn for an absent attribute, at its threshold
NAMED = 8  # present attributes in the sentence above the bars, which has two lines
# An image that was pasted, photographed or dropped is on its way to the network.
_BUSY = "(...sent) => { if (sent[0]) document.dispatchEvent(new CustomEvent('aimonk-busy')); return sent; }"
# of the events that are no part of the API
HIDDEN: dict[str, Any] = {"api_visibility": "private", "preprocess": False, "show_progress": "hidden"}


@dataclass
class PredictTab:
    """Hold what other tabs use: the image, the panel, a visitor's thresholds (None: the stored ones) and scores."""

    image: gr.Image
    panel: gr.HTML
    thresholds: gr.State
    scores: gr.State


def build_predict_tab(served: Served, examples: list[Path], page: gr.Blocks) -> PredictTab:
    """Lay out the tab and bind its events."""
    with gr.Row(equal_height=False, elem_id="predict-row"):
        with gr.Column(scale=5, min_width=280, elem_id="predict-left"):
            with gr.Column(elem_id="stage"):
                image = gr.Image(
                    label="Image",
                    type="filepath",
                    sources=["upload", "clipboard", "webcam"],
                    buttons=["fullscreen"],
                    alt_text="The image whose attributes are shown",
                    elem_id="image",
                )
                heat = scripted("heat", None, "Heat maps")
            if examples:
                listed = [[str(path)] for path in examples]
                gr.Examples(listed, image, label="Examples", examples_per_page=8, elem_id="examples")
        with gr.Column(scale=8, min_width=280, elem_id="predict-right"):
            if served.collection is not None:
                _bind_marks(served, served.collection, image, scripted("collect", None, "Right or wrong"))
            panel = scripted("panel", panel_value(served, None, None), "Attributes")
    tab = PredictTab(image, panel, gr.State(None), gr.State(None))
    _bind(served, tab, heat)
    if served.save_folder is not None:  # the page's own copy of the stored thresholds dates from the start of the app
        page.load(lambda: panel_value(served, None, None), None, panel, queue=False, **HIDDEN)
    return tab


def read_static(name: str) -> str:
    """Return a file of the page's look or behaviour."""
    return (Path(__file__).parent / "static" / name).read_text(encoding="utf-8")


def scripted(name: str, value: Any, label: str) -> gr.HTML:
    """Return a part of the page that a script of its own fills: static/NAME.html, .css and .js."""
    return gr.HTML(
        value,
        label=label,
        html_template=read_static(f"{name}.html"),
        css_template=read_static(f"{name}.css"),
        js_on_load=read_static(f"{name}.js"),
        apply_default_css=False,
        elem_id=name,
    )


def panel_value(
    served: Served,
    scores: dict[str, float] | None,
    thresholds: dict[str, float] | None,
    message: str = "",
    error: bool = False,
    moves: int | None = None,
    image: str = "",
    key: str = "",
) -> dict[str, Any]:
    """Return the value of the panel; `moves` numbers the move of thresholds that it answers, None for new scores.

    `image` and `key` are the name of the image and its place, by which marks are known to be about it.
    """
    rows = panel_rows(served.stored, thresholds or served.stored, scores)
    return {
        "rows": rows,
        "kind": "scored" if moves is None else "decided",
        "message": f"{summary(rows)} {message}".strip() or "Choose an image: the scores appear here.",
        "error": error,
        "moves": moves or 0,
        "image": image,
        "key": key,
        "collects": served.collection is not None,
        "model": served.name,
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
            row["strength"] = 1.0 if name in present else ABSENT_HEAT * scores[name] / threshold
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


def _bind(served: Served, tab: PredictTab, heat: gr.HTML) -> None:
    image, panel, thresholds, kept = tab.image, tab.panel, tab.thresholds, tab.scores

    def show(value: Any, moved: dict[str, float] | None) -> tuple[Any, Any]:
        scores, message, failed, name = None, "", False, ""
        try:
            if value is not None:
                upload = open_upload(value, served.limits)
                name = upload.name
                pixels, message = served.read(upload)
                scores = served.scorer.score(pixels)
        except AimonkError as error:
            message, failed = sentence(error), True
        return panel_value(served, scores, moved, message, failed, image=name, key=_key(value)), scores

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

    def explain(value: Any, event: gr.EventData) -> dict[str, Any]:
        attribute = str(event_value(event, "attribute"))
        asked = {"attribute": attribute, "round": event_value(event, "round")}
        try:
            return asked | heat_value(served, open_upload(value, served.limits), attribute)
        except AimonkError as error:
            return asked | {"error": sentence(error)}

    hidden = HIDDEN | {"concurrency_limit": None}
    image.change(show, [image, thresholds], [panel, kept], js=_BUSY, **hidden)
    panel.input(decide, kept, [panel, thresholds], queue=False, trigger_mode="multiple", **hidden)
    heat.select(explain, image, heat, trigger_mode="multiple", **hidden)
    if served.save_folder is not None:
        panel.submit(save, kept, [panel, thresholds], queue=False, **hidden)


def _bind_marks(served: Served, collection: Collection, image: gr.Image, consent: gr.HTML) -> None:
    """Keep the image of a visitor who agreed, with the label that a mark means."""

    def keep(value: Any, event: gr.EventData) -> dict[str, Any]:
        attribute, label, key = (str(event_value(event, name)) for name in ("attribute", "label", "key"))
        answer = {"attribute": attribute, "label": label, "key": key}
        try:
            if event_value(event, "agreed") is not True:
                raise AimonkError("Nothing was kept: agree to the sentence first")
            if attribute not in served.stored or label not in LABEL_OF:
                raise AimonkError("Nothing was kept: this page is of another model; load it again")
            if not key or key != _key(value):
                raise AimonkError("Nothing was kept: the image has changed; mark this one")
            with decoded(open_upload(value, served.limits), served.limits) as (pixels, _):
                digest = collection.keep(pixels, attribute, label)
        except AimonkError as error:
            told = sentence(error)
            if str(collection.folder) in told:
                print(f"--collect: {error}", file=sys.stderr)
                told = "Nothing was kept: the log of this app says why."
            return answer | {"error": told}
        return answer | {"hash": digest[:12]}

    consent.select(keep, image, consent, trigger_mode="multiple", concurrency_limit=2, **HIDDEN)


def _key(value: Any) -> str:
    """Return the folder of an upload, which gradio names by its content; "" without one."""
    return Path((value or {}).get("path") or "").parent.name


def _sent(served: Served, event: gr.EventData) -> tuple[dict[str, float], int]:
    """Return the thresholds that the page sent, and the number of the move."""
    with in_words():
        thresholds = served.thresholds(event_value(event, "thresholds"))
    moves = event_value(event, "moves")
    return thresholds, moves if isinstance(moves, int) else 0
