"""Random numbers as a function of (seed, what, where), so that resuming needs no stored generator state."""

import random

import numpy as np
import torch


def seed_everything(*parts: int) -> None:
    """Seed torch, numpy and random of this process from the parts; neighbouring parts give unrelated seeds."""
    seed = int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
    if torch.accelerator.is_available():
        torch.manual_seed(seed)  # of every kind of device
    else:
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would format a stack trace for a GPU not in use
    np.random.seed(seed % 2**32)
    random.seed(seed)
