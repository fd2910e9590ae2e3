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
    "AimonkPredictor": "modeling.predictor",
    "AttributeDataset": "data.dataset",
    "BatchPredictor": "modeling.predictor",
    "TrainConfig": "training.settings",
    "compare": "evaluation.comparison",
    "evaluate": "evaluation.report",
    "get_recipe": "training.recipes",
    "read_labels": "data.labels",
    "train": "training.run",
    "tune_thresholds": "evaluation.thresholds",
}

__all__ = [*_HOMES, "__version__"]

if TYPE_CHECKING:
    from aimonk_hf.data.dataset import AttributeDataset as AttributeDataset
    from aimonk_hf.data.labels import read_labels as read_labels
    from aimonk_hf.evaluation.comparison import compare as compare
    from aimonk_hf.evaluation.report import evaluate as evaluate
    from aimonk_hf.evaluation.thresholds import tune_thresholds as tune_thresholds
    from aimonk_hf.modeling.config import AimonkConfig as AimonkConfig
    from aimonk_hf.modeling.model import AimonkModel as AimonkModel
    from aimonk_hf.modeling.predictor import AimonkPredictor as AimonkPredictor
    from aimonk_hf.modeling.predictor import BatchPredictor as BatchPredictor
    from aimonk_hf.training.recipes import get_recipe as get_recipe
    from aimonk_hf.training.run import train as train
    from aimonk_hf.training.settings import TrainConfig as TrainConfig


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'aimonk_hf' has no attribute {name!r}")
    return getattr(import_module(f"aimonk_hf.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
