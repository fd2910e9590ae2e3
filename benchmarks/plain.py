"""The plain loop that the benchmarks compare with: what the published systems have in common, their mask and weights put right."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms


def plain_training(
    paths: list[Path], labels: NDArray[Any], architecture: str, batch_size: int, pretrained: bool = False
) -> Iterator[tuple[nn.Module, int]]:
    """Train for ever: Pillow, torchvision, float32, Adam at 1e-4, mirrored pictures; yield the network and the number of images after each step."""
    network = timm.create_model(architecture, pretrained=pretrained).train()
    # small random numbers, as in the published loops: those of create_model are seven times as large
    network.reset_classifier(labels.shape[1])  # type: ignore[operator]
    observed, positive = (labels == labels).sum(0), (labels == 1).sum(0)
    weight = torch.from_numpy((observed - positive) / positive.clip(1)).float()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    loader = DataLoader(
        Pictures(paths, labels, network, mirrored=True), batch_size, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True
    )
    while True:
        for pixels, wanted in loader:
            loss = masked_loss(network(pixels), wanted, weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield network, len(pixels)


class Pictures(Dataset[tuple[Tensor, Tensor]]):
    """Photographs squashed to 224 x 224 pixels, normalised as the network's weights want it, with their labels, 1, 0 or NaN."""

    def __init__(self, paths: list[Path], labels: NDArray[Any], network: nn.Module, mirrored: bool) -> None:
        self.paths, self.labels = paths, labels
        self.transform = transforms.Compose(
            [
                transforms.Resize((224, 224)),
                *[transforms.RandomHorizontalFlip()] * mirrored,
                transforms.ToTensor(),
                transforms.Normalize(network.pretrained_cfg["mean"], network.pretrained_cfg["std"]),  # type: ignore[index]
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.transform(Image.open(self.paths[row]).convert("RGB")), torch.from_numpy(self.labels[row])


def masked_loss(logits: Tensor, wanted: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the binary cross-entropy over the labels that are there."""
    observed = ~torch.isnan(wanted)
    losses = nn.functional.binary_cross_entropy_with_logits(logits, wanted.nan_to_num(), reduction="none", pos_weight=weight)
    return (losses * observed).sum() / observed.sum().clamp(min=1)
