"""Freeze parts of a network by block count or layer names, through timm's own grouping of layers."""

import re

from timm.models import group_parameters
from torch import nn

from aimonk_hf.errors import AimonkError, near_names
from aimonk_hf.modeling.backbones import heads

_COUNTED = re.compile(r"(first|except-last)-(\d+)(?:/(\d+))?")


def freeze_parameters(network: nn.Module, freeze: str) -> None:
    """Let gradients flow into all of a timm network but what `freeze` names.

    "none" freezes nothing, "backbone" all but the head or heads. "first-5" freezes the stem and the first 5 blocks,
    "first-5/16" the same share of the blocks that this network has, "except-last-3" everything before the last 3
    blocks. Anything else is layer names joined by +, such as "conv1+bn1+layer1". Raises `AimonkError` for names and
    counts that the network does not have, and where nothing would be left.
    """
    if freeze == "none":
        frozen = set()
    elif freeze == "backbone":
        head = {id(parameter) for layer in heads(network) for parameter in layer.parameters()}
        frozen = {name for name, parameter in network.named_parameters() if id(parameter) not in head}
    elif counted := _COUNTED.fullmatch(freeze):
        frozen = _before_block(network, freeze, *counted.groups())
    else:
        frozen = _of_layers(network, freeze.split("+"))
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise AimonkError(f"--freeze {freeze} leaves nothing to train")


def set_train_mode(network: nn.Module) -> None:
    """Put the network in training mode, but frozen parts in eval mode: their batch norm keeps its statistics."""
    parameters = list(network.parameters())
    network.train(not parameters or any(parameter.requires_grad for parameter in parameters))
    if network.training:
        for child in network.children():
            set_train_mode(child)


def layer_groups(network: nn.Module) -> list[list[str]]:
    """Return the parameter names of a timm network's stem, blocks (or transformer layers) and head, in that order."""
    if not hasattr(network, "group_matcher"):
        kind = type(network).__name__
        raise AimonkError(f"{kind} does not group its layers: use --freeze none, backbone or layer names")
    groups: dict[int, list[str]] = {}
    matcher = network.group_matcher(coarse=False)  # type: ignore[operator]
    for name, number in group_parameters(network, matcher, reverse=True).items():
        groups.setdefault(number, []).append(name)
    return [groups[number] for number in sorted(groups)]


def _of_layers(network: nn.Module, layers: list[str]) -> set[str]:
    names = [name for name, _ in network.named_parameters()]
    for layer in layers:
        if not any(f"{name}.".startswith(f"{layer}.") for name in names):
            known = near_names(layer, sorted({".".join(name.split(".")[:depth]) for name in names for depth in (1, 2)}))
            raise AimonkError(f"--freeze: the network has no layer {layer!r}{known}; it begins with {names[0]}")
    return {name for name in names if f"{name}.".startswith(tuple(f"{layer}." for layer in layers))}


def _before_block(network: nn.Module, freeze: str, end: str, number: str, total: str | None) -> set[str]:
    stem, *blocks, _ = layer_groups(network)
    count = int(number)
    if total and count > int(total):
        raise AimonkError(f"--freeze {freeze}: {count} of {total} blocks is more than all")
    if total:
        count = round(count / int(total) * len(blocks))
    if count > len(blocks):
        raise AimonkError(f"--freeze {freeze}: this network has {len(blocks)} blocks")
    n_frozen = count if end == "first" else len(blocks) - count
    return {name for group in (stem, *blocks[:n_frozen]) for name in group}
