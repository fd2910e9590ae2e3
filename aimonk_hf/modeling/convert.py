"""Convert third-party checkpoints, state dicts of torchvision or timm networks, to models."""

import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aimonk_hf.errors import AimonkError, reason_of
from aimonk_hf.modeling.backbones import REFUSALS
from aimonk_hf.modeling.config import AimonkConfig
from aimonk_hf.modeling.model import AimonkModel
from aimonk_hf.modeling.weights import check_state

# The published systems' torchvision transforms: Resize((224, 224)), ToTensor, Normalize with ImageNet's figures.
PREPROCESSING = {
    "input_size": [3, 224, 224],
    "interpolation": "bilinear",
    "crop_mode": "squash",
    "crop_pct": 1.0,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}
# torch.load raises these on a damaged or foreign file, depending on where it stops making sense.
_DAMAGE = (*REFUSALS, EOFError, struct.error, zipfile.BadZipFile)
# Keys under which training loops keep the weights, and names under which wrappers keep the network.
_CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "weights")
_WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.", "network.", "net.", "base_model.")
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
    checkpoint: str | Path,
    architecture: str,
    attributes: list[str] | None = None,
    preprocessing: dict[str, Any] | None = None,
) -> AimonkModel:
    """Return the model, in eval mode, of a .pth state dict with torchvision's or timm's names.

    `attributes` are Attr1..AttrK by default; `preprocessing` overrides keys of `PREPROCESSING`. Raises `AimonkError`
    for a pickle of more than tensors and plain values, which is never run, and for tensors that do not fit.
    """
    path = Path(checkpoint)
    state = _to_timm(_find_state(path, load_checkpoint(path)))
    heads = (state.get(name) for name in ("fc.bias", "classifier.bias", "head.fc.bias", "head.bias"))
    width = next((len(head) for head in heads if head is not None and head.ndim == 1), None)
    if width is None:
        raise AimonkError(f"{path} has no linear head (fc, classifier or head): it is no classifier's state dict")
    names = attributes or [f"Attr{number}" for number in range(1, width + 1)]
    if len(names) != width:
        raise AimonkError(f"{path} has {width} outputs but {len(names)} attributes were named: {', '.join(names)}")
    model = AimonkModel(AimonkConfig(architecture, names, pretrained_cfg=PREPROCESSING | (preprocessing or {})))
    own = model.timm_model.state_dict()
    state = {name: own[name] for name in own if name.endswith("num_batches_tracked")} | state  # old ones have none
    check_state(model.timm_model, state, path)
    model.timm_model.load_state_dict(state)
    return model.eval().check_outputs()


def load_checkpoint(path: Path) -> Any:
    """Read a .pth file without running anything in it (`weights_only=True`)."""
    if not path.is_file():
        raise AimonkError(f"{path} is no file" if path.exists() else f"there is no checkpoint {path}")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if packed := [entry for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]:
                    # it could unfold to any size
                    raise ValueError(f"its entry {packed[0].filename[:60]!r} is compressed, which PyTorch does not do")
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise AimonkError(
            f"{path} holds more than tensors: it was not loaded, because that would run code from the file; "
            "save model.state_dict() with the program that made it"
        ) from error
    except _DAMAGE as error:
        raise AimonkError(f"{path} is no PyTorch checkpoint, or damaged ({reason_of(error)})") from error


def _find_state(path: Path, content: Any) -> dict[str, Tensor]:
    """Return the state dict itself, or the one inside a checkpoint dict, without the prefixes of wrappers."""
    for container in _CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(container), dict):
            content = content[container]
    items = content.items() if isinstance(content, dict) else ()
    state = {key: value for key, value in items if isinstance(key, str) and isinstance(value, Tensor)}
    if not state:
        found = f"a dict with {', '.join(str(key) for key, _ in items)}" if items else type(content).__name__
        raise AimonkError(f"{path} holds no state dict (found {found[:200]}; looked under {', '.join(_CONTAINERS)})")
    for key, value in state.items():
        is_plain = value.layout == torch.strided and not value.is_quantized
        if not is_plain or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise AimonkError(f"{path}: {key} is no plain tensor with all its numbers in the file")
    while prefix := next((wrapper for wrapper in _WRAPPERS if all(key.startswith(wrapper) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


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
            raise AimonkError(f"the head {layer} has several linear layers; only one can be converted")
        renamed[name] = value
    return renamed


def _of_efficientnet(layer: str) -> str:
    layer = layer.removeprefix("features.")
    if block := re.fullmatch(r"(\d+)\.(\d+)\.block\.(.+)", layer):
        names = _FIRST_BLOCK if block[1] == "1" else _BLOCK
        return f"blocks.{int(block[1]) - 1}.{block[2]}.{names.get(block[3], block[3])}"
    return _STEM_AND_HEAD.get(layer, layer)
