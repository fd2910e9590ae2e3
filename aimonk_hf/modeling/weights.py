"""Weights on disk: safetensors with timm's own key names, tied to the config.json that was saved with them."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from aimonk_hf.errors import AimonkError, NotFiniteError, near_names
from aimonk_hf.modeling.hub import CONFIG_FILE, FINGERPRINT, WEIGHTS_FILE

Built = TypeVar("Built", bound=nn.Module)


def save_weights(path: Path, state: dict[str, Tensor]) -> str:
    """Write the tensors and return their fingerprint; equal tensors make equal files."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    stored: set[int] = set()
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        if tensor.untyped_storage().data_ptr() in stored:  # every reader finds a shared tensor under each of its names
            tensors[name] = tensor.clone()
        stored.add(tensor.untyped_storage().data_ptr())
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    try:
        save_file(tensors, path, metadata={"format": "pt", FINGERPRINT: digest.hexdigest()})
    except SafetensorError as error:  # a full disk, for example
        raise AimonkError(f"cannot write the weights into {path.parent} ({error})") from error
    with open(path, "r+b") as file:  # safetensors writes its metadata in random order
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        file.seek(8)
        file.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length))
    return digest.hexdigest()


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
    if missing := [name for name in own if name not in state]:
        first = f"{missing[0]}{near_names(missing[0], list(state))}"
        raise AimonkError(f"{path} lacks {len(missing)} tensor(s) of the architecture, first {first}")
    if surplus := [name for name in state if name not in own]:
        raise AimonkError(f"{path} holds {len(surplus)} tensor(s) unknown to the architecture, first {surplus[0]}")
    for name, tensor in own.items():
        given, wants = state[name], "the architecture wants"
        if given.shape != tensor.shape:
            raise AimonkError(f"{path}: {name} has shape {list(given.shape)}, {wants} {list(tensor.shape)}")
        if given.is_floating_point() != tensor.is_floating_point():
            raise AimonkError(f"{path}: {name} holds {given.dtype}, {wants} {tensor.dtype}")


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
    """Return the network of `build`, without random initialisation, for the tensors of `path`, which must fit it.

    An architecture far larger than these tensors raises `AimonkError` before its memory is touched.
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
        with _NoInitialisation():
            network = build()
    finally:
        handle.remove()
    check_state(network, state, path)
    return network


class _NoInitialisation(TorchFunctionMode):
    """Skip the in-place operations by which parameters are initialised."""

    _SKIPPED = frozenset(("normal_", "uniform_", "trunc_normal_", "erfinv_", "mul_", "add_", "clamp_"))

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if args and isinstance(args[0], nn.Parameter) and getattr(func, "__name__", "") in self._SKIPPED:
            return args[0]
        return func(*args, **(kwargs or {}))


def plain_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a network's tensors by timm's names, without the prefixes of torch.compile and data parallelism."""
    return {name.replace("_orig_mod.", "").removeprefix("module."): tensor for name, tensor in state.items()}
