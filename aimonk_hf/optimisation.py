"""Optimiser, course of the learning rate, and averaged weights, from timm and torch."""

import math

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim import lr_scheduler

from aimonk_hf.errors import AimonkError, near_names
from aimonk_hf.train_config import TrainConfig


def build_optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return timm's optimiser of that name; weight decay leaves norms and biases alone."""
    names = list_optimizers()
    if config.optimizer not in names:
        raise AimonkError(f"unknown optimizer {config.optimizer!r}{near_names(config.optimizer, names)}")
    return create_optimizer_v2(network, opt=config.optimizer, lr=config.lr, weight_decay=config.weight_decay)


def build_schedule(optimizer: torch.optim.Optimizer, config: TrainConfig, total_steps: int) -> lr_scheduler.LRScheduler:
    """Return a schedule that is stepped once per optimiser step.

    "one-cycle" (Smith 2018, torch's OneCycleLR) rises from lr/25 over the `warmup` share of the steps and falls to nearly 0; "cosine" rises
    linearly and falls to 0; "constant" rises and stays.
    """
    if config.schedule == "one-cycle" and total_steps > 2:
        return lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in optimizer.param_groups],
            total_steps=total_steps,
            pct_start=min(max(config.warmup, 1 / total_steps), 1 - 1 / total_steps),
            cycle_momentum=False,
        )
    warmup_steps = round(config.warmup * total_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        if config.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(total_steps - warmup_steps, 1)))

    return lr_scheduler.LambdaLR(optimizer, factor)


def build_average(network: nn.Module, config: TrainConfig) -> ModelEmaV3 | None:
    """Return timm's exponential moving average of the weights, warmed up so that early weights fade; None where the decay is 0."""
    return ModelEmaV3(network, decay=config.ema_decay, use_warmup=True) if config.ema_decay else None
