"""The images of each process, step and epoch, and the loader that reads and augments them."""

import math
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from aimonk_hf.data.image_cache import ImageCache
from aimonk_hf.data.images import read_image
from aimonk_hf.errors import ImageError
from aimonk_hf.training.augmentation import Augmentation
from aimonk_hf.training.seeding import seed_everything

# A place in a batch: (epoch, row). A negative row is a stand-in that keeps processes in step; its labels are all
# missing.
Place = tuple[int, int]
# Inputs (pixels uint8 [N, 3, H, W], or features [N, D]), targets [N, K or 2K], rows [N] (-1 - row where an image
# is lost).
Batch = tuple[Tensor, Tensor, Tensor]


@dataclass(eq=False)
class EpochBatches(Sampler[list[Place]]):
    """Divide each epoch into forward passes of one process; iterating starts at `first_step` of `epoch`.

    A step is `accumulation_steps` passes of at most `batch_size` images on each of `n_processes` processes. The order
    follows from (seed, epoch); with `image_weights` [N] images are drawn in proportion. The steps of an epoch are
    equally large but for one image, because batch norm on a remainder of one or two images spoils the last step.
    """

    n_images: int
    batch_size: int
    accumulation_steps: int
    n_processes: int
    rank: int
    seed: int
    image_weights: NDArray[np.float64] | None = None
    epoch: int = 0
    first_step: int = 0

    @property
    def n_steps(self) -> int:
        """Optimiser steps in an epoch."""
        return math.ceil(self.n_images / (self.batch_size * self.accumulation_steps * self.n_processes))

    def passes(self, step: int) -> int:
        """Return the number of forward passes of each process in a step."""
        n_here = self.n_images // self.n_steps + (step < self.n_images % self.n_steps)  # as np.array_split divides
        return math.ceil(math.ceil(n_here / self.n_processes) / self.batch_size)

    def __len__(self) -> int:
        return sum(self.passes(step) for step in range(self.first_step, self.n_steps))

    def __iter__(self) -> Iterator[list[Place]]:
        random = np.random.default_rng([self.seed, self.epoch])
        if self.image_weights is None:
            order = random.permutation(self.n_images)
        else:
            order = random.choice(self.n_images, self.n_images, p=self.image_weights / self.image_weights.sum())
        for step, rows in enumerate(np.array_split(order, self.n_steps)):
            if step < self.first_step:
                continue
            own = np.array_split(rows, self.n_processes)[self.rank]
            for batch in np.array_split(own, self.passes(step)):
                yield [(self.epoch, int(row)) for row in batch] or [(self.epoch, -1 - int(rows[0]))]


def balancing_weights(labels: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the relative frequency [N], mean 1, of drawing each image, so that rare values come up more.

    An image's weight is the mean over its observed labels [N, K] of 1 / (2 x share of that value among the attribute's
    observed labels); an image without any label gets the smallest weight.
    """
    observed = ~np.isnan(labels)
    n_observed, n_positive = observed.sum(axis=0), (labels == 1).sum(axis=0)
    count = np.where(labels == 1, n_positive, n_observed - n_positive)
    rarity = np.where(observed, n_observed / (2 * np.maximum(count, 1)), 0)
    weights = rarity.sum(axis=1) / np.maximum(observed.sum(axis=1), 1)
    labelled = observed.any(axis=1)
    weights[~labelled] = min(weights[labelled], default=1.0)
    return weights / weights.mean()


class TrainImages(Dataset[Any]):
    """Augmented pixels uint8 [3, H, W], `targets` of a row and the row of a `Place`; random by (seed, epoch, row).

    An image that has become unreadable gives grey pixels, missing targets, and -1 - row. `augmentations` has one per
    epoch; `targets` [N, K] are the labels, or [N, 2K] with those of a teacher.
    """

    def __init__(
        self,
        paths: list[Path],
        targets: NDArray[np.float32],
        augmentations: Sequence[Augmentation],
        seed: int,
        cache: ImageCache | None = None,
    ) -> None:
        self.paths, self.targets = paths, torch.from_numpy(targets)
        self.augmentations, self.seed, self.cache = augmentations, seed, cache

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: Place) -> tuple[Tensor, Tensor, int]:
        epoch, row = place
        stand_in, row = row < 0, max(row, -1 - row)
        path, augment = self.paths[row], self.augmentations[epoch]
        targets = self.targets[row]
        missing = torch.full_like(targets, torch.nan)
        seed_everything(self.seed, 1, epoch, row)
        try:
            if self.cache is None:
                pixels = augment(read_image(path))
            else:
                kept = self.cache.get(path, lambda: np.asarray(augment.prepare(read_image(path))))
                pixels = augment.change(Image.fromarray(kept))
        except ImageError:
            return augment(Image.new("RGB", (64, 64), "grey")), missing, -1 - row
        return pixels, missing if stand_in else targets, row


def image_loader(
    images: TrainImages, batches: Iterable[list[Place]], workers: int, device: torch.device
) -> DataLoader[Batch]:
    """Return the loader; its workers live through all epochs and compute with one thread each."""
    return DataLoader(
        images,
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers else None,
        pin_memory=device.type == "cuda",
        worker_init_fn=_ignore_interrupt,
    )


def _ignore_interrupt(worker: int) -> None:
    # Ctrl-C reaches every process of the terminal; the one that trains ends its workers when it has saved
    signal.signal(signal.SIGINT, signal.SIG_IGN)
