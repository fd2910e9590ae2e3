"""State dicts of torchvision networks, as the published systems saved them, become model folders."""

import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from aimonk_hf.errors import AimonkError, reason_of
from aimonk_hf.modeling.config import AimonkConfig
from aimonk_hf.modeling.model import AimonkModel

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
# What the published systems do: torchvision's Resize((224, 224)), ToTensor, and Normalize with ImageNet's figures.
PREPROCESSING = {
    "input_size": [3, 224, 224],
    "interpolation": "bilinear",
    "crop_mode": "squash",
    "crop_pct": 1.0,
    "mean": IMAGENET_MEAN,
    "std": IMAGENET_STD,
}

# What torch raises on a damaged or foreign file depends on where it stops making sense.
_DAMAGE = (
    *(
        RuntimeError,
        OSError,
        EOFError,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
        ArithmeticError,
        AssertionError,
        MemoryError,
    ),
    *(struct.error, zipfile.BadZipFile),
)

# Keys under which training loops keep the weights, and names under which wrappers keep the network.
_CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "weights")
_WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.", "network.", "net.", "base_model.")

# torchvision's efficientnet: the layers of an inverted residual block, as names in timm; a block without expansion has one layer less.
_BLOCK_LAYERS = {
    "0.0": "conv_pw",
    "0.1": "bn1",
    "1.0": "conv_dw",
    "1.1": "bn2",
    "2.fc1": "se.conv_reduce",
    "2.fc2": "se.conv_expand",
    "3.0": "conv_pwl",
    "3.1": "bn3",
}
_FIRST_BLOCK_LAYERS = {
    "0.0": "conv_dw",
    "0.1": "bn1",
    "1.fc1": "se.conv_reduce",
    "1.fc2": "se.conv_expand",
    "2.0": "conv_pw",
    "2.1": "bn2",
}
_STEM_AND_HEAD = {
    "features.0.0": "conv_stem",
    "features.0.1": "bn1",
    "features.8.0": "conv_head",
    "features.8.1": "bn2",
}


def convert_checkpoint(
    checkpoint: str | Path,
    architecture: str,
    attributes: list[str] | None = None,
    preprocessing: dict[str, Any] | None = None,
) -> AimonkModel:
    """Return the model, in eval mode, of a .pth state dict with torchvision's or timm's key names for a timm `architecture`.

    `attributes` are Attr1..AttrK where not given; `preprocessing` overrides keys of `PREPROCESSING`. Raises `AimonkError` for a pickle
    with more than tensors and plain values in it, which is never run, and for tensors that do not fit the architecture.
    """
    path = Path(checkpoint)
    state = _to_timm(_strip_wrappers(_find_state(path, load_checkpoint(path))))
    head = _head_bias(path, state)
    names = attributes or [f"Attr{number}" for number in range(1, len(head) + 1)]
    if len(names) != len(head):
        raise AimonkError(f"{path} has {len(head)} outputs but {len(names)} attributes were named: {', '.join(names)}")
    model = AimonkModel(AimonkConfig(architecture, names, pretrained_cfg=PREPROCESSING | (preprocessing or {})))
    _load(model, state, path)
    return model.eval().check_outputs()


def load_checkpoint(path: Path) -> Any:
    """Read a .pth file without running anything in it (`weights_only=True`)."""
    if not path.is_file():
        raise AimonkError(f"there is no checkpoint {path}" if not path.exists() else f"{path} is no file")
    try:
        _check_packing(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        _refuse(path, error)
    except _DAMAGE as error:
        raise AimonkError(f"{path} is no PyTorch checkpoint, or damaged ({reason_of(error)})") from error


def _check_packing(path: Path) -> None:
    """Refuse packed entries: PyTorch stores its tensors as they are, and a packed one could unfold to any size."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if packed := [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]:
                raise ValueError(f"its entry {packed[0][:60]!r} is compressed, which PyTorch does not do")


def _refuse(path: Path, error: pickle.UnpicklingError) -> NoReturn:
    """Name what the pickle would have called, where torch says it."""
    found = re.search(r"(?:GLOBAL|Unsupported (?:global|class|operand)[^:]*:?) ?(?:GLOBAL )?([\w.]+)", str(error))
    what = f" ({found[1]})" if found and "." in found[1] else ""
    raise AimonkError(
        f"{path} holds more than tensors{what}: it was not loaded, because that would run code from the file; "
        "save model.state_dict() with the program that made it"
    ) from error


def _find_state(path: Path, content: Any) -> dict[str, Tensor]:
    """Return the state dict itself, or the one inside a checkpoint dict."""
    for container in _CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(container), dict):
            content = content[container]
    pairs = content.items() if isinstance(content, dict) else ()
    state = {key: value for key, value in pairs if isinstance(key, str) and isinstance(value, Tensor)}
    if not state:
        found = (
            f"a dict with {', '.join(map(str, list(content)[:5]))}"
            if isinstance(content, dict)
            else type(content).__name__
        )
        raise AimonkError(f"{path} holds no state dict (found {found[:200]}; looked under {', '.join(_CONTAINERS)})")
    for key, value in state.items():
        if (
            value.layout != torch.strided
            or value.is_quantized
            or value.numel() * value.element_size() > value.untyped_storage().nbytes()
        ):
            raise AimonkError(f"{path}: {key} is no plain tensor with all its numbers in the file")
    return state


def _strip_wrappers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take off `module.` and the like, as often as all keys begin with it."""
    while prefix := next((wrapper for wrapper in _WRAPPERS if all(key.startswith(wrapper) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _to_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename torchvision's efficientnet layers, and heads inside a Sequential (`fc.1`, `classifier.1`), to timm's names."""
    if "features.0.0.weight" in state:
        state = {_rename_efficientnet(key): value for key, value in state.items()}
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        head = re.fullmatch(r"(fc|classifier)\.(\d+)\.(weight|bias)", key)
        name = f"{head[1]}.{head[3]}" if head else key
        if name in renamed:
            raise AimonkError(f"the head {key.split('.')[0]} has several linear layers; only one can be converted")
        renamed[name] = value
    return renamed


def _rename_efficientnet(key: str) -> str:
    layer, _, parameter = key.rpartition(".")
    if layer in _STEM_AND_HEAD:
        return f"{_STEM_AND_HEAD[layer]}.{parameter}"
    block = re.fullmatch(r"features\.(\d+)\.(\d+)\.block\.(.+)", layer)
    if not block:
        return key
    stage = int(block[1]) - 1
    # the first stage's blocks do not expand, which timm calls a depthwise separable convolution
    name = (_FIRST_BLOCK_LAYERS if stage == 0 else _BLOCK_LAYERS).get(block[3])
    return f"blocks.{stage}.{block[2]}.{name}.{parameter}" if name else key


def _load(model: AimonkModel, state: dict[str, Tensor], path: Path) -> None:
    """Load every tensor, or say which one does not fit."""
    architecture = model.config.architecture
    try:
        missing, surplus = model.timm_model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise AimonkError(f"{path} does not fit {architecture}: {reason_of(error)}") from error
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]  # old checkpoints have none
    if missing or surplus:
        first = f"it lacks {missing[0]}" if missing else f"it has {surplus[0]} besides"
        counts = f"{len(missing)} tensors missing, {len(surplus)} too many"
        raise AimonkError(f"{path} does not fit {architecture}: {first} ({counts}); name its --architecture")


def _head_bias(path: Path, state: dict[str, Tensor]) -> Tensor:
    for name in ("fc.bias", "classifier.bias", "head.fc.bias", "head.bias"):
        if name in state and state[name].ndim == 1:
            return state[name]
    raise AimonkError(f"{path} has no linear head (fc, classifier or head): it is no classifier's state dict")
