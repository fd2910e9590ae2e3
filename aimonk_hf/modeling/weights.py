"""Weights on disk: safetensors with timm's own key names, tied to the config.json that was saved with them."""

import hashlib
import json
import pickle
import struct
import threading
import zipfile
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from aimonk_hf.errors import AimonkError, NotFiniteError, reason_of
from aimonk_hf.modeling.hub import CONFIG_FILE, FINGERPRINT, WEIGHTS_FILE

# A network that timm or torch cannot build, compute or train raises these, depending on where they notice.
REFUSALS = (
    *(TypeError, ValueError, AssertionError, RuntimeError, LookupError, ArithmeticError, AttributeError, MemoryError),
    *(SafetensorError, OSError, ImportError),
)
# torch.load raises these on a damaged or foreign file, depending on where it stops making sense.
_DAMAGE = (*REFUSALS, EOFError, struct.error, zipfile.BadZipFile)
# transformers saves a network that it made itself under this prefix, as `AimonkModel` names its own.
_OWN_PREFIX = "timm_model."
# Keys under which training loops keep the weights, and names under which wrappers keep the network.
_CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "weights")
_WRAPPERS = (_OWN_PREFIX, "module.", "_orig_mod.", "model.", "backbone.", "network.", "net.", "base_model.")
# The file of timm's save_for_hf, unless told otherwise.
PICKLED_WEIGHTS_FILE = "pytorch_model.bin"
Built = TypeVar("Built", bound=nn.Module)


def save_weights(path: Path, state: dict[str, Tensor]) -> str:
    """Write the tensors and return their fingerprint; equal tensors make equal files."""
    # copies, because safetensors refuses tensors that share memory
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}
    content = memoryview(save(tensors, {"format": "pt"}))
    fingerprint = hashlib.sha256(content).hexdigest()
    # entered here, because safetensors writes several keys of metadata in random order
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(bytes(content[8:start]))
    header["__metadata__"][FINGERPRINT] = fingerprint
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8
    with open(path, "wb") as file:
        file.writelines([len(text).to_bytes(8, "little"), text, content[start:]])
    return fingerprint


def load_weights(path: Path, fingerprint: str | None = None) -> dict[str, Tensor]:
    """Read the tensors; raise `AimonkError` for a missing or damaged file, or weights of another `fingerprint`."""
    if not path.is_file():
        pickled = (path.parent / PICKLED_WEIGHTS_FILE).is_file()
        advice = f", only a pickle: aimonk-hf convert {path.parent} --output NEW" if pickled else ""
        raise AimonkError(f"{path.parent} has no {WEIGHTS_FILE}{advice}")
    try:
        with safe_open(path, framework="pt") as file:
            found = (file.metadata() or {}).get(FINGERPRINT)
            state = {name.removeprefix(_OWN_PREFIX): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise AimonkError(f"{path} is damaged ({error}); restore it from a good copy") from error
    if fingerprint and found and fingerprint != found:
        raise AimonkError(f"{path} and {CONFIG_FILE} come from two different saves; restore both from one copy")
    return state


def check_state(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Raise `AimonkError` unless the tensors are exactly the network's, each of its shape and kind of number."""
    own = {name.removeprefix(_OWN_PREFIX): tensor for name, tensor in network.state_dict().items()}
    for name in own | state:
        found, wanted = _form(state.get(name)), _form(own.get(name))
        if found != wanted:
            raise AimonkError(f"{path} does not fit its architecture: {name} holds {found}, wanted: {wanted}")


def _form(tensor: Tensor | None) -> str:
    if tensor is None:
        return "nothing"
    return f"{'floats' if tensor.is_floating_point() else 'integers'} of shape {list(tensor.shape)}"


def require_finite(network: nn.Module, whose: str) -> None:
    """Raise `NotFiniteError`, with the tensor's name, for infinite or NaN parameters or batch-norm statistics."""
    # other buffers may hold infinities for good reasons
    statistics = ((name, tensor) for name, tensor in network.named_buffers() if ".running_" in name)
    for name, tensor in chain(network.named_parameters(), statistics):
        # the sum is faster, but of finite numbers it may overflow too
        if not tensor.sum().isfinite() and not tensor.isfinite().all():
            raise NotFiniteError(
                f"{whose}: {name} is not finite (infinite or NaN), so that no score can be computed: "
                "train with a lower --lr, or restore the weights from a good copy"
            )


def build_for(state: dict[str, Tensor], path: Path, build: Callable[[], Built]) -> Built:
    """Return the network of `build`, which must fit the tensors of `path`.

    One far larger than these tensors raises `AimonkError` before its memory is touched.
    """
    # twice as many, because some networks build parts that they then leave out
    left = 2 * sum(tensor.numel() for tensor in state.values()) + 1_000_000
    thread = threading.get_ident()  # torch's hook is called for every thread

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal left
        if parameter is not None and threading.get_ident() == thread:
            left -= parameter.numel()
            if left < 0:
                raise AimonkError(f"{path} holds far fewer numbers than the architecture in {CONFIG_FILE} wants")

    handle = register_module_parameter_registration_hook(register)
    try:
        network = build()
    finally:
        handle.remove()
    check_state(network, state, path)
    return network


def plain_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a network's tensors by timm's names, without the prefixes of torch.compile and data parallelism."""
    return {name.replace("_orig_mod.", "").removeprefix("module."): tensor for name, tensor in state.items()}


def own_names(model: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename the keys of a saved model.safetensors to those of the module, where `load_state_dict` is given them."""
    own, inner = [name for name in state if name.startswith(prefix)], prefix + _OWN_PREFIX
    if not any(name.startswith(inner) for name in own):
        for name in own:
            state[inner + name.removeprefix(prefix)] = state.pop(name)


def has_plain_names(path: Path) -> bool:
    """Return whether a file is safetensors with timm's own names."""
    if path.suffix != ".safetensors":
        return False
    with safe_open(path, framework="pt") as file:
        return not any(name.startswith(_OWN_PREFIX) for name in file.keys())  # noqa: SIM118


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file or of a pickle of tensors, without the prefixes of wrappers."""
    return load_weights(path) if path.suffix == ".safetensors" else _find_state(path, load_checkpoint(path))


def load_checkpoint(path: Path) -> Any:
    """Read a .pth file without running anything in it (`weights_only=True`)."""
    if not path.is_file():
        raise AimonkError(f"{path} is not a file" if path.exists() else f"There is no checkpoint {path}")
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
            raise AimonkError(f"{path}: {key} is not a plain tensor with all its values in the file")
    while prefix := next((wrapper for wrapper in _WRAPPERS if all(key.startswith(wrapper) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state
