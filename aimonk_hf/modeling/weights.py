"""Weights on disk: safetensors with timm's own key names, tied to the config.json that was saved with them."""

import hashlib
import json
import threading
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from aimonk_hf.errors import AimonkError, NotFiniteError
from aimonk_hf.modeling.hub import CONFIG_FILE, FINGERPRINT, WEIGHTS_FILE

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
        raise AimonkError(f"{path.parent} has no {WEIGHTS_FILE}")
    try:
        with safe_open(path, framework="pt") as file:
            found = (file.metadata() or {}).get(FINGERPRINT)
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise AimonkError(f"{path} is damaged ({error}); restore it from a good copy") from error
    if fingerprint and found and fingerprint != found:
        raise AimonkError(f"{path} and {CONFIG_FILE} come from two different saves; restore both from one copy")
    return state


def check_state(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Raise `AimonkError` unless the tensors are exactly the network's, each of its shape and kind of number."""
    own = {name.removeprefix("timm_model."): tensor for name, tensor in network.state_dict().items()}
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
    own, inner = [name for name in state if name.startswith(prefix)], f"{prefix}timm_model."
    if not any(name.startswith(inner) for name in own):
        for name in own:
            state[inner + name.removeprefix(prefix)] = state.pop(name)
