"""Weights on disk: safetensors with timm's own key names, tied to the config.json that was saved with them."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from aimonk_hf.errors import AimonkError, NotFiniteError, near_names

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
METRICS_FILE = "metrics.json"
CARD_FILE = "README.md"
MODEL_FILES = (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, METRICS_FILE)

# This key stands in config.json and in the header of model.safetensors, so that files of two different saves are noticed.
FINGERPRINT = "weights_sha256"


def save_weights(path: Path, state: dict[str, Tensor]) -> str:
    """Write the tensors and return their fingerprint, which depends on nothing but names and values."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    stored: set[int] = set()
    for name, tensor in tensors.items():
        if tensor.untyped_storage().data_ptr() in stored:  # every reader finds a shared tensor under each of its names
            tensors[name] = tensor.clone()
        stored.add(tensor.untyped_storage().data_ptr())
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    fingerprint = digest.hexdigest()
    try:
        save_file(tensors, path, metadata={"format": "pt", FINGERPRINT: fingerprint})
    except SafetensorError as error:  # its writer's own word for a full disk and the like
        raise AimonkError(f"cannot write the weights into {path.parent} ({error})") from error
    _sort_metadata(path)
    return fingerprint


def plain_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under timm's own names: torch.compile and data parallelism put theirs before them."""
    return {name.replace("_orig_mod.", "").removeprefix("module."): tensor for name, tensor in state.items()}


def check_state(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Raise `AimonkError` unless the tensors are exactly those of the network, each of its shape and kind of number."""
    own = network.state_dict()
    if missing := [name for name in own if name not in state]:
        raise AimonkError(
            f"{path} lacks {len(missing)} tensor(s) of the architecture, first {missing[0]}{near_names(missing[0], list(state))}"
        )
    if surplus := [name for name in state if name not in own]:
        raise AimonkError(
            f"{path} holds {len(surplus)} tensor(s) that the architecture does not have, first {surplus[0]}"
        )
    for name, tensor in own.items():
        if state[name].shape != tensor.shape:
            raise AimonkError(
                f"{path}: {name} has shape {list(state[name].shape)}, the architecture wants {list(tensor.shape)}"
            )
        if state[name].is_floating_point() != tensor.is_floating_point():
            raise AimonkError(f"{path}: {name} holds {state[name].dtype}, the architecture wants {tensor.dtype}")


def require_finite(network: nn.Module, whose: str) -> None:
    """Raise `NotFiniteError`, which names the tensor, where parameters or batch-norm statistics are infinite or NaN."""
    statistics = ((name, tensor) for name, tensor in network.named_buffers() if ".running_" in name)
    for name, tensor in chain(
        network.named_parameters(), statistics
    ):  # other buffers may hold infinities for good reasons
        if (
            not tensor.sum().isfinite() and not tensor.isfinite().all()
        ):  # the sum is faster, but of finite numbers it may overflow too
            raise NotFiniteError(
                f"{whose}: {name} is not finite (infinite or NaN), so that no score can be computed: "
                "train with a lower --lr, or restore the weights from a good copy"
            )


@contextmanager
def built_for(state: dict[str, Tensor], path: Path) -> Iterator[None]:
    """Let a network be built here whose parameters the tensors of `path` replace afterwards: they are not drawn at random.

    An architecture that holds far more than these tensors raises `AimonkError` before its memory is touched.
    """
    room = (
        2 * sum(tensor.numel() for tensor in state.values()) + 1_000_000
    )  # some networks build parts that they then leave out
    thread = threading.get_ident()  # torch's hook is everybody's

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal room
        if parameter is not None and threading.get_ident() == thread:
            room -= parameter.numel()
            if room < 0:
                raise AimonkError(
                    f"{path} holds far fewer numbers than the architecture in {CONFIG_FILE} beside it wants"
                )

    handle = register_module_parameter_registration_hook(register)
    try:
        with _NothingDrawn():
            yield
    finally:
        handle.remove()


class _NothingDrawn(TorchFunctionMode):
    """While entered, in-place operations on parameters, which is what initialising them is made of, do nothing."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if args and isinstance(args[0], nn.Parameter) and getattr(func, "__name__", "") in _INITIALISING:
            return args[0]
        return func(*args, **(kwargs or {}))


_INITIALISING = frozenset(("normal_", "uniform_", "trunc_normal_", "erfinv_", "mul_", "add_", "clamp_"))


def _sort_metadata(path: Path) -> None:
    """Rewrite the header with its metadata in a fixed order; safetensors' own is random, and equal models must make equal files."""
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        assert len(text) == length, "only the order may change"
        file.seek(8)
        file.write(text)


def load_weights(path: Path, config_values: dict[str, Any]) -> dict[str, Tensor]:
    """Read the tensors; damage, absence, and weights of another save than the config's are named."""
    if not path.is_file():
        raise AimonkError(f"{path.parent} has no {WEIGHTS_FILE}")
    try:
        with safe_open(path, framework="pt") as file:
            fingerprint = (file.metadata() or {}).get(FINGERPRINT)
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise AimonkError(f"{path} is damaged ({error}); restore it from a good copy") from error
    expected = config_values.get(FINGERPRINT)
    if expected and fingerprint and expected != fingerprint:
        raise AimonkError(
            f"{path} and {CONFIG_FILE} beside it come from two different saves; restore both from one copy"
        )
    return state
