"""Validate metrics.json, which may come from anywhere."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling.config import is_number, short
from aimonk_hf.storage import read_json

_logger = logging.getLogger(__name__)

# the words for a kind of value, and its test
_Kind = tuple[str, Callable[[Any], bool]]


def _list_of(accepts: Callable[[Any], bool], length: int | None = None) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and length in (None, len(value)) and all(map(accepts, value))


def _is_count(value: Any) -> bool:
    return is_number(value) and isinstance(value, int) and value >= 0


def _is_figure(value: Any) -> bool:
    return is_number(value) and -1e-6 <= value <= 1 + 1e-6  # a mean may end a rounding error beyond 0 or 1


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_COUNT, _COUNTS = ("a whole number from 0 on", _is_count), ("three whole numbers", _list_of(_is_count, 3))
_FIGURE, _INTERVAL = ("a number from 0 to 1", _is_figure), ("two numbers from 0 to 1", _list_of(_is_figure, 2))
_TEXT, _TEXTS = ("a text", _is_text), ("a list of texts", _list_of(_is_text))

# "key?" may be absent or null; "*" is every other key. Keys that nothing shows may hold anything.
_RATIOS = dict.fromkeys(("f1?", "precision?", "recall?", "average_precision?", "auroc?", "calibration_error?"), _FIGURE)
_TRIVIAL = dict.fromkeys(("macro_f1?", "hamming_accuracy?", "exact_match?"), _FIGURE)
_ROW: dict[str, Any] = {
    **_RATIOS,
    **dict.fromkeys(("n_positive", "n_negative", "n_missing"), _COUNT),
    **dict.fromkeys(("threshold?", "p_value?"), _FIGURE),
    **dict.fromkeys(("f1_ci95?", "average_precision_ci95?", "auroc_ci95?", "threshold_spread95?"), _INTERVAL),
    "threshold_fallback?": _TEXT,
    "trivial?": dict.fromkeys(("all_positive_f1?", "prevalence_average_precision?"), _FIGURE),
}
_FORM: dict[str, Any] = {
    "n_images": _COUNT,
    "verdict?": _TEXT,
    "macro": _RATIOS | _TRIVIAL,
    "macro_ci95?": dict.fromkeys(("f1?", "average_precision?", "auroc?"), _INTERVAL),
    "trivial": {"all_positive": _TRIVIAL, "majority": _TRIVIAL, "prevalence": {"macro_average_precision?": _FIGURE}},
    "per_attribute": {"*": _ROW},
    "measured_on?": {"images": _TEXT, "note": _TEXT},
    "calibration?": {"n_calibrated": _COUNT, "ece_before?": _FIGURE, "ece_after?": _FIGURE, "fitted_on": _TEXT},
    "training?": {
        **dict.fromkeys(("recipe", "backbone"), _TEXT),
        **dict.fromkeys(("epochs", "n_train", "n_validation", "n_report"), _COUNT),
        "data?": {"labels": {"*": _COUNTS}, "findings": _TEXTS},
    },
}


def read_metrics(path: Path, attributes: list[str]) -> tuple[dict[str, Any] | None, str]:
    """Return the metrics of a model with these attributes, or None and, logged too, the reason; both may be missing."""
    if not path.is_file():
        return None, ""
    try:
        metrics = read_json(path)
        check_metrics(metrics, attributes)
    except AimonkError as error:
        problem = str(error).replace(str(path), path.name)
        _logger.warning("%s: %s; the model is loaded without its metrics", path.parent, problem)
        return None, problem
    return metrics, ""


def check_metrics(metrics: Any, attributes: list[str]) -> None:
    """Raise `AimonkError` unless these are the metrics of a model with exactly these attributes."""
    _check(metrics, _FORM, "")
    if set(metrics["per_attribute"]) != set(attributes):
        raise AimonkError("metrics.json: per_attribute does not hold exactly the model's attributes")


def _check(value: Any, form: dict[str, Any] | _Kind, place: str) -> None:
    words, accepts = ("an object", lambda value: isinstance(value, dict)) if isinstance(form, dict) else form
    if not accepts(value):
        raise AimonkError(f"metrics.json: {place or 'its content'} must be {words}, found {short(value)}")
    for key, part in form.items() if isinstance(form, dict) else ():
        for name in value if key == "*" else [key.removesuffix("?")]:
            if not key.endswith("?") or value.get(name) is not None:
                shown = short(name) if key == "*" else name
                _check(value.get(name), part, f"{place}.{shown}" if place else shown)
