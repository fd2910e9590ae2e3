"""Train by the plain loop of the published systems, their mask and weights put right, which others are compared with.

Every loop of these benchmarks, this one and those of `peers.py`, is a function of a `Task` and of what is called after
each step (with its number of images) and after each epoch (with a function that scores images as this loop reads
them). It builds all that it needs and returns the training itself, so that a clock can start between the two.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from aimonk_hf.data.dataset import AttributeDataset

SIDE = 224
Transform = Callable[[Image.Image], Tensor]
Score = Callable[[Sequence[Path]], NDArray[Any]]  # N images -> logits [N, K]
AfterStep = Callable[[int], None]
AfterEpoch = Callable[[Score], None]
Loop = Callable[["Task", AfterStep, AfterEpoch], Callable[[], None]]


@dataclass(frozen=True)
class Task:
    """The images to train on, the weights to start from, the epochs, and a folder for a loop's files."""

    dataset: AttributeDataset
    architecture: str
    pretrained: bool
    batch_size: int
    epochs: int
    scratch: Path


def plain_loop(task: Task, after_step: AfterStep, after_epoch: AfterEpoch) -> Callable[[], None]:
    """Train as a published solution: Pillow, torchvision, float32, Adam at 1e-4, mirrored images, rare ones weighed."""
    network, labels = new_network(task), task.dataset.labels.values
    observed, positive = (labels == labels).sum(0), (labels == 1).sum(0)
    weight = torch.from_numpy((observed - positive) / positive.clip(1)).float()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    images = Images(task.dataset, squashing(network, mirrored=True))
    loader = DataLoader(images, task.batch_size, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True)

    def train() -> None:
        for _ in range(task.epochs):
            for pixels, wanted in loader:
                loss = masked_loss(network(pixels), wanted, weight)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                after_step(len(pixels))
            after_epoch(lambda paths: score_files(network, network, squashing(network), paths))

    return train


def new_network(task: Task) -> nn.Module:
    """Return timm's network in training mode, with a head of small random numbers as in the published loops.

    Those that `create_model` draws are seven times as large.
    """
    network: nn.Module = timm.create_model(task.architecture, pretrained=task.pretrained).train()
    network.reset_classifier(task.dataset.labels.values.shape[1])  # type: ignore[operator]
    return network


def squashing(network: nn.Module, mirrored: bool = False) -> Transform:
    """Return what squashes a photograph to 224 x 224 pixels and normalises it as the network's weights want it."""
    found: Transform = transforms.Compose(
        [
            transforms.Resize((SIDE, SIDE)),
            *[transforms.RandomHorizontalFlip()] * mirrored,
            transforms.ToTensor(),
            transforms.Normalize(network.pretrained_cfg["mean"], network.pretrained_cfg["std"]),  # type: ignore[index]
        ]
    )
    return found


class Images(Dataset[tuple[Tensor, Tensor]]):
    """Photographs as tensors, with their labels, 1, 0 or NaN."""

    def __init__(self, dataset: AttributeDataset, transform: Transform) -> None:
        self.paths, self.labels, self.transform = dataset.paths, dataset.labels.values, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.transform(Image.open(self.paths[row]).convert("RGB")), torch.from_numpy(self.labels[row])


def masked_loss(logits: Tensor, wanted: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the binary cross-entropy over the labels that are there."""
    observed = ~torch.isnan(wanted)
    losses = nn.functional.binary_cross_entropy_with_logits(
        logits, wanted.nan_to_num(), reduction="none", pos_weight=weight
    )
    return (losses * observed).sum() / observed.sum().clamp(min=1)


def score_files(
    network: nn.Module, forward: Callable[[Tensor], Tensor], transform: Transform, paths: Sequence[Path]
) -> NDArray[Any]:
    """Return the logits [N, K] of images, computed in eval mode; the network is left in training mode."""
    network.eval()
    with torch.inference_mode():
        batches = [
            forward(torch.stack([transform(Image.open(path).convert("RGB")) for path in paths[start : start + 64]]))
            for start in range(0, len(paths), 64)
        ]
    network.train()
    logits: NDArray[Any] = torch.cat(batches).numpy()
    return logits
