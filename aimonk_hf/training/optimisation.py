"""Optimiser, loss and learning rate, as the settings name them; from timm and torch.

To add a loss, write it in `modeling/losses.py`, enter it in `build_loss`, and its name in `settings.LOSSES`.
"""

import math
from functools import partial
from inspect import signature
from typing import Any

import torch
from accelerate import Accelerator
from timm.optim import create_optimizer_v2, get_optimizer_class, list_optimizers
from torch import Tensor, nn

from aimonk_hf.errors import AimonkError, near_names, reason_of
from aimonk_hf.modeling.backbones import REFUSALS
from aimonk_hf.modeling.losses import Loss, masked_asymmetric_loss, masked_bce_with_logits
from aimonk_hf.training.settings import TrainConfig

FUSED_ON = ("cuda",)


def build_optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return timm's optimiser of that name for the unfrozen parameters; weight decay leaves norms and biases alone.

    A layer decay below 1 gives each block `layer_decay` times the learning rate of the one after it. On a GPU the step
    is one fused kernel where torch's optimiser has it.
    """
    names = [str(name) for name in list_optimizers()]
    if config.optimizer not in names:
        raise AimonkError(f"Unknown optimizer {config.optimizer!r}{near_names(config.optimizer, names)}")
    layer_decay = config.layer_decay if config.layer_decay < 1 else None
    settings: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, "layer_decay": layer_decay}
    try:
        accepted = signature(get_optimizer_class(config.optimizer, bind_defaults=False)).parameters
        if "fused" in accepted and next(network.parameters()).device.type in FUSED_ON:
            settings["fused"] = True
        return create_optimizer_v2(network, opt=config.optimizer, **settings)
    except REFUSALS as error:
        raise unusable_optimizer(config, error) from error


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load the state of a checkpoint, in the memory format of the weights.

    A fused kernel goes through weights and moments as flat memory: in two formats its steps would be silently wrong.
    """
    optimizer.load_state_dict(saved)
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                state[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


def unusable_optimizer(config: TrainConfig, error: Exception) -> AimonkError:
    """Return the sentence for an optimiser that cannot be built, or cannot take a step."""
    found = f"--optimizer {config.optimizer} cannot be used here ({reason_of(error)})"
    return AimonkError(f"{found}: choose another, such as adamw")


def schedule_lr(
    optimizer: torch.optim.Optimizer, config: TrainConfig, highest: float, step: int, total_steps: int
) -> float:
    """Give every parameter group the learning rate of a step, scaled where layers decay, and return it."""
    lr = highest * lr_factor(config.schedule, step, total_steps, config.warmup)
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    return lr


def lr_factor(schedule: str, step: int, total_steps: int, warmup: float) -> float:
    """Return the share of the highest learning rate at a step (from 0).

    "one-cycle" (Smith 2018) rises from 1/25 over the `warmup` share of the steps and falls to nearly 0, both as half a
    cosine: the values of torch's OneCycleLR, which divides by zero in very short runs. "cosine" rises linearly and
    falls to 0; "constant" rises and stays, and so does "plateau", which `epoch_choice.plateau_factor` lowers.
    """
    if schedule == "one-cycle":
        peak = max(warmup * total_steps - 1, 0)
        if step < peak:
            return _cosine(1 / 25, 1, step / peak)
        return _cosine(1, 1 / 25e4, min((step - peak) / max(total_steps - 1 - peak, 1), 1))
    warmup_steps = round(warmup * total_steps)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "cosine":
        return _cosine(1, 0, (step - warmup_steps) / max(total_steps - warmup_steps, 1))
    return 1.0


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def build_loss(config: TrainConfig) -> Loss:
    """Return the loss of the settings."""
    if config.loss == "focal":
        gamma = config.focal_gamma
        return partial(masked_asymmetric_loss, gamma_positive=gamma, gamma_negative=gamma, clip=0.0)
    if config.loss == "asymmetric":
        positive, negative = config.asymmetric_gammas or (1.0, 4.0)
        return partial(
            masked_asymmetric_loss, gamma_positive=positive, gamma_negative=negative, clip=config.asymmetric_clip
        )
    return masked_bce_with_logits


def share_statistics(accelerator: Accelerator, network: nn.Module) -> None:
    """Give every process the mean of all processes' batch-norm statistics, so that each has seen the whole batch."""
    trained = [module for module in network.modules() if module.training]  # statistics of frozen ones are alike
    named = [item for module in trained for item in module.named_buffers(recurse=False)]
    buffers = [buffer for name, buffer in named if name.startswith("running_")]
    if buffers and accelerator.num_processes > 1:
        mean = accelerator.reduce(torch.cat([buffer.flatten() for buffer in buffers]), "mean")
        for buffer, values in zip(buffers, mean.split([buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(values.view_as(buffer))
