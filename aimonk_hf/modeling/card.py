"""The model card: README.md of a saved folder, rendered from model_card.md."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aimonk_hf.data.images import shown_name
from aimonk_hf.modeling.config import AimonkConfig
from aimonk_hf.modeling.saved_metrics import check_metrics

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

_PACKAGE = Path(__file__).parents[1]
TAGS = ["aimonk_hf", "multi-label-classification", "image-classification", "timm", "transformers", "safetensors"]
_INDEXED = {
    "f1": ("f1", "macro F1"),
    "average_precision": ("average_precision", "macro average precision"),
    "auroc": ("roc_auc", "macro AUROC"),
}


def render_card(config: AimonkConfig, metrics: dict[str, Any] | None) -> str:
    """Return the card's Markdown for a configuration and the content of metrics.json, if there is one; raises `AimonkError` as `check_metrics`."""
    from huggingface_hub import ModelCard

    if metrics is not None:
        check_metrics(metrics, config.attributes)
    content: dict[str, Any] = {
        "title": f"Image attributes by {config.architecture}",
        "attributes": config.attributes,
        "thresholds": config.to_dict()["thresholds"],
        "architecture": config.architecture,
        "size": config.image_size,
        "metrics": metrics,
    }
    content |= {"figure": _figure, "interval": _interval, "cell": as_text, "code": as_code}
    card = ModelCard.from_template(
        _metadata(config, metrics), template_str=_template().read_text(encoding="utf-8"), **content
    )
    return str(card).rstrip() + "\n"


def _metadata(config: AimonkConfig, metrics: dict[str, Any] | None) -> "ModelCardData":
    """Return the card's YAML; library_name timm, because another keeps transformers' pipeline from recognising a repository's task."""
    from huggingface_hub import ModelCardData

    results = _index(config, metrics)
    return ModelCardData(
        library_name="timm",
        pipeline_tag="image-classification",
        tags=TAGS,
        model_name=config.architecture if results else None,
        eval_results=results or None,
    )


def _index(config: AimonkConfig, metrics: dict[str, Any] | None) -> "list[EvalResult]":
    """Return the macro figures as the Hub's `model-index` shows them; undefined ones are left out."""
    from huggingface_hub import EvalResult

    if metrics is None:
        return []
    where = (metrics.get("measured_on") or {}).get("images", "labelled images")
    return [
        EvalResult(
            task_type="image-classification",
            task_name="Multi-label image classification",
            dataset_type="imagefolder",
            dataset_name=f"{where} ({metrics['n_images']} images)",
            metric_type=kind,
            metric_name=words,
            metric_value=round(metrics["macro"][key], 4),
        )
        for key, (kind, words) in _INDEXED.items()
        if metrics["macro"].get(key) is not None
    ]


def _template() -> Path:
    """Return the template of an installed package, or that of the repository."""
    packaged = _PACKAGE / "model_card.md"
    return packaged if packaged.is_file() else _PACKAGE.parent / "model_card.md"


def _figure(value: Any) -> str:
    return f"{value:.3f}".removeprefix("0") if isinstance(value, int | float) else "n/a"


def _interval(ends: list[float] | None) -> str:
    return f" ({_figure(ends[0])} to {_figure(ends[1])})" if ends else ""


def as_text(value: object) -> str:
    """Return one line of Markdown that shows a text as it is, in a table too: no HTML, no link, no image, no code."""
    return re.sub(r"([\\`\[|])", r"\\\1", shown_name(str(value)).replace("&", "&amp;").replace("<", "&lt;"))


def as_code(value: object) -> str:
    """Return a name between backticks, or as text where a character of it could end the code."""
    shown = shown_name(str(value))
    return as_text(shown) if re.search(r"[\\`|<&]", shown) else f"`{shown}`"
