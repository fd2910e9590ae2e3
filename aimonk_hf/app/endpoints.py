"""Offer gradio's endpoints /predict, /predict_batch, /heatmap and /model; their fields lie on no page."""

import keyword
import re
from collections.abc import Callable, Iterable
from inspect import Parameter, Signature
from typing import Any

import gradio as gr
from PIL import Image

from aimonk_hf.app.batch_tab import score_batch, table_value, write_table
from aimonk_hf.app.heatmap import heat_map, overlay
from aimonk_hf.app.scoring import Served
from aimonk_hf.app.uploads import in_words, open_upload
from aimonk_hf.modeling.prediction import Prediction
from aimonk_hf.modeling.processing import Pixels

# Names that gradio's clients keep for themselves, beside the endpoints' own parameters.
_TAKEN = ("image", "request", "api_name", "fn_index", "result_callbacks", "headers", "oauth_token", "files", "heatmap")


def slugs(attributes: Iterable[str]) -> dict[str, str]:
    """Return attributes by parameter name: lower case, `_` for other characters, `attr_` before a collision."""
    names: dict[str, str] = {}
    for number, attribute in enumerate(attributes, start=1):
        slug = re.sub(r"\W+", "_", attribute.lower(), flags=re.ASCII).strip("_") or str(number)
        if not slug.isidentifier() or keyword.iskeyword(slug) or slug in (*_TAKEN, *names):
            slug = f"attr_{slug}"
        base, count = slug, 2
        while slug in names:
            slug, count = f"{base}_{count}", count + 1
        names[slug] = attribute
    return names


def rounded(scores: dict[str, float]) -> dict[str, float]:
    """Return scores to six digits."""
    return {name: round(score, 6) for name, score in scores.items()}


def model_facts(served: Served) -> dict[str, Any]:
    """Return name, architecture, attributes, parameter names, thresholds and metrics of the model."""
    model = served.scorer.model
    return {
        "name": served.name,
        "architecture": model.config.architecture,
        "image_size": list(model.config.image_size),
        "attributes": list(served.stored),
        "parameters": {name: slug for slug, name in slugs(served.stored).items()},
        "thresholds": dict(served.stored),
        "metrics": model.metrics,
    }


def add_endpoints(served: Served) -> None:
    """Add the endpoints to the page under construction."""
    attribute_of = slugs(served.stored)
    numbers = {
        # clients fill in the defaults that they read once; where stored thresholds can change, they are None
        slug: gr.Number(None if served.save_folder else served.stored[name], label=name, visible=False)
        for slug, name in attribute_of.items()
    }
    image = gr.Image(label="image", type="filepath", visible=False)
    files = gr.File(label="files", file_count="multiple", visible=False)
    replaced = "Each number is that attribute's threshold, the stored one where it is left out. Return"

    def resolved(thresholds: dict[str, Any]) -> dict[str, float]:
        return served.thresholds({attribute_of[slug]: value for slug, value in thresholds.items()})

    def read(image: Any) -> Pixels:
        pixels, notes = served.read(open_upload(image, served.limits))
        if notes:  # a log message beside the answer
            gr.Info(notes)
        return pixels

    def predict(*, image: Any, **thresholds: Any) -> tuple[dict[str, float], list[str]]:
        decided = resolved(thresholds)
        scores = served.scorer.score(read(image))
        return rounded(scores), Prediction(scores, decided).attributes

    def predict_batch(*, files: Any, **thresholds: Any) -> tuple[Any, str]:
        table = table_value(score_batch(served, files), resolved(thresholds))
        path = write_table(table, served.limits.folder)
        for cells in table["data"]:
            cells[2:-2] = [float(cell) if cell else None for cell in cells[2:-2]]
        return table, path

    def heatmap(*, image: Any, attribute: Any) -> Image.Image:
        pixels = read(image)
        return overlay(pixels, heat_map(served.scorer, pixels, str(attribute)))

    def model() -> dict[str, Any]:
        return model_facts(served)

    scored = [gr.JSON(label="scores", visible=False), gr.JSON(label="attributes", visible=False)]
    told = f"Score one image. {replaced} the scores and the present attributes."
    _add(predict, {"image": image, **numbers}, scored, told, None)
    columns = table_value([], served.stored)["headers"]
    listed = [gr.Dataframe(label="table", headers=columns, visible=False), gr.File(label="csv", visible=False)]
    told = f"Score images, or zips of images. {replaced} a table, whose last columns say what was done to an image and "
    _add(predict_batch, {"files": files, **numbers}, listed, told + "why it has no scores, and a CSV file.")
    chosen = gr.Dropdown(list(served.stored), label="attribute", visible=False)
    drawn = gr.Image(label="heat map", format="png", visible=False)
    told = "Return the image as the network sees it, bright where it raised the score of the attribute."
    _add(heatmap, {"image": image, "attribute": chosen}, [drawn], told)
    _add(model, {}, [gr.JSON(label="model", visible=False)], "Return attributes, thresholds and metrics.")


def _add(
    function: Callable[..., Any], inputs: dict[str, Any], outputs: list[Any], description: str, at_once: int | None = 2
) -> None:
    told_in_words = in_words()(function)
    # gradio takes a number without a value as optional only if the signature names it, and it can be None there
    parameters = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=None if isinstance(field, gr.Number) else Parameter.empty)
        for name, field in inputs.items()
    ]
    told_in_words.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    gr.Button(visible=False).click(
        told_in_words,
        inputs_kwargs=inputs or None,
        outputs=outputs,
        api_name=function.__name__,
        api_description=description,
        preprocess=False,
        concurrency_limit=at_once,
    )
