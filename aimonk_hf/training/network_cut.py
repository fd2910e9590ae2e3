"""A network in two: what a stage leaves as it is, and the rest, which trains on what the first part gave."""

import copy
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from aimonk_hf.modeling.backbones import REFUSALS, heads

# Logits of the two parts may differ from the whole network's by this.
_TOLERANCE = 1e-4


class NetworkCut(NamedTuple):
    """Where networks of one structure are cut: `frozen(network)` gives features [N, ...], from which `trained(network)` makes logits [N, K].

    Both share the network's own weights. `shape` is that of one picture's features at the size of the eval transform.
    """

    frozen: Callable[[nn.Module], nn.Module]
    trained: Callable[[nn.Module], nn.Module]
    shape: tuple[int, ...]


def cut_head(network: nn.Module, drop_rate: float, pixels: Tensor) -> NetworkCut | None:
    """Cut a timm network before its dropout and linear head; None where its head is more than these.

    `pixels` [N, 3, H, W] are what it is tried on; the network must be in eval mode, here and in `cut_frozen`.
    """
    if len(heads(network)) > 1 or not isinstance(network.get_classifier(), nn.Linear):  # type: ignore[operator]
        return None
    return _tried(network, _Pooled, partial(_Head, drop_rate), pixels)


def cut_frozen(network: nn.Module, pixels: Tensor) -> NetworkCut | None:
    """Cut a network before the first layer that has something to train; None where what comes before is no plain chain of layers.

    It is none where a residual block is frozen in part, and in vision transformers, which add positions between two layers.
    """
    calls = _calls(network, pixels)
    own = {
        name
        for name, module in network.named_modules()
        if any(p.requires_grad for p in module.parameters(recurse=False))
    }
    first = next((place for place, name in enumerate(calls) if name in own), 0)
    ancestors = [name for name in calls[:first] if not name or calls[first].startswith(name + ".")]
    while first and calls[first - 1] in ancestors:  # the largest module that starts with it
        first -= 1
    skipped: list[str] = []
    for name in calls[:first]:
        if name not in ancestors and not any(name.startswith(outer + ".") for outer in skipped):
            skipped.append(name)
    if not skipped:
        return None
    return _tried(network, partial(_Before, calls[first]), partial(_after, skipped), pixels)


def _tried(
    network: nn.Module,
    frozen: Callable[[nn.Module], nn.Module],
    trained: Callable[[nn.Module], nn.Module],
    pixels: Tensor,
) -> NetworkCut | None:
    """Return the cut if both parts together give the network's logits."""
    try:
        with torch.inference_mode():
            features: Tensor = frozen(network)(pixels)
            logits: Tensor = trained(network).eval()(features)
            same = logits.shape == (wanted := network(pixels)).shape and torch.allclose(
                logits, wanted, rtol=_TOLERANCE, atol=_TOLERANCE
            )
    except REFUSALS:  # layers that are given something else than they expect
        return None
    return NetworkCut(frozen, trained, tuple(features.shape[1:])) if same else None


def _calls(network: nn.Module, pixels: Tensor) -> list[str]:
    """Return the names of all modules in the order in which a forward pass first calls them."""
    called: dict[str, None] = {}
    with ExitStack() as hooks, torch.inference_mode():
        for name, module in network.named_modules():
            hooks.callback(module.register_forward_pre_hook(lambda *_, name=name: called.setdefault(name)).remove)
        network(pixels)
    return list(called)


class _Pooled(nn.Module):
    """A timm network up to its pooled features [N, D]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, values: Tensor) -> Tensor:
        features: Tensor = self.network.forward_head(self.network.forward_features(values), pre_logits=True)  # type: ignore[operator]
        return features


class _Head(nn.Module):
    """Dropout and the network's linear classifier on pooled features [N, D]."""

    def __init__(self, drop_rate: float, network: nn.Module) -> None:
        super().__init__()
        self.dropout, self.classifier = nn.Dropout(drop_rate), network.get_classifier()  # type: ignore[operator]

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.dropout(features))
        return logits


class _Reached(BaseException):
    """Ends a forward pass with what the module `entry` was given; no error, so that no layer's own handling of errors takes it for one."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = values


class _Before(nn.Module):
    """A network up to the module `entry`: what that is given [N, ...]."""

    def __init__(self, entry: str, network: nn.Module) -> None:
        super().__init__()
        self.network, self.entry = network, entry

    def forward(self, values: Tensor) -> Tensor:
        hook = self.network.get_submodule(self.entry).register_forward_pre_hook(_end_here)
        try:
            self.network(values)
        except _Reached as reached:
            return reached.values
        finally:
            hook.remove()
        raise RuntimeError(f"the network did not call {self.entry}")


def _end_here(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    raise _Reached(inputs[0])


def _after(skipped: list[str], network: nn.Module) -> nn.Module:
    """Return a network with the same weights whose modules `skipped` hand on what they are given: fed with what these gave, it makes logits."""
    other = _sharing_weights(network)
    for name in skipped:
        other.set_submodule(name, nn.Identity())
    return other


def _sharing_weights(module: nn.Module) -> nn.Module:
    """Return a copy that holds the very tensors of the original, but modules of its own."""
    other = copy.copy(module)
    other._modules = {
        name: None if child is None else _sharing_weights(child) for name, child in module._modules.items()
    }
    return other


class WholeNetwork(nn.Module):
    """The network in a shell of its own for each stage: accelerate marks and wraps what it prepares, and does so only once."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, values: Tensor) -> Tensor:
        """Return the logits [N, K] of pixels [N, 3, H, W]."""
        logits: Tensor = self.network(values)
        return logits
