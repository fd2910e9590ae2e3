"""Check the value of one setting: its kind, its range, its choices."""

import math
from dataclasses import Field
from numbers import Integral, Real
from typing import Any, get_args, get_origin

from aimonk_hf.errors import AimonkError

# The lowest value of each field that has one; a share is in [0, 1), a factor in (0, 1].
_LOWEST = {
    **dict.fromkeys(("epochs", "batch_size", "accumulation_steps"), 1),
    **dict.fromkeys(("num_workers", "folds", "seed", "feature_views", "early_stopping_patience"), 0),
    **dict.fromkeys(("plateau_patience", "weight_decay", "clip_grad", "pos_weight_power", "pos_weight_cap"), 0),
    **dict.fromkeys(("mixup", "cutmix", "focal_gamma", "checkpoint_minutes"), 0),
    "image_size": 8,
}
_SHARES = "val_split report_split drop_rate drop_path_rate ema_decay warmup label_smoothing asymmetric_clip"
_FACTORS = ("layer_decay", "plateau_factor")


def flag(name: str) -> str:
    """Return the command line's flag for a field."""
    return "--" + name.replace("_", "-")


def check_value(setting: "Field[Any]", value: Any) -> None:
    """Raise `AimonkError` where a value is of another kind than its field, or out of the field's range."""
    name = flag(setting.name)
    kind = next(kind for kind in get_args(setting.type) or (setting.type,) if kind is not type(None))
    is_list = get_origin(kind) is list
    element = get_args(kind)[0] if is_list else kind
    values = value if is_list and isinstance(value, list | tuple) else [value]
    allowed = {float: Real, int: Integral}.get(element, element)
    fits = (isinstance(one, allowed) and (element is bool or not isinstance(one, bool)) for one in values)
    if (is_list and values is not value) or not all(fits):
        wanted = f"a list of {element.__name__}" if is_list else element.__name__
        raise AimonkError(f"{name} must be {wanted}, found {value!r}")
    low, choices = _LOWEST.get(setting.name), setting.metadata["choices"]
    for refused, needed in (
        (any(isinstance(one, float) and not math.isfinite(one) for one in values), "be finite"),
        (choices and value not in choices, f"be one of {', '.join(choices)}"),
        (low is not None and value < low, f"be at least {low}" if low else "not be negative"),
        (setting.name in _SHARES.split() and not 0 <= value < 1, "lie in [0, 1)"),
        (setting.name in _FACTORS and not 0 < value <= 1, "lie in (0, 1]"),
    ):
        if refused:
            raise AimonkError(f"{name} must {needed}, found {value!r}")
