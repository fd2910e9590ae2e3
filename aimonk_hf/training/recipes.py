"""Named training settings."""

from dataclasses import dataclass
from typing import Any

from aimonk_hf.errors import AimonkError, near_names
from aimonk_hf.training.published_recipes import PUBLISHED


@dataclass(frozen=True)
class Recipe:
    """Settings by name; each is a field of `TrainConfig`, and a flag overrides it.

    `system` says what the recipe reproduces, `unsaid` what that system did not say and was chosen for it.
    """

    name: str
    system: str
    settings: dict[str, Any]
    unsaid: str = ""


# What holds where a recipe is silent.
NEUTRAL: dict[str, Any] = {
    "pretrained": True,
    "drop_rate": None,
    "drop_path_rate": None,
    "crop_mode": None,
    "crop_pct": None,
    "image_size": None,
    "train_scale": None,
    "batch_size": 32,
    "stage_epochs": None,
    "stage_lr": None,
    "freeze": "none",
    "stage_freeze": None,
    "feature_views": 4,
    "prefix_views": 0,
    "optimizer": "adamw",
    "weight_decay": 0.0,
    "layer_decay": 1.0,
    "schedule": "constant",
    "warmup": 0.0,
    "clip_grad": 1.0,
    "ema_decay": 0.0,
    "early_stopping_patience": 0,
    "metric_for_best_model": "none",
    "loss": "bce",
    "label_smoothing": 0.0,
    "pos_weight_power": 1.0,
    "pos_weight_negatives": "observed",
    "augmentation": "none",
    "mixup": 0.0,
    "cutmix": 0.0,
    "sampling": "shuffle",
    "val_split": 0.2,
    "report_split": 0.0,
    "split": "iterative",
    "tune_thresholds": False,
    "calibrate": False,
}

_RECIPES = [
    Recipe(
        name="default",
        system="this library's own settings: one-cycle AdamW, square-root pos_weight, strong augmentation, dropout, averaged weights, tuned "
        "thresholds",
        settings={
            "architecture": "mobilenetv2_100",
            "crop_mode": "squash",
            "crop_pct": 0.875,
            "drop_rate": 0.3,
            "epochs": 10,
            "lr": 8e-4,
            "weight_decay": 0.02,
            "schedule": "one-cycle",
            "warmup": 0.3,
            "ema_decay": 0.995,
            "pos_weight_power": 0.5,
            "augmentation": "strong",
            "tune_thresholds": True,
            "report_split": 0.5,
            "calibrate": True,
        },
    ),
    Recipe(
        name="fast",
        system="a first look: the head alone, then six epochs of the later blocks, on small pictures that grow; what is frozen is computed once",
        settings={
            "architecture": "mobilenetv2_100",
            "crop_mode": "squash",
            "crop_pct": 0.875,
            "train_scale": [0.57, 0.86],
            "stage_epochs": [6, 6],
            "stage_lr": [5e-3, 1e-3],
            "stage_freeze": ["backbone", "first-9/16"],
            "feature_views": 1,
            "prefix_views": 3,
            "drop_rate": 0.3,
            "weight_decay": 0.02,
            "schedule": "one-cycle",
            "warmup": 0.3,
            "pos_weight_power": 0.5,
            "augmentation": "strong",
            "tune_thresholds": True,
            "report_split": 0.5,
            "calibrate": True,
        },
    ),
    Recipe(
        name="plain-loop",
        system="what the published solutions have in common: Adam at 1e-4, mirrored pictures, full pos_weight, ten epochs, thresholds 0.5",
        settings={
            "architecture": "mobilenetv2_100",
            "crop_mode": "squash",
            "crop_pct": 1.0,
            "epochs": 10,
            "optimizer": "adam",
            "lr": 1e-4,
            "clip_grad": 0.0,
            "augmentation": "flip",
        },
    ),
    Recipe(
        name="demo",
        system="a tiny network from random weights, for the drawn garments of `aimonk-hf sample-data`",
        settings={
            "architecture": "test_resnet",
            "pretrained": False,
            "image_size": 96,
            "crop_mode": "squash",
            "crop_pct": 0.875,
            "epochs": 16,
            "lr": 2e-3,
            "weight_decay": 0.02,
            "schedule": "one-cycle",
            "warmup": 0.3,
            "pos_weight_power": 0.5,
            "augmentation": "light",
            "tune_thresholds": True,
            "report_split": 0.5,
            "calibrate": True,
        },
    ),
    *(Recipe(name, system, settings, unsaid) for name, (system, unsaid, settings) in PUBLISHED.items()),
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
