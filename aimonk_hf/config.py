"""What the weights need: the saved configuration, in the form that timm and transformers read too."""

import math
from dataclasses import dataclass, field
from typing import Any

from aimonk_hf import __version__
from aimonk_hf.errors import AimonkError

DEFAULT_THRESHOLD = 0.5
PROBLEM_TYPE = "multi_label_classification"
MODEL_TYPE = "timm_wrapper"


@dataclass
class AimonkConfig:
    """Architecture, attributes, thresholds and preprocessing of a model; never a device, path or repo id.

    `model_args` go to the timm constructor (`drop_rate`, `pad_type`, `img_size`, ...); `pretrained_cfg` is timm's preprocessing and head
    description (`input_size`, `mean`, `std`, `interpolation`, `crop_pct`, `crop_mode`, `classifier`, ...), filled in by `AimonkModel` where
    it is left empty; `extra` keeps every key of a config.json that is not ours.

    Raises `AimonkError` on names or thresholds that no model could have.
    """

    architecture: str
    attributes: list[str]
    thresholds: dict[str, float] = field(default_factory=dict)
    model_args: dict[str, Any] = field(default_factory=dict)
    pretrained_cfg: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.attributes = _check_attributes(self.attributes)
        self.thresholds = check_thresholds(self.attributes, self.thresholds)
        if not isinstance(self.architecture, str) or not self.architecture:
            raise AimonkError("the configuration names no architecture")
        for name in ("model_args", "pretrained_cfg", "extra"):
            if not isinstance(getattr(self, name), dict):
                raise AimonkError(f"{name} must be a mapping, found {type(getattr(self, name)).__name__}")
        if "num_classes" in self.model_args:
            raise AimonkError("model_args must not hold num_classes: it is the number of attributes")

    def to_dict(self) -> dict[str, Any]:
        """Return config.json's content: the keys of timm, of transformers' TimmWrapper, and ours at the root."""
        return self.extra | {
            "architecture": self.architecture,
            "num_classes": len(self.attributes),
            "label_names": list(self.attributes),
            "model_args": dict(self.model_args),
            "pretrained_cfg": self.pretrained_cfg | {"num_classes": len(self.attributes)},
            "model_type": MODEL_TYPE,
            "architectures": ["TimmWrapperForImageClassification"],
            "problem_type": PROBLEM_TYPE,
            "id2label": {str(index): name for index, name in enumerate(self.attributes)},
            "label2id": {name: index for index, name in enumerate(self.attributes)},
            "thresholds": dict(self.thresholds),
            "aimonk_hf_version": __version__,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "AimonkConfig":
        """Read config.json's content, also after transformers saved it; thresholds that are not there are 0.5."""
        model_type = values.get("model_type", MODEL_TYPE)
        if model_type != MODEL_TYPE:
            raise AimonkError(f"config.json has model_type {model_type!r}; a folder of this library has {MODEL_TYPE!r}")
        if values.get("problem_type") != PROBLEM_TYPE:
            raise AimonkError(
                f"config.json has problem_type {values.get('problem_type')!r}, not {PROBLEM_TYPE!r}: its scores are not one sigmoid per attribute"
            )
        attributes = values.get("label_names") or _labels_of(values.get("id2label"))
        config = cls(
            architecture=values.get("architecture", ""),
            attributes=attributes,
            thresholds=values.get("thresholds") or {},
            model_args=values.get("model_args") or {},
            pretrained_cfg=values.get("pretrained_cfg") or {},
        )
        if values.get("num_classes", len(config.attributes)) != len(config.attributes):
            raise AimonkError(f"config.json names {len(config.attributes)} attributes but num_classes is {values['num_classes']}")
        config.extra = {key: value for key, value in values.items() if key not in config.to_dict()}
        return config


def check_thresholds(attributes: list[str], thresholds: Any) -> dict[str, float]:
    """Return one threshold per attribute in the attributes' order, 0.5 where none is given; unknown names and values outside [0, 1] raise."""
    if not isinstance(thresholds, dict):
        raise AimonkError(f"thresholds must map attribute names to numbers, found {type(thresholds).__name__}")
    if unknown := [str(name) for name in thresholds if name not in attributes]:
        raise AimonkError(f"thresholds for unknown attributes: {', '.join(unknown)}; the model has {', '.join(attributes)}")
    for name, value in thresholds.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= 1:
            raise AimonkError(f"the threshold of {name} must lie between 0 and 1, found {value!r}")
    return {name: float(thresholds.get(name, DEFAULT_THRESHOLD)) for name in attributes}


def _check_attributes(attributes: Any) -> list[str]:
    if not isinstance(attributes, list | tuple) or not attributes:
        raise AimonkError("a model needs at least one attribute name (label_names in config.json)")
    if bad := [name for name in attributes if not isinstance(name, str) or not name.strip()]:
        raise AimonkError(f"attribute names must be words, found {bad[0]!r}")
    if len(set(attributes)) != len(attributes):
        repeated = next(name for name in attributes if attributes.count(name) > 1)
        raise AimonkError(f"the attribute name {repeated!r} stands twice")
    return list(attributes)


def _labels_of(id2label: Any) -> list[str]:
    """Return the names of transformers' id2label in the order of their numbers."""
    if not isinstance(id2label, dict) or not all(str(key).isdigit() for key in id2label):
        return []
    return [id2label[key] for key in sorted(id2label, key=int)]
