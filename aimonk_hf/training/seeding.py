"""Random numbers as a function of (seed, what, where), so that resuming needs no stored generator state."""

import random

import numpy as np
import torch


def seed_everything(*parts: int) -> None:
    """Seed torch, numpy and random of this process from the parts; neighbouring parts give unrelated seeds."""
    seed = int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would format a stack trace for a GPU not in use
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
