"""Batch norms computed as part of the convolutions before them: a seventh less time a picture for mobilenets and efficientnets."""

import copy
from functools import partial
from threading import Lock
from typing import Any

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.hooks import RemovableHandle

# A copy of the network and two computations of two pictures are worth it for no fewer.
WORTHWHILE = 64
# Logits may differ by this and by this share: a quarter of it in a score.
_TOLERANCE = 1e-4


class LazilyFolded:
    """A network in eval mode which, once `WORTHWHILE` pictures have passed, is replaced by a folded copy; several threads may call it.

    The network's weights must not change while this is in use.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network, self._left = network, WORTHWHILE
        self._counting = Lock()

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the logits [N, K] of normalised pixels [N, 3, H, W]."""
        with self._counting:
            is_time = 0 < self._left <= len(pixels)
            self._left -= len(pixels)
        if is_time:
            self._network = fold_batch_norms(self._network, pixels[:2])
        logits: Tensor = self._network(pixels)
        return logits


def fold_batch_norms(network: nn.Module, pixels: Tensor) -> nn.Module:
    """Return a copy in eval mode whose batch norms are part of the convolutions before them: w' = w g/s, b' = (b - m) g/s + beta.

    Which convolution stands before which norm is seen on `pixels` [N, 3, H, W], and so is that the logits stay the same: where they do
    not, because a convolution feeds others as well or scales its own weights, or where someone watches the network through hooks, the
    network itself is returned.
    """
    modules = list(network.modules())
    if not any(_is_norm(module) for module in modules) or any(module._forward_hooks or module._forward_pre_hooks for module in modules):
        return network
    folded = copy.deepcopy(network).eval()
    with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
        pairs = _pairs(folded, pixels)
        for name, (convolution, norm) in pairs.items():
            fused = fuse_conv_bn_eval(convolution, norm)
            convolution.weight, convolution.bias = fused.weight, fused.bias
            folded.set_submodule(name, nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity())
        same = torch.allclose(folded(pixels), network(pixels), rtol=_TOLERANCE, atol=_TOLERANCE)
    return folded if pairs and same else network


def _is_norm(module: nn.Module) -> bool:
    """Return whether this is a batch norm, with timm's activation or without, that goes by the values it has gathered in training."""
    return type(module) in (nn.BatchNorm2d, BatchNormAct2d) and module.running_mean is not None


def _pairs(network: nn.Module, pixels: Tensor) -> dict[str, tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Return, by a norm's name, each convolution whose output goes into a batch norm, and the norm."""
    pairs: dict[str, tuple[nn.Conv2d, nn.BatchNorm2d]] = {}

    def sign(convolution: nn.Conv2d, _: Any, output: Tensor) -> None:
        output.computed_by = convolution  # type: ignore[attr-defined] # a mark for the norm that gets this very tensor

    def look(name: str, norm: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        if convolution := getattr(inputs[0], "computed_by", None):
            pairs[name] = (convolution, norm)

    hooks: list[RemovableHandle] = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and not parametrize.is_parametrized(module):
            hooks.append(module.register_forward_hook(sign))
        elif _is_norm(module):
            hooks.append(module.register_forward_pre_hook(partial(look, name)))
    network(pixels)
    for hook in hooks:
        hook.remove()
    return pairs
