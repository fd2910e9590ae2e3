"""Named training settings."""

from dataclasses import dataclass
from typing import Any

from aimonk_hf.errors import AimonkError, near_names


@dataclass(frozen=True)
class Recipe:
    """Settings by name; `system` says where they come from. Each setting is a field of `TrainConfig`, and a flag overrides it."""

    name: str
    system: str
    settings: dict[str, Any]


_RECIPES = [
    Recipe(
        name="default",
        system="this library's own settings: one-cycle AdamW, square-root pos_weight, light augmentation, averaged weights",
        settings={
            "architecture": "mobilenetv2_100",
            "drop_rate": 0.0,
            "crop_mode": "squash",
            "crop_pct": 1.0,
            "epochs": 12,
            "batch_size": 32,
            "optimizer": "adamw",
            "lr": 1e-3,
            "weight_decay": 0.02,
            "schedule": "one-cycle",
            "warmup": 0.3,
            "ema_decay": 0.0,
            "pos_weight_power": 0.5,
            "augmentation": "light",
            "val_split": 0.2,
            "split": "iterative",
            "tune_thresholds": True,
        },
    ),
]
_BY_NAME = {recipe.name: recipe for recipe in _RECIPES}


def list_recipes() -> list[Recipe]:
    """Return every recipe, in the order of the documentation."""
    return list(_RECIPES)


def get_recipe(name: str) -> Recipe:
    """Return the recipe of that name; an unknown one raises `AimonkError` with near names."""
    if name not in _BY_NAME:
        raise AimonkError(f"unknown recipe {name!r}{near_names(name, list(_BY_NAME))}: aimonk-hf recipes lists them")
    return _BY_NAME[name]
