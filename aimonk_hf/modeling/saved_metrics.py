"""Validate metrics.json, which may come from anywhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling.config import is_number, short
from aimonk_hf.storage import read_json


def read_metrics(path: Path, attributes: list[str]) -> dict[str, Any]:
    """Read metrics.json of a model with these attributes; raises `AimonkError`, without the folder's name, where it is malformed."""
    try:
        metrics = read_json(path)
    except AimonkError as error:
        raise AimonkError(str(error).replace(str(path), path.name)) from error
    check_metrics(metrics, attributes)
    return metrics


def check_metrics(metrics: Any, attributes: list[str]) -> None:
    """Raise `AimonkError` unless these are the metrics of a model with exactly these attributes; keys that nothing shows may hold anything."""
    _check(metrics, _FORM, "")
    if set(metrics["per_attribute"]) != set(attributes):
        raise AimonkError("metrics.json: per_attribute does not hold exactly the model's attributes")
    for name, row in metrics["per_attribute"].items():
        _check(row, _ROW, f"per_attribute.{short(name)}.")


class _Kind(NamedTuple):
    """A kind of value: the words for it in a message, and its test."""

    words: str
    accepts: Callable[[Any], bool]


def _check(value: Any, form: "dict[str, Any] | _Kind", place: str) -> None:
    """Compare a value with a kind, or with a form for each key of an object; `key?` may be absent or null."""
    words, accepts = form if isinstance(form, _Kind) else _OBJECT
    if not accepts(value):
        raise AimonkError(f"metrics.json: {place.rstrip('.') or 'its content'} must be {words}, found {short(value)}")
    if isinstance(form, _Kind):
        return
    for key, part in form.items():
        name = key.removesuffix("?")
        if name == key or value.get(name) is not None:
            _check(value.get(name), part, f"{place}{name}.")


def _is_figure(value: Any) -> bool:
    return is_number(value) and -1e-6 <= value <= 1 + 1e-6  # a mean may end a rounding error beyond


def _is_count(value: Any) -> bool:
    return is_number(value) and isinstance(value, int) and value >= 0


def _are(accepts: Callable[[Any], bool], values: Any, length: int | None = None) -> bool:
    return isinstance(values, list) and length in (None, len(values)) and all(map(accepts, values))


_OBJECT = _Kind("an object", lambda value: isinstance(value, dict))
_TEXT = _Kind("a text", lambda value: isinstance(value, str))
_TEXTS = _Kind("a list of texts", lambda value: _are(_TEXT.accepts, value))
_COUNT = _Kind("a whole number from 0 on", _is_count)
_COUNTS = _Kind(
    "three whole numbers for each attribute",
    lambda value: isinstance(value, dict) and all(_are(_is_count, counts, 3) for counts in value.values()),
)
_FIGURE = _Kind("a number from 0 to 1", _is_figure)
_INTERVAL = _Kind("two numbers from 0 to 1", lambda value: _are(_is_figure, value, 2))

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
    "per_attribute": _OBJECT,
    "measured_on?": {"images": _TEXT, "note": _TEXT},
    "calibration?": {"n_calibrated": _COUNT, "ece_before?": _FIGURE, "ece_after?": _FIGURE, "fitted_on": _TEXT},
    "training?": {
        **dict.fromkeys(("recipe", "backbone"), _TEXT),
        **dict.fromkeys(("epochs", "n_train", "n_validation", "n_report"), _COUNT),
        "data?": {"labels": _COUNTS, "findings": _TEXTS},
    },
}
