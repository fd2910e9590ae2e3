"""The model card: README.md of a saved folder, rendered from model_card.md."""

from pathlib import Path
from typing import Any

from jinja2 import Environment

from aimonk_hf.config import AimonkConfig

_PACKAGE = Path(__file__).parent
TAGS = ["aimonk_hf", "multi-label-classification", "image-classification", "timm", "transformers", "safetensors"]


def render_card(config: AimonkConfig, metrics: dict[str, Any] | None) -> str:
    """Return the card's Markdown for a configuration and the content of metrics.json, if there is one."""
    from huggingface_hub import ModelCardData

    # library_name timm, because another name keeps transformers' pipeline from recognising the task of a Hub repository
    data = ModelCardData(library_name="timm", pipeline_tag="image-classification", tags=TAGS)
    environment = Environment(autoescape=False, keep_trailing_newline=True)
    environment.filters |= {"figure": _figure, "cell": _cell, "code": _code}
    return environment.from_string(_template().read_text(encoding="utf-8")).render(
        card_data=data.to_yaml(),
        title=f"Image attributes by {config.architecture}",
        attributes=config.attributes,
        architecture=config.architecture,
        size=config.pretrained_cfg.get("input_size", [3, 224, 224])[1:],
        metrics=metrics,
    )


def _template() -> Path:
    """Return the template of an installed package, or that of the repository."""
    packaged = _PACKAGE / "model_card.md"
    return packaged if packaged.is_file() else _PACKAGE.parent / "model_card.md"


def _figure(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}".removeprefix("0")


def _cell(text: str) -> str:
    """Escape what would break a Markdown table or be read as HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")


def _code(text: str) -> str:
    return f"`{_cell(text).replace('`', chr(39))}`"
