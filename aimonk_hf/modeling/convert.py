"""Convert third-party checkpoints, and folders that timm, transformers and taggers saved, to models."""

import csv
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling.backbones import read_folder, trim_pretrained_cfg
from aimonk_hf.modeling.config import PROBLEM_TYPE, AimonkConfig, short
from aimonk_hf.modeling.hub import CONFIG_FILE, WEIGHTS_FILE, model_folder
from aimonk_hf.modeling.model import AimonkModel
from aimonk_hf.modeling.weights import build_for, check_state, read_tensors
from aimonk_hf.storage import StrPath, read_json, text_lines

# The published systems' torchvision transforms: Resize((224, 224)), ToTensor, Normalize with ImageNet's figures.
PREPROCESSING = {
    "input_size": [3, 224, 224],
    "interpolation": "bilinear",
    "crop_mode": "squash",
    "crop_pct": 1.0,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}
# Files of a tagger's repository: its labels, and a file that those whose network takes BGR pixels have (wd-tagger).
TAGS_FILE = "selected_tags.csv"
_BGR_FILE = "sw_jax_cv_config.json"
# torchvision's efficientnet layers, as timm names them; blocks of the first stage have no expansion.
_STEM_AND_HEAD = {"0.0": "conv_stem", "0.1": "bn1", "8.0": "conv_head", "8.1": "bn2"}
_BLOCK = {
    **{"0.0": "conv_pw", "0.1": "bn1", "1.0": "conv_dw", "1.1": "bn2"},
    **{"2.fc1": "se.conv_reduce", "2.fc2": "se.conv_expand", "3.0": "conv_pwl", "3.1": "bn3"},
}
_FIRST_BLOCK = {
    **{"0.0": "conv_dw", "0.1": "bn1", "1.fc1": "se.conv_reduce", "1.fc2": "se.conv_expand"},
    **{"2.0": "conv_pw", "2.1": "bn2"},
}


def convert_checkpoint(
    checkpoint: StrPath,
    architecture: str,
    attributes: list[str] | None = None,
    preprocessing: dict[str, Any] | None = None,
) -> AimonkModel:
    """Return the model, in eval mode, of a .pth state dict with torchvision's or timm's names.

    `attributes` are Attr1..AttrK by default; `preprocessing` overrides keys of `PREPROCESSING`. Raises `AimonkError`
    for a pickle of more than tensors and plain values, which is never run, and for tensors that do not fit.
    """
    path = Path(checkpoint)
    state = _to_timm(read_tensors(path))
    heads = (state.get(name) for name in ("fc.bias", "classifier.bias", "head.fc.bias", "head.bias"))
    width = next((len(head) for head in heads if head is not None and head.ndim == 1), None)
    if width is None:
        raise AimonkError(f"{path} has no linear head (fc, classifier or head): not the state dict of a classifier")
    names = _check_width(path, width, attributes)
    model = AimonkModel(AimonkConfig(architecture, names, pretrained_cfg=PREPROCESSING | (preprocessing or {})))
    own = model.timm_model.state_dict()
    state = {name: own[name] for name in own if name.endswith("num_batches_tracked")} | state  # old ones have none
    check_state(model.timm_model, state, path)
    model.timm_model.load_state_dict(state)
    return model.eval().check_outputs()


def convert_folder(
    name: StrPath,
    attributes: list[str] | None = None,
    preprocessing: dict[str, Any] | None = None,
    bgr: bool | None = None,
) -> AimonkModel:
    """Return the model, in eval mode, of a folder or Hub repository with one sigmoid per attribute.

    It may be saved by timm's `save_for_hf` or transformers, or be a tagger with selected_tags.csv, of which names and
    `best_threshold` are read. `preprocessing` overrides keys of its pretrained_cfg. `bgr` tells that the network takes
    BGR pixels; by default, that of wd-tagger does. Raises `AimonkError` for folders of one class per image.
    """
    folder = model_folder(name, (CONFIG_FILE, WEIGHTS_FILE, TAGS_FILE, _BGR_FILE))
    if (problem := read_json(folder / CONFIG_FILE).get("problem_type")) not in (None, PROBLEM_TYPE):
        raise AimonkError(
            f"{folder} has problem_type {short(problem)}: its scores are no sigmoids; "
            "train from it instead, with train --architecture local-dir:FOLDER or hf-hub:user/name"
        )
    source = read_folder(folder, pretrained=True)
    tags, cfg = _read_tags(folder / TAGS_FILE), source.pretrained_cfg
    width = cfg.get("num_classes") or 0
    names = _check_width(folder, width, attributes or [tag for tag, _ in tags] or source.label_names)
    own = {}
    if tags:  # thresholds of taggers hold for the larger test size, and for the whole image
        own = {key: cfg[f"test_{key}"] for key in ("input_size", "crop_pct") if cfg.get(f"test_{key}")}
        own["crop_mode"] = "border"
    config = AimonkConfig(
        source.architecture,
        names,
        {name: threshold for name, (_, threshold) in zip(names, tags, strict=False) if threshold is not None},
        source.model_args,
        trim_pretrained_cfg(cfg | own, width) | (preprocessing or {}),
    )
    weights = source.weights or folder / WEIGHTS_FILE
    state = read_tensors(weights)
    model = build_for(state, weights, lambda: AimonkModel(config))
    if (folder / _BGR_FILE).is_file() if bgr is None else bgr:
        first = model.timm_model.pretrained_cfg.get("first_conv") or ()
        for layer in [first] if isinstance(first, str) else first:
            state[f"{layer}.weight"] = state[f"{layer}.weight"].flip(1)
    model.load_state_dict(state)
    return model.eval().check_outputs()


def _check_width(path: Path, width: int, names: list[str] | None) -> list[str]:
    """Return the names, Attr1..AttrK without any; refuse another number of them than of outputs."""
    names = names or [f"Attr{number}" for number in range(1, width + 1)]
    if len(names) != width:
        given = f"{len(names)} attributes were named: {', '.join(names)[:200]}"
        raise AimonkError(f"{path} has {width} outputs but {given}")
    return names


def _read_tags(path: Path) -> list[tuple[str, float | None]]:
    """Return the name of each tag and its best_threshold, None where the file has none."""
    rows = csv.DictReader(text_lines(path)) if path.is_file() else None
    if rows is None:
        return []
    if "name" not in (rows.fieldnames or ()):
        raise AimonkError(f"{path} has no column `name`: not a tagger's list of labels")
    tags: list[tuple[str, float | None]] = []
    for row in rows:
        text = row.get("best_threshold") or ""
        try:
            tags.append((row["name"], float(text) if text else None))
        except ValueError:
            raise AimonkError(f"{path}:{rows.line_num}: best_threshold must be a number, found {short(text)}") from None
    return tags


def _to_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename torchvision's efficientnet layers, and heads in a Sequential (`fc.1`, `classifier.1`), as in timm."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        layer, _, parameter = key.rpartition(".")
        if "features.0.0.weight" in state:
            layer = _of_efficientnet(layer)
        layer = re.sub(r"^(fc|classifier)\.\d+$", r"\1", layer)
        name = f"{layer}.{parameter}".removeprefix(".")
        if name in renamed:
            raise AimonkError(f"The head {layer} has several linear layers; only one can be converted")
        renamed[name] = value
    return renamed


def _of_efficientnet(layer: str) -> str:
    layer = layer.removeprefix("features.")
    if block := re.fullmatch(r"(\d+)\.(\d+)\.block\.(.+)", layer):
        names = _FIRST_BLOCK if block[1] == "1" else _BLOCK
        return f"blocks.{int(block[1]) - 1}.{block[2]}.{names.get(block[3], block[3])}"
    return _STEM_AND_HEAD.get(layer, layer)
