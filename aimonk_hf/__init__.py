"""Multi-label image attributes with missing labels: train, judge honestly, serve and share any timm backbone.

Names are imported on first use (PEP 562), so that `import aimonk_hf` costs milliseconds and needs neither torch nor
timm.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "AimonkConfig": "modeling.config",
    "AimonkModel": "modeling.model",
    "AttributeDataset": "data.dataset",
    "TrainConfig": "training.settings",
    "evaluate": "evaluation.report",
    "get_recipe": "training.recipes",
    "read_labels": "data.labels",
    "train": "training.run",
    "tune_thresholds": "evaluation.thresholds",
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
    from aimonk_hf.data.dataset import AttributeDataset
    from aimonk_hf.data.labels import read_labels
    from aimonk_hf.evaluation.report import evaluate
    from aimonk_hf.evaluation.thresholds import tune_thresholds
    from aimonk_hf.modeling.config import AimonkConfig
    from aimonk_hf.modeling.model import AimonkModel
    from aimonk_hf.training.recipes import get_recipe
    from aimonk_hf.training.run import train
    from aimonk_hf.training.settings import TrainConfig


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'aimonk_hf' has no attribute {name!r}")
    return getattr(import_module(f"aimonk_hf.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
