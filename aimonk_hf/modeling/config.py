"""What the weights need: the saved configuration, in the form that timm and transformers read too."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aimonk_hf import __version__
from aimonk_hf.errors import AimonkError
from aimonk_hf.storage import is_text

DEFAULT_THRESHOLD = 0.5
PROBLEM_TYPE = "multi_label_classification"
MODEL_TYPE = "timm_wrapper"
# Arguments of timm that are no business of a saved model: they name files to be read and unpickled, weights to fetch, or a machine's device.
_FOREIGN_ARGS = (
    *(
        "pretrained",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "pretrained_model_args",
        "checkpoint_path",
        "cache_dir",
    ),
    *("scriptable", "exportable", "no_jit", "features_only", "device", "dtype"),
)
# Keys by which a config.json asks its reader to run the repository's own code; nothing here does, and no folder saved here asks others to.
_CODE_KEYS = ("auto_map", "custom_pipelines", "trust_remote_code")
_INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "lanczos", "box", "hamming")
_CROP_MODES = ("center", "squash", "border")
_LARGEST_SIDE = 8192  # pixels that a picture may be scaled to; a hundred megapixels would fill the memory
_LARGEST_ARGUMENT = 100_000


@dataclass
class AimonkConfig:
    """Architecture, attributes, thresholds and preprocessing of a model; never a device, path or repo id.

    `model_args` go to the timm constructor (`drop_rate`, `pad_type`, `img_size`, ...); `pretrained_cfg` is timm's preprocessing and head
    description (`input_size`, `mean`, `std`, `interpolation`, `crop_pct`, `crop_mode`, `classifier`, ...), filled in by `AimonkModel` where
    it is left empty; `extra` keeps every key of a config.json that is not ours, but for those that ask a reader to run code.

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
        if foreign := [name for name in _FOREIGN_ARGS if name in self.model_args]:
            raise AimonkError(f"model_args must not hold {foreign[0]}: it describes no network; remove it")
        if self.model_args.get("in_chans", 3) != 3:
            raise AimonkError(
                f"model_args: in_chans must be 3, because images are read as RGB, found {short(self.model_args['in_chans'])}"
            )
        _check_sizes(self.model_args)
        _check_preprocessing(self.pretrained_cfg)

    @property
    def threshold_values(self) -> list[float]:
        """The thresholds in the attributes' order."""
        return list(check_thresholds(self.attributes, self.thresholds).values())

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the network's input; timm's default where config.json holds none."""
        _, height, width = self.pretrained_cfg.get("input_size") or (3, 224, 224)
        return height, width

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
            "thresholds": check_thresholds(self.attributes, self.thresholds),
            "aimonk_hf_version": __version__,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "AimonkConfig":
        """Read config.json's content, also after transformers saved it; thresholds that are not there are 0.5."""
        model_type = values.get("model_type", MODEL_TYPE)
        if model_type != MODEL_TYPE:
            raise AimonkError(
                f"config.json has model_type {short(model_type)}; a folder of this library has {MODEL_TYPE!r}"
            )
        if values.get("problem_type") != PROBLEM_TYPE:
            raise AimonkError(
                f"config.json has problem_type {short(values.get('problem_type'))}, not {PROBLEM_TYPE!r}: "
                "its scores are not one sigmoid per attribute"
            )
        named = _labels_of(values.get("id2label"))
        config = cls(
            architecture=values.get("architecture", ""),
            attributes=_given(values, "label_names", named),
            thresholds=_given(values, "thresholds", {}),
            model_args=_given(values, "model_args", {}),
            pretrained_cfg=_given(values, "pretrained_cfg", {}),
        )
        if _given(values, "num_classes", len(config.attributes)) != len(config.attributes):
            raise AimonkError(
                f"config.json names {len(config.attributes)} attributes but num_classes is {short(values['num_classes'])}"
            )
        if named and named != config.attributes:
            raise AimonkError("config.json has other names in label_names than in id2label; make both agree")
        config.extra = {
            key: value for key, value in values.items() if key not in config.to_dict() and key not in _CODE_KEYS
        }
        return config


def check_thresholds(attributes: list[str], thresholds: Any) -> dict[str, float]:
    """Return one threshold per attribute, 0.5 where none is given, of a dict by name or an array [K] in the attributes' order.

    Raises `AimonkError` for unknown names, another number of values, and values outside [0, 1].
    """
    if isinstance(thresholds, np.ndarray):  # as `tune_thresholds` returns them
        if thresholds.shape != (len(attributes),):
            raise AimonkError(
                f"an array of thresholds needs the shape [{len(attributes)}], found {list(thresholds.shape)}"
            )
        thresholds = dict(zip(attributes, thresholds, strict=True))
    if not isinstance(thresholds, dict):
        raise AimonkError(f"thresholds must map attribute names to numbers, found {type(thresholds).__name__}")
    known = set(attributes)
    if unknown := [name if str(name).isprintable() else short(name) for name in thresholds if name not in known]:
        raise AimonkError(
            f"thresholds for unknown attributes: {', '.join(str(name)[:60] for name in unknown[:8])}; "
            f"the model has {', '.join(name if name.isprintable() else short(name) for name in attributes[:50])}"
        )
    for name, value in thresholds.items():
        if not is_number(value) or not 0 <= value <= 1:
            raise AimonkError(f"the threshold of {name} must lie between 0 and 1, found {short(value)}")
    return {name: float(thresholds.get(name, DEFAULT_THRESHOLD)) for name in attributes}


def _check_attributes(attributes: Any) -> list[str]:
    if isinstance(attributes, np.ndarray):
        attributes = attributes.tolist()
    if not isinstance(attributes, list | tuple) or not attributes:
        raise AimonkError("a model needs at least one attribute name (label_names in config.json)")
    if bad := [name for name in attributes if not isinstance(name, str) or not name.strip() or not is_text(name)]:
        raise AimonkError(f"attribute names must be words, found {short(bad[0])}")
    if repeated := [name for name, count in Counter(attributes).items() if count > 1]:
        raise AimonkError(f"the attribute name {short(repeated[0])} stands twice")
    return list(attributes)


def _check_sizes(value: Any) -> None:
    """Refuse whole numbers in the arguments, at any depth, that no network has as a depth or a width: lists of that length would be made."""
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            _check_sizes(item)
    elif isinstance(value, int) and abs(value) > _LARGEST_ARGUMENT:
        raise AimonkError(f"model_args holds {short(value)}: no network has numbers above {_LARGEST_ARGUMENT}")


def _check_preprocessing(cfg: dict[str, Any]) -> None:
    """Refuse values from which no picture could be made, or only one that fills the memory; None is timm's own default."""

    def check(key: str, is_right: Callable[[Any], bool], wanted: str) -> None:
        if cfg.get(key) is not None and not is_right(cfg[key]):
            raise AimonkError(f"pretrained_cfg: {key} must be {wanted}, found {short(cfg[key])}")

    def is_size(value: Any) -> bool:
        return (
            _are_numbers(value, 3)
            and value[0] == 3
            and all(isinstance(side, int) and 1 <= side <= _LARGEST_SIDE for side in value)
        )

    check("input_size", is_size, f"[3, height, width] with sides up to {_LARGEST_SIDE}")
    check("mean", lambda value: _are_numbers(value, 3), "three numbers")
    check("std", lambda value: _are_numbers(value, 3) and min(value) > 0, "three numbers above 0")
    check("interpolation", lambda value: value in _INTERPOLATIONS, " or ".join(_INTERPOLATIONS))
    check("crop_mode", lambda value: value in _CROP_MODES, " or ".join(_CROP_MODES))
    longest = max((cfg.get("input_size") or [3, 224, 224])[1:])
    check(
        "crop_pct", lambda value: is_number(value) and longest / _LARGEST_SIDE <= value <= 10, "a share of the picture"
    )


def short(value: Any) -> str:
    """Return a value as Python writes it, cut to 60 characters, for a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number, numpy's scalars too; booleans are none."""
    if isinstance(value, np.generic | np.ndarray) and value.ndim == 0:
        value = value.item()
    # compared before isfinite, which fails on whole numbers that no float can hold
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e30 and math.isfinite(value)
    )


def _are_numbers(value: Any, count: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == count and all(map(is_number, value))


def _given(values: dict[str, Any], key: str, default: Any) -> Any:
    """Return a value of config.json; only where it is absent or null, the default."""
    value = values.get(key)
    return default if value is None else value


def _labels_of(id2label: Any) -> list[str]:
    """Return the names of transformers' id2label in the order of their numbers, which must be those from 0 on."""
    if id2label is None:
        return []
    if not isinstance(id2label, dict) or set(map(str, id2label)) != set(map(str, range(len(id2label)))):
        raise AimonkError("id2label in config.json must number the attributes from 0 on")
    return [name for _, name in sorted(id2label.items(), key=lambda item: int(item[0]))]


def resolve_thresholds(attributes: list[str], stored: dict[str, float], override: Any = None) -> dict[str, float]:
    """Return the thresholds that hold: the stored ones, one number for all, an array [K], or stored ones with some replaced by name.

    A score equal to the threshold counts as present. Raises `AimonkError` on unknown names and on numbers outside [0, 1].
    """
    if override is None or isinstance(override, dict):
        return check_thresholds(attributes, check_thresholds(attributes, stored) | (override or {}))
    return check_thresholds(attributes, override if np.ndim(override) else dict.fromkeys(attributes, override))
