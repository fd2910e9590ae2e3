"""Render the model card, README.md of a saved folder, from model_card.md."""

import re
from functools import partial
from pathlib import Path
from typing import Any

from aimonk_hf.data.images import shown_name
from aimonk_hf.modeling.config import AimonkConfig
from aimonk_hf.modeling.saved_metrics import check_metrics

_PACKAGE = Path(__file__).parents[1]
_TAGS = ["aimonk_hf", "multi-label-classification", "image-classification", "timm", "transformers", "safetensors"]
# Macro figures that the Hub shows: key -> its metric type and name.
_INDEXED = {
    "f1": ("f1", "macro F1"),
    "average_precision": ("average_precision", "macro average precision"),
    "auroc": ("roc_auc", "macro AUROC"),
}


def render_card(config: AimonkConfig, metrics: dict[str, Any] | None, fields: dict[str, Any] | None = None) -> str:
    """Return the card's Markdown for a config and, where known, its metrics; raise `AimonkError` as `check_metrics`.

    `fields` are those at its head that are not known here: license, base_model, datasets, tags, training_time, ...
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    results, given = [], dict(fields or {})
    if metrics is not None:
        check_metrics(metrics, config.attributes)
        where = (metrics.get("measured_on") or {}).get("images", "labelled images")
        results = [
            EvalResult(
                task_type="image-classification",
                task_name="Multi-label image classification",
                dataset_type=next(iter(given.get("datasets") or ["imagefolder"])),
                dataset_name=f"{where} ({metrics['n_images']} images)",
                metric_type=kind,
                metric_name=words,
                metric_value=round(metrics["macro"][key], 4),
            )
            for key, (kind, words) in _INDEXED.items()
            if metrics["macro"].get(key) is not None
        ]
    data = ModelCardData(
        library_name="timm",  # by another one transformers' pipeline does not find a repository's task
        pipeline_tag="image-classification",
        tags=[*_TAGS, *(given.pop("tags", None) or [])],
        # hf.co/metrics lists no average precision
        metrics=[one.metric_type for one in results if one.metric_type != "average_precision"] or None,
        model_name=config.architecture if results else None,
        eval_results=results or None,
        **given,
    )
    card = ModelCard.from_template(
        data,
        template_str=template_file(_PACKAGE).read_text(encoding="utf-8"),
        title=f"Image attributes by {config.architecture}",
        attributes=config.attributes,
        thresholds=config.to_dict()["thresholds"],
        architecture=config.architecture,
        size=config.image_size,
        metrics=metrics,
        figure=_figure,
        interval=_interval,
        fields=given,
        is_address=partial(re.fullmatch, r"https?://[\w.:/?=&%~#@+-]+", flags=re.ASCII),
        cell=as_text,
        code=as_code,
    )
    return str(card).rstrip() + "\n"


def template_file(package: Path) -> Path:
    """Return the card's template in an installed package, or beside it in the repository."""
    packaged = package / "model_card.md"
    return packaged if packaged.is_file() else package.parent / "model_card.md"


def as_text(value: object) -> str:
    """Return one line of Markdown that shows a text as it is, in a table too: no HTML, link, image or code."""
    return re.sub(r"([\\`\[|])", r"\\\1", shown_name(str(value)).replace("&", "&amp;").replace("<", "&lt;"))


def as_code(value: object) -> str:
    """Return a name between backticks, or as text where a character of it could end the code."""
    shown = shown_name(str(value))
    return as_text(shown) if re.search(r"[\\`|<&]", shown) else f"`{shown}`"


def _figure(value: Any) -> str:
    return f"{value:.3f}".removeprefix("0") if isinstance(value, int | float) else "n/a"


def _interval(ends: list[float] | None) -> str:
    return f" ({_figure(ends[0])}\u00a0to\u00a0{_figure(ends[1])})" if ends else ""  # on one line of a narrow cell
