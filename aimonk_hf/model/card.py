"""The model card: README.md of a saved folder, rendered from model_card.md."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from aimonk_hf.errors import AimonkError, reason_of
from aimonk_hf.model.config import AimonkConfig

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
    """Return the card's Markdown for a configuration and the content of metrics.json, if there is one."""
    from huggingface_hub import ModelCard
    from jinja2 import UndefinedError

    content: dict[str, Any] = {
        "title": f"Image attributes by {config.architecture}",
        "attributes": config.attributes,
        "thresholds": config.thresholds,
        "architecture": config.architecture,
        "size": config.pretrained_cfg.get("input_size", [3, 224, 224])[1:],
        "metrics": metrics,
    }
    content |= {"figure": _figure, "interval": _interval, "cell": _cell, "code": _code}
    try:
        card = ModelCard.from_template(_metadata(config, metrics), template_str=_template().read_text(encoding="utf-8"), **content)
    except (UndefinedError, TypeError, ValueError, LookupError, AttributeError) as error:  # metrics.json may come from anywhere
        raise AimonkError(
            f"the model's metrics have not the form of metrics.json ({reason_of(error)}): remove that file, or set model.metrics to None"
        ) from error
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
    where = metrics.get("measured_on", {}).get("images", "labelled images")
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


def _figure(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}".removeprefix("0")


def _interval(ends: list[float] | None) -> str:
    return f" ({_figure(ends[0])} to {_figure(ends[1])})" if ends else ""


def _cell(text: object) -> str:
    """Escape what would break a Markdown table, be read as HTML, or make a link."""
    plain = " ".join(str(text).split())
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("[", "\\[")


def _code(text: object) -> str:
    """Return a name between backticks, where Markdown reads neither HTML nor entities."""
    plain = " ".join(str(text).split()).replace("`", "'").replace("|", "\\|")
    return f"`{plain}`"
