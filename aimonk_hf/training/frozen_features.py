"""Stages that leave the first layers, or all but the head, as they are: these see each augmented view once, and the rest trains on that."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from aimonk_hf.data.dataset import AttributeDataset
from aimonk_hf.model.modeling import AimonkModel
from aimonk_hf.training.batches import EpochBatches, TrainImages
from aimonk_hf.training.network_cut import NetworkCut, cut_frozen, cut_head
from aimonk_hf.training.train_config import TrainConfig

# All views together take no more than this; where not even one fits, the stage trains on the pictures.
_MOST_BYTES = 2**31
_BATCH = 32


class View(NamedTuple):
    """Features [N, D] of one augmented view of N images, `shape` each before they were flattened, and which images were `lost` [N]."""

    features: Tensor
    shape: tuple[int, ...]
    lost: Tensor


class FrozenFeatures:
    """What the frozen part of a network made of V augmented views of the training images, and the part `trained` that makes logits of it.

    The epochs of the stage share the views evenly, one after the other; pictures may grow from view to view.
    """

    def __init__(self, cut: NetworkCut, network: nn.Module, views: list[View], epochs: range, memory_format: torch.memory_format) -> None:
        self.cut, self.views, self.epochs, self.memory_format = cut, views, epochs, memory_format
        self.trained = cut.trained(network)
        self._validation: Tensor | None = None

    def batches(self, batches: EpochBatches, dataset: AttributeDataset) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield features [N, ...], labels [N, K] and rows [N] of each forward pass, in the order of `batches`."""
        view = self.views[(batches.epoch - self.epochs.start) * len(self.views) // len(self.epochs)]
        labels = torch.from_numpy(dataset.labels.values)
        for places in batches:
            given = torch.tensor([row for _, row in places])
            rows = torch.where(given < 0, -1 - given, given)
            own = labels[rows].clone()
            own[(given < 0) | view.lost[rows]] = torch.nan
            yield self._shaped(view.features[rows], view.shape), own, rows

    def fit_for(self, n_images: int) -> bool:
        """Return whether the features of so many validation images may be held."""
        return _bytes(n_images, self.cut.shape) <= _MOST_BYTES

    def validation_logits(
        self, accelerator: Accelerator, network: nn.Module, gather: Callable[..., NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        """Return the logits [N, K] of a network with this frozen part on the validation images, of which `gather` computes features once."""
        if self._validation is None:
            self._validation = torch.from_numpy(gather(network=_Flat(self.cut.frozen(network)), width=math.prod(self.cut.shape)))
        trained = self.cut.trained(network).eval()
        with torch.inference_mode(), accelerator.autocast():
            logits = [
                trained(self._shaped(features, self.cut.shape).to(accelerator.device)).float().cpu()
                for features in self._validation.split(_BATCH)
            ]
        return torch.cat(logits).numpy()

    def _shaped(self, table: Tensor, shape: tuple[int, ...]) -> Tensor:
        features = table.unflatten(1, shape)
        return features.contiguous(memory_format=self.memory_format) if features.ndim == 4 else features


def compute_features(
    accelerator: Accelerator,
    model: AimonkModel,
    images: TrainImages,
    config: TrainConfig,
    stage: int,
    memory_format: torch.memory_format,
    workers: int,
) -> FrozenFeatures | None:
    """Run what the stage leaves as it is once over each view of the training images, shared among the processes.

    The view of several epochs shows the pictures of the first of them: with as many views as epochs the stage sees the very pictures that it
    would see without this. Returns None where the settings ask for no views, where the network cannot be cut there, or where one view of all
    images would not fit into 2 GiB.
    """
    n_epochs, _, freeze = config.stages[stage]
    wanted = (
        0 if freeze == "none" or config.mixup or config.cutmix else config.feature_views if freeze == "backbone" else config.prefix_views
    )
    if not wanted:
        return None
    network = model.timm_model.eval()
    probe = _probe(model.transform.size).to(accelerator.device).contiguous(memory_format=memory_format)
    cut = cut_head(network, config.drop_rate, probe) if freeze == "backbone" else cut_frozen(network, probe)
    n_views = 0 if cut is None else min(wanted, n_epochs, _MOST_BYTES // _bytes(len(images), cut.shape))
    if cut is None or not n_views:
        return None
    start = sum(earlier.epochs for earlier in config.stages[:stage])
    frozen = cut.frozen(network)

    def features_of(pixels: Tensor) -> Tensor:
        with torch.inference_mode(), accelerator.autocast():
            values = model.transform.normalize(pixels.to(accelerator.device)).contiguous(memory_format=memory_format)
            features: Tensor = frozen(values).float()
        return features

    first_epochs = [start + -(-view * n_epochs // n_views) for view in range(n_views)]
    views = [_compute_view(accelerator, images, epoch, features_of, workers) for epoch in first_epochs]
    return FrozenFeatures(cut, network, views, range(start, start + n_epochs), memory_format)


def _compute_view(accelerator: Accelerator, images: TrainImages, epoch: int, features_of: Callable[[Tensor], Tensor], workers: int) -> View:
    """Return the features of the pictures that the images show in an epoch; each process computes its share."""
    own = range(accelerator.process_index, len(images), accelerator.num_processes)
    chunks = [[(epoch, row) for row in own[start : start + _BATCH]] for start in range(0, len(own), _BATCH)]
    shape = tuple(features_of(images[epoch, 0][0][None]).shape[1:])  # on every process, also where there are more of them than images
    table = torch.zeros(len(images), math.prod(shape), device=accelerator.device)
    lost = torch.zeros(len(images), device=accelerator.device)
    for pixels, _, rows in DataLoader(images, batch_sampler=chunks, num_workers=workers):
        places = torch.where(rows < 0, -1 - rows, rows)
        table[places], lost[places] = features_of(pixels).flatten(1), (rows < 0).to(lost)
    return View(accelerator.reduce(table, "sum").cpu(), shape, accelerator.reduce(lost, "sum").cpu() > 0)


def _probe(size: tuple[int, int]) -> Tensor:
    """Return two pictures [2, 3, H, W] without repetitions, between -2 and 2."""
    return torch.linspace(-40, 40, 6 * size[0] * size[1]).sin().mul(2).view(2, 3, *size)


def _bytes(n_images: int, shape: tuple[int, ...]) -> int:
    return 4 * n_images * math.prod(shape)


class _Flat(nn.Module):
    """A network whose outputs [N, ...] are made [N, D]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, values: Tensor) -> Tensor:
        features: Tensor = self.network(values)
        return features.flatten(1)
