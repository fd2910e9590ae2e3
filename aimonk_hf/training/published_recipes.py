"""Five published solutions of one assignment (972 fashion photographs, four attributes with missing labels) as settings.

All five fine-tune ImageNet weights with masked binary cross-entropy and full pos_weight, and decide at 0.5. What a system does not say is
chosen here, and said in `Recipe.unsaid`. `docs/RECIPES.md` shows how each fares on real and on signal-free labels.
"""

from typing import Any

# What the five have in common: pictures squashed to 224 pixels, no clipping of gradients, every positive weighed by negatives/positives.
_COMMON: dict[str, Any] = {"crop_mode": "squash", "crop_pct": 1.0, "image_size": 224, "clip_grad": 0.0}

_TWO_STAGE: dict[str, Any] = _COMMON | {
    "architecture": "efficientnet_b0",
    "drop_rate": 0.3,
    "optimizer": "adamw",
    "weight_decay": 1e-4,
    "batch_size": 32,
    "stage_epochs": [5, 15],
    "stage_lr": [1e-3, 1e-4],
    "stage_freeze": ["backbone", "first-5/16"],
    "schedule": "plateau",
    "early_stopping_patience": 5,
    "metric_for_best_model": "val_loss",
    "split": "random",
    "augmentation": "two-stage",
}
_TWO_STAGE_UNSAID = (
    "the epoch of the lowest validation loss is kept and the second stage starts from it; plateau and patience count within a stage; "
    "the stem is frozen with the first blocks; frozen batch norm keeps its statistics; jitter of 0.2 in brightness, contrast and saturation"
)

_PARTIAL: dict[str, Any] = _COMMON | {
    "architecture": "resnet34.tv_in1k",
    "drop_rate": 0.4,
    "optimizer": "adam",
    "weight_decay": 1e-4,
    "epochs": 8,
    "lr": 1e-4,
    "freeze": "first-7/16",
    "metric_for_best_model": "macro_f1",
    "val_split": 0.15,
    "split": "rarest",
    "augmentation": "partial",
}
_PARTIAL_UNSAID = "batch 32; strength of the augmentation: see `partial` in aimonk_hf/training/augmentation.py; F1 of the best epoch is taken at 0.5"

_RESNET18: dict[str, Any] = _COMMON | {"architecture": "resnet18.tv_in1k", "optimizer": "adam", "epochs": 10}

# name: (system, what it left unsaid, settings)
PUBLISHED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "efficientnet-b0-two-stage": (
        "EfficientNet-B0, first the head alone, then all but the first blocks; plateau and early stopping on the validation loss",
        _TWO_STAGE_UNSAID,
        _TWO_STAGE,
    ),
    "efficientnet-b0-two-stage-faster": (
        "the faster setting of the same system: 3 + 8 epochs, batch 64",
        _TWO_STAGE_UNSAID,
        _TWO_STAGE | {"stage_epochs": [3, 8], "batch_size": 64},
    ),
    "efficientnet-b0-two-stage-slower": (
        "the slower setting of the same system: 8 + 20 epochs, batch 16",
        _TWO_STAGE_UNSAID,
        _TWO_STAGE | {"stage_epochs": [8, 20], "batch_size": 16},
    ),
    "resnet34-partial": (
        "ResNet-34 with conv1 to layer2 frozen, dropout 0.4 and strong augmentation; the epoch of the best macro F1",
        _PARTIAL_UNSAID,
        _PARTIAL,
    ),
    "resnet34-baseline": (
        "the baseline of the same system's experiments: ResNet-34, nothing frozen",
        _PARTIAL_UNSAID + "; everything but the freezing as in resnet34-partial",
        _PARTIAL | {"freeze": "none"},
    ),
    "resnet34-layer3-frozen": (
        "the same system with layer3 frozen too",
        _PARTIAL_UNSAID,
        _PARTIAL | {"freeze": "first-13/16"},
    ),
    "resnet18-full": (
        "the same system with ResNet-18, nothing frozen, 36 epochs",
        _PARTIAL_UNSAID,
        _PARTIAL | {"architecture": "resnet18.tv_in1k", "freeze": "none", "epochs": 36},
    ),
    "resnet34-low-lr": (
        "the same system with a low learning rate",
        _PARTIAL_UNSAID + "; low is taken as 1e-5",
        _PARTIAL | {"lr": 1e-5},
    ),
    "resnet18-adam": (
        "ResNet-18, Adam at 1e-3, no augmentation",
        "ten epochs, batch 32, a fifth of the images for validation, the last epoch is kept",
        _RESNET18 | {"lr": 1e-3},
    ),
    "resnet18-finetune": (
        "ResNet-18 as a whole, Adam at 1e-4, batch 16, ten epochs, mirrored pictures",
        "a fifth of the images for validation, the last epoch is kept",
        _RESNET18 | {"lr": 1e-4, "batch_size": 16, "augmentation": "flip"},
    ),
    "resnet18-20-epochs": (
        "ResNet-18, Adam at 1e-4, batch 16, twenty epochs, pos_weight = (all rows - positives) / positives",
        "no augmentation, a fifth of the images for validation, the last epoch is kept",
        _RESNET18 | {"lr": 1e-4, "batch_size": 16, "epochs": 20, "pos_weight_negatives": "all-rows"},
    ),
}
