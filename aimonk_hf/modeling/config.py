"""Architecture, attributes, thresholds and preprocessing of a model, saved in the form of timm and transformers."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from aimonk_hf import __version__
from aimonk_hf.data.images import shown_name
from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling.hub import CONFIG_FILE, HubOptions, model_folder
from aimonk_hf.storage import StrPath, is_text, make_folder, read_json, write_json

DEFAULT_THRESHOLD = 0.5
PRECISIONS = ("auto", "float32", "bf16", "fp16")
PROBLEM_TYPE = "multi_label_classification"
MODEL_TYPE = "timm_wrapper"
# Arguments of timm that are ours, or name files to unpickle, weights to fetch, or a machine's device.
_FOREIGN_ARGS = (
    *("num_classes", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_model_args"),
    *("checkpoint_path", "cache_dir", "scriptable", "exportable", "no_jit", "features_only", "device", "dtype"),
)
# Keys by which a config.json asks its reader to run the repository's own code; no folder saved here asks others to.
_CODE_KEYS = ("auto_map", "custom_pipelines", "trust_remote_code")
_INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "lanczos", "box", "hamming")
_CROP_MODES = ("center", "squash", "border")
_LARGEST_SIDE = 8192  # pixels that an image may be scaled to; a hundred megapixels would fill the memory
_LARGEST_ARGUMENT = 100_000


@dataclass
class AimonkConfig:
    """Hold a model's architecture, attributes, thresholds and preprocessing; never a device, path or repo id.

    `model_args` go to the timm constructor (`drop_rate`, `img_size`, ...); `pretrained_cfg` is timm's description of
    preprocessing and head (`input_size`, `mean`, `crop_pct`, `classifier`, ...), completed by `AimonkModel`; `extra`
    keeps the other keys of a config.json, but for those that ask a reader to run code. Raises `AimonkError` for names,
    thresholds and values that no model could have.
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
            raise AimonkError("The configuration names no architecture")
        for name in ("model_args", "pretrained_cfg", "extra"):
            if not isinstance(getattr(self, name), dict):
                raise AimonkError(f"{name} must be a mapping, found {type(getattr(self, name)).__name__}")
        if foreign := [name for name in _FOREIGN_ARGS if name in self.model_args]:
            raise AimonkError(f"model_args must not hold {foreign[0]}: it describes no network; remove it")
        if (channels := self.model_args.get("in_chans", 3)) != 3:
            raise AimonkError(f"model_args: in_chans must be 3 for RGB images, found {short(channels)}")
        _check_sizes(self.model_args)
        _check_preprocessing(self.pretrained_cfg)

    @property
    def threshold_values(self) -> list[float]:
        """Return the thresholds in the attributes' order."""
        return list(check_thresholds(self.attributes, self.thresholds).values())

    @property
    def image_size(self) -> tuple[int, int]:
        """Return height and width of the network's input; timm's default where config.json holds none."""
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
        """Read config.json's content, also after transformers saved it; missing thresholds are 0.5."""
        given = {key: value for key, value in values.items() if value is not None}
        if (model_type := values.get("model_type", MODEL_TYPE)) != MODEL_TYPE:
            raise AimonkError(f"config.json has model_type {short(model_type)}; this library saves {MODEL_TYPE!r}")
        if (problem := values.get("problem_type")) != PROBLEM_TYPE:
            raise AimonkError(
                f"config.json has problem_type {short(problem)}: not one sigmoid per attribute"
                + "; if it has one, convert it: aimonk-hf convert FOLDER --output NEW" * (problem is None)
            )
        # timm's save_for_hf repeats names and number there, where transformers wants none
        cfg, names = _split_off(given.get("pretrained_cfg", {}), "label_names")
        args, number = _split_off(given.get("model_args", {}), "num_classes")
        named = _labels_of(given.get("id2label", {}))
        config = cls(
            architecture=values.get("architecture", ""),
            attributes=given.get("label_names", names or named),
            thresholds=given.get("thresholds", {}),
            model_args=args,
            pretrained_cfg=cfg,
        )
        if (width := given.get("num_classes", number or len(config.attributes))) != len(config.attributes):
            raise AimonkError(f"config.json names {len(config.attributes)} attributes, num_classes is {short(width)}")
        if named and named != config.attributes:
            raise AimonkError("config.json has other names in label_names than in id2label; make both agree")
        ours = config.to_dict()
        config.extra = {key: value for key, value in values.items() if key not in ours and key not in _CODE_KEYS}
        return config

    @classmethod
    def from_pretrained(
        cls, name: StrPath, subfolder: str | None = None, **options: Unpack[HubOptions]
    ) -> "AimonkConfig":
        """Load the config.json of a model folder or a Hub repository; `options` are huggingface_hub's."""
        path = model_folder(name, [CONFIG_FILE], subfolder, **options) / CONFIG_FILE
        values = read_json(path)
        try:
            return cls.from_dict(values)
        except AimonkError as error:
            raise AimonkError(f"{path}: {error}") from error

    def save_pretrained(self, folder: StrPath) -> None:
        """Write config.json into a folder; weights that it was loaded with stay tied to it."""
        write_json(make_folder(Path(folder)) / CONFIG_FILE, self.to_dict())


def resolve_thresholds(attributes: list[str], stored: dict[str, float], override: Any = None) -> dict[str, float]:
    """Return the thresholds in force: stored ones, one number for all, an array [K], or some replaced by name.

    A score equal to the threshold counts as present. Raises `AimonkError` as `check_thresholds`.
    """
    if override is None or isinstance(override, dict):
        return check_thresholds(attributes, check_thresholds(attributes, stored) | (override or {}))
    return check_thresholds(attributes, override if np.ndim(override) else dict.fromkeys(attributes, override))


def check_thresholds(attributes: list[str], thresholds: Any) -> dict[str, float]:
    """Return one threshold per attribute of a dict by name, 0.5 where it has none, or of an array [K].

    Raises `AimonkError` for unknown names, another number of values, and values outside [0, 1].
    """
    if isinstance(thresholds, np.ndarray):  # as `tune_thresholds` returns them
        if thresholds.shape != (len(attributes),):
            found = list(thresholds.shape)
            raise AimonkError(f"an array of thresholds needs the shape [{len(attributes)}], found {found}")
        thresholds = dict(zip(attributes, thresholds, strict=True))
    if not isinstance(thresholds, dict):
        raise AimonkError(f"thresholds must map attribute names to numbers, found {type(thresholds).__name__}")
    if unknown := sorted(map(str, thresholds.keys() - set(attributes))):
        named, known = (", ".join(shown_name(name)[:60] for name in names) for names in (unknown, attributes[:50]))
        raise AimonkError(f"thresholds for unknown attributes: {named[:500]}; the model has {known}")
    for name, value in thresholds.items():
        if not is_number(value) or not 0 <= value <= 1:
            raise AimonkError(f"The threshold of {name} must lie between 0 and 1, found {short(value)}")
    return {name: float(thresholds.get(name, DEFAULT_THRESHOLD)) for name in attributes}


def short(value: Any) -> str:
    """Return a value as Python writes it, cut to 60 characters, for a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number, numpy's scalars too; booleans are none."""
    if isinstance(value, np.generic | np.ndarray) and value.ndim == 0:
        value = value.item()
    return type(value) in (int, float) and abs(value) <= 1e30


def _check_attributes(attributes: Any) -> list[str]:
    if isinstance(attributes, np.ndarray):
        attributes = attributes.tolist()
    if not isinstance(attributes, list | tuple) or not attributes:
        raise AimonkError("A model needs at least one attribute name (label_names in config.json)")
    if bad := [name for name in attributes if not isinstance(name, str) or not name.strip() or not is_text(name)]:
        raise AimonkError(f"Attribute names must be words, found {short(bad[0])}")
    ((name, count),) = Counter(attributes).most_common(1)
    if count > 1:
        raise AimonkError(f"The attribute name {short(name)} is there twice")
    return list(attributes)


def _check_sizes(value: Any) -> None:
    """Refuse depths and widths, nested too, of no network: timm would make lists of that length."""
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            _check_sizes(item)
    elif isinstance(value, int) and abs(value) > _LARGEST_ARGUMENT:
        raise AimonkError(f"model_args holds {short(value)}: no network has numbers above {_LARGEST_ARGUMENT}")


def _are_numbers(value: Any, above: float = -math.inf) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(is_number(x) and x > above for x in value)


def _check_preprocessing(cfg: dict[str, Any]) -> None:
    """Refuse values that allow no image, or one that fills the memory; None is timm's own default."""

    def is_size(value: Any) -> bool:
        return _are_numbers(value, 0) and value[0] == 3 and all(type(x) is int and x <= _LARGEST_SIDE for x in value)

    def is_share(value: Any) -> bool:
        return is_number(value) and max(cfg.get("input_size") or [224]) / _LARGEST_SIDE <= value <= 10

    checks: dict[str, tuple[Callable[[Any], bool], str]] = {
        "input_size": (is_size, f"[3, height, width] with sides up to {_LARGEST_SIDE}"),
        "mean": (_are_numbers, "three numbers"),
        "std": (partial(_are_numbers, above=0), "three numbers above 0"),
        "interpolation": (_INTERPOLATIONS.__contains__, " or ".join(_INTERPOLATIONS)),
        "crop_mode": (_CROP_MODES.__contains__, " or ".join(_CROP_MODES)),
        "crop_pct": (is_share, "a share of the image"),
    }
    for key, (is_right, wanted) in checks.items():
        if cfg.get(key) is not None and not is_right(cfg[key]):
            raise AimonkError(f"pretrained_cfg: {key} must be {wanted}, found {short(cfg[key])}")


def _labels_of(id2label: Any) -> list[str]:
    """Return the names of transformers' id2label in the order of their numbers, which must be those from 0 on."""
    if not isinstance(id2label, dict) or set(map(str, id2label)) != set(map(str, range(len(id2label)))):
        raise AimonkError("id2label in config.json must number the attributes from 0 on")
    return [name for _, name in sorted(id2label.items(), key=lambda item: int(item[0]))]


def _split_off(values: Any, key: str) -> tuple[Any, Any]:
    """Return a mapping without a key, and the key's value; anything else is left to the checks."""
    if not isinstance(values, dict):
        return values, None
    return {name: value for name, value in values.items() if name != key}, values.get(key)
