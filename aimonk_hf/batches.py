"""Which images each process reads in which step, and the loader that augments them."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from aimonk_hf.data import AttributeDataset
from aimonk_hf.errors import ImageError
from aimonk_hf.images import read_image
from aimonk_hf.seeding import seed_everything

# A place in a batch: (epoch, row). A negative row is a stand-in that keeps processes in step; its labels are all missing.
Place = tuple[int, int]


class EpochBatches(Sampler[list[Place]]):
    """The forward passes of one process and epoch: every image once over all processes, in an order that (seed, epoch) decides.

    A step is `accumulation_steps` forward passes of at most `batch_size` images on each of `n_processes` processes, so that n processes
    take in one step the images that one process with n times the batch size would take. The steps of an epoch are equally large but for
    one image, because batch norm on a remainder of one or two images spoils the last step. Every process makes the same number of passes.
    """

    def __init__(self, n_images: int, batch_size: int, accumulation_steps: int, n_processes: int, rank: int, seed: int) -> None:
        self.n_images, self.batch_size, self.accumulation_steps = n_images, batch_size, accumulation_steps
        self.n_processes, self.rank, self.seed = n_processes, rank, seed
        self.epoch = 0
        self.step_size = batch_size * accumulation_steps * n_processes

    @property
    def n_steps(self) -> int:
        """Optimiser steps in an epoch."""
        return math.ceil(self.n_images / self.step_size)

    def passes(self, step: int) -> int:
        """Forward passes of each process in a step."""
        n_here = self.n_images // self.n_steps + (step < self.n_images % self.n_steps)  # as np.array_split divides
        return math.ceil(math.ceil(n_here / self.n_processes) / self.batch_size)

    def __len__(self) -> int:
        return sum(self.passes(step) for step in range(self.n_steps))

    def __iter__(self) -> Iterator[list[Place]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.n_images)
        for step, rows in enumerate(np.array_split(order, self.n_steps)):
            own = np.array_split(rows, self.n_processes)[self.rank]
            for batch in np.array_split(own, self.passes(step)):
                places = [(self.epoch, int(row)) for row in batch]
                yield places or [(self.epoch, -1 - int(rows[0]))]


class TrainImages(Dataset[tuple[Tensor, Tensor, int]]):
    """Augmented pixels uint8 [3, H, W], labels [K] and the row, for a `Place`; random by (seed, epoch, row), whichever worker reads it.

    An image that has become unreadable since the run began gives grey pixels with every label missing, and the row as -1 - row.
    """

    def __init__(self, dataset: AttributeDataset, augment: Callable[[Image.Image], Tensor], seed: int) -> None:
        self.dataset, self.augment, self.seed = dataset, augment, seed
        self.paths = dataset.paths

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: Place) -> tuple[Tensor, Tensor, int]:
        epoch, row = place
        stand_in, row = row < 0, max(row, -1 - row)
        labels = torch.from_numpy(self.dataset.labels.values[row])
        seed_everything(self.seed, 1, epoch, row)
        try:
            pixels = self.augment(read_image(self.paths[row]))
        except ImageError:
            return self.augment(Image.new("RGB", (64, 64), "grey")), torch.full_like(labels, torch.nan), -1 - row
        return pixels, torch.full_like(labels, torch.nan) if stand_in else labels, row


def train_loader(images: TrainImages, batches: EpochBatches, workers: int, pin_memory: bool) -> DataLoader[tuple[Tensor, Tensor, int]]:
    """Return the loader; its worker processes live through all epochs and compute with one thread each."""
    return DataLoader(
        images,
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers else None,
        pin_memory=pin_memory,
    )
