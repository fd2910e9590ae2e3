"""Multi-label image attributes with missing labels: train, judge honestly, serve and share any timm backbone.

Names are imported on first use (PEP 562), so that `import aimonk_hf` costs milliseconds and needs neither torch nor timm.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "AimonkConfig": "config",
    "AimonkModel": "modeling",
    "AttributeDataset": "data",
    "TrainConfig": "train_config",
    "evaluate": "evaluation",
    "get_recipe": "recipes",
    "read_labels": "labels",
    "train": "training",
    "tune_thresholds": "thresholds",
}

__all__ = [
    "AimonkConfig",
    "AimonkModel",
    "AttributeDataset",
    "TrainConfig",
    "__version__",
    "evaluate",
    "get_recipe",
    "read_labels",
    "train",
    "tune_thresholds",
]

if TYPE_CHECKING:
    from aimonk_hf.config import AimonkConfig
    from aimonk_hf.data import AttributeDataset
    from aimonk_hf.evaluation import evaluate
    from aimonk_hf.labels import read_labels
    from aimonk_hf.modeling import AimonkModel
    from aimonk_hf.recipes import get_recipe
    from aimonk_hf.thresholds import tune_thresholds
    from aimonk_hf.train_config import TrainConfig
    from aimonk_hf.training import train


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'aimonk_hf' has no attribute {name!r}")
    return getattr(import_module(f"aimonk_hf.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
