"""The first tab: a picture in, a bar with a movable threshold per attribute, and why; and the endpoint /predict."""

import html
import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gradio as gr

from aimonk_hf.app.decisions import read_thresholds
from aimonk_hf.app.served import Served, score_upload
from aimonk_hf.app.sessions import ApiSessions
from aimonk_hf.errors import AimonkError

_STATIC = Path(__file__).parent / "static"
PICTURE_HEIGHT = 380


def build_predict_tab(served: Served, examples: list[Path], page: gr.Blocks, sessions: ApiSessions) -> gr.State:
    """Lay out the tab and bind its events; returns the state that holds this visitor's thresholds (None: the stored ones)."""
    kept: gr.State = gr.State(None)  # this visitor's last scores, by attribute
    thresholds: gr.State = gr.State(None)
    with gr.Row(equal_height=False, elem_id="predict-row"):
        with gr.Column(scale=5, min_width=300, elem_id="predict-left"):
            picture = gr.Image(
                label="Picture",
                type="filepath",
                height=PICTURE_HEIGHT,
                sources=["upload", "clipboard", "webcam"],
                buttons=["fullscreen"],
                alt_text="the picture whose attributes are shown",
                elem_id="picture",
            )
            if examples:
                gr.Examples(
                    [[str(path)] for path in examples],
                    picture,
                    label="Examples",
                    examples_per_page=8,
                    elem_id="examples",
                )
            heat = gr.Image(
                label="Heat map",
                height=PICTURE_HEIGHT,
                visible=False,
                interactive=False,
                buttons=["download", "fullscreen"],
                alt_text="heat map of one attribute over the picture",
                elem_id="heat",
            )
            caption = gr.HTML(visible=False, elem_id="heat-caption")
        with gr.Column(scale=6, min_width=300, elem_id="predict-right"):
            panel = _panel(served)
    _bind(served, picture, panel, heat, caption, kept, thresholds)
    if served.save_folder is not None:
        # the page's own copy of the stored thresholds dates from the start of the app
        page.load(
            lambda: served.panel(None, None, "scored"),
            None,
            panel,
            queue=False,
            show_progress="hidden",
            api_visibility="private",
        )
    _add_endpoint(served, sessions)
    return thresholds


def _panel(served: Served) -> gr.HTML:
    return gr.HTML(
        served.panel(None, None, "scored"),
        label="Attributes",
        html_template=(_STATIC / "panel.html").read_text(encoding="utf-8"),
        css_template=(_STATIC / "panel.css").read_text(encoding="utf-8"),
        js_on_load=(_STATIC / "panel.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        elem_id="panel",
    )


def _bind(
    served: Served,
    picture: gr.Image,
    panel: gr.HTML,
    heat: gr.Image,
    caption: gr.HTML,
    kept: gr.State,
    thresholds: gr.State,
) -> None:
    def show(value: Any, moved: dict[str, float] | None) -> tuple[Any, ...]:
        """Score a new picture; a removed or unusable one empties the bars."""
        hidden = gr.update(visible=False, value=None)
        if value is None:
            return served.panel(None, moved, "scored"), None, hidden, gr.update(visible=False)
        scores, sentence = score_upload(served, value)
        if scores is None:
            return served.panel(None, moved, "scored", sentence, error=True), None, hidden, gr.update(visible=False)
        value = served.panel(scores, moved, "scored")
        value["message"] = f"{value['message']} {sentence}".strip()
        return value, scores, hidden, gr.update(visible=False)

    def decide(scores: dict[str, float] | None, event: gr.EventData) -> tuple[Any, Any]:
        """Decide anew from the kept scores; the network does not run."""
        moved = _checked(served, event)
        return served.panel(scores, moved, "decided", moves=_moves(event)), moved

    def save(scores: dict[str, float] | None, event: gr.EventData) -> tuple[Any, Any]:
        moved = _checked(served, event)
        try:
            sentence, failed = served.save_thresholds(moved, _sent(event, "token")), False
        except AimonkError as error:
            sentence, failed = f"{error}.", True
        return served.panel(scores, moved, "scored", sentence, failed, _moves(event)), moved

    def explain(value: Any, scores: dict[str, float] | None, event: gr.EventData) -> tuple[Any, Any]:
        """Compute the heat map of one attribute for the picture that is shown."""
        from aimonk_hf.app.heatmap import heat_map, overlay

        attribute = str(_sent(event, "attribute"))
        try:
            pixels, _ = served.read(value)
            heat_values = heat_map(served.scorer, pixels, attribute)
        except AimonkError as error:
            return gr.update(visible=False), gr.update(visible=True, value=_paragraph(f"No heat map: {error}."))
        shown = overlay(pixels, heat_values)
        words = f"Where the network looked for {attribute}: bright parts raised its score. The picture is shown as the network sees it."
        return gr.update(visible=True, value=shown, label=f"Heat map: {attribute}"), gr.update(
            visible=True, value=_paragraph(words)
        )

    private: dict[str, Any] = {"api_visibility": "private", "preprocess": False, "concurrency_limit": None}
    picture.change(show, [picture, thresholds], [panel, kept, heat, caption], show_progress="hidden", **private)
    panel.input(
        decide, kept, [panel, thresholds], queue=False, trigger_mode="multiple", show_progress="hidden", **private
    )
    panel.select(explain, [picture, kept], [heat, caption], show_progress="minimal", scroll_to_output=True, **private)
    if served.save_folder is not None:
        panel.submit(save, kept, [panel, thresholds], queue=False, show_progress="hidden", **private)


def _paragraph(words: str) -> str:
    return f"<p>{html.escape(words)}</p>"


def _checked(served: Served, event: gr.EventData) -> dict[str, float]:
    try:
        return read_thresholds(served.stored, _sent(event, "thresholds"))
    except AimonkError as error:
        raise gr.Error(str(error), print_exception=False) from error


def _sent(event: gr.EventData, name: str) -> Any:
    """Return what the page sent along with an event; anyone can send anything, or nothing."""
    return event._data.get(name) if isinstance(event._data, dict) else None


def _moves(event: gr.EventData) -> int:
    moves = _sent(event, "moves")
    return moves if isinstance(moves, int) else 0


def _add_endpoint(served: Served, sessions: ApiSessions) -> None:
    """Offer /predict with one parameter per attribute, named by its slug; its fields lie on no page."""
    image = gr.Image(label="image", type="filepath", visible=False)
    attribute_of = {slug: name for name, slug in served.slugs.items()}
    # Clients fill in the defaults that they read once. Where the stored thresholds can change, the default says only "the stored one".
    defaults = {slug: None if served.save_folder else served.stored[name] for slug, name in attribute_of.items()}
    numbers = {slug: gr.Number(defaults[slug], label=name, visible=False) for slug, name in attribute_of.items()}
    outputs = [gr.JSON(label="scores", visible=False), gr.JSON(label="attributes", visible=False)]

    def predict(request: gr.Request, *, image: Any, **thresholds: Any) -> tuple[dict[str, float], list[str]]:
        sessions.note(request)
        try:
            scores, present, notes = served.predict(
                image, {attribute_of[slug]: value for slug, value in thresholds.items()}
            )
        except AimonkError as error:
            raise gr.Error(str(error), print_exception=False) from error
        for note in notes:
            gr.Info(note)  # a log message beside the answer
        return scores, present

    predict.__signature__ = _signature(predict, numbers)  # type: ignore[attr-defined]
    gr.Button(visible=False).click(
        predict,
        inputs_kwargs={"image": image, **numbers},
        outputs=outputs,
        api_name="predict",
        api_description="Score one picture. Each number is that attribute's threshold, the stored one where it is left out. "
        "Returns the scores and the present attributes.",
        preprocess=False,
        concurrency_limit=None,
    )


def _signature(endpoint: Any, names: Iterable[str]) -> inspect.Signature:
    """Return the endpoint's signature with `**` spelt out: gradio takes a parameter without a value as optional only if it can be None here."""
    fixed = [
        each
        for each in inspect.signature(endpoint).parameters.values()
        if each.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    return inspect.Signature(
        [*fixed, *(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in names)]
    )
