"""Stages that leave the first layers, or all but the head, as they are: these see each augmented view once, and the rest trains on that."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from aimonk_hf.modeling.inference import SMALL_BATCH, in_own_threads, threads_alone
from aimonk_hf.modeling.model import AimonkModel
from aimonk_hf.training.batches import EpochBatches, TrainImages, ignore_interrupt
from aimonk_hf.training.network_cut import NetworkCut, cut_frozen, cut_head
from aimonk_hf.training.settings import TrainConfig
from aimonk_hf.training.validation import Gathered

# The features of one view take no more than this; where they would, the stage trains on the pictures.
_MOST_BYTES = 2**31
_BATCH = (
    32  # images that are computed together where there is a GPU, and of which the trained part makes validation logits
)


class View(NamedTuple):
    """Features [N, D] of the stage's view `number`, `shape` each before they were flattened, and which of the N images were `lost` [N]."""

    number: int
    features: Tensor
    shape: tuple[int, ...]
    lost: Tensor


@dataclass
class FrozenFeatures:
    """What the frozen part of a network makes of augmented views of the training images, for the part `trained` to make logits of.

    The `epochs` of a stage share `n_views` views evenly, one after the other. A view is computed, by all processes together, when its first epoch
    begins, and shows the pictures of that epoch: with as many views as epochs the stage sees the very pictures that it would see without this.
    `probe` [2, 3, H, W] are the normalised pictures that the network was cut on.
    """

    accelerator: Accelerator
    model: AimonkModel
    images: TrainImages
    cut: NetworkCut
    epochs: range
    n_views: int
    memory_format: torch.memory_format
    workers: int
    probe: Tensor

    def __post_init__(self) -> None:
        self.trained = self.cut.trained(self.model.timm_model)
        self._view: View | None = None
        self._validation: Gathered | None = None

    def prepare(self, epoch: int) -> View:
        """Return the view of an epoch, computed where the last one was another."""
        number = (epoch - self.epochs.start) * self.n_views // len(self.epochs)
        if self._view is None or self._view.number != number:
            self._view = None  # so that its memory is free for the next
            self._view = self._compute(number)
        return self._view

    def batches(self, batches: EpochBatches) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield features [N, ...], labels [N, K] and rows [N] of each forward pass, in the order of `batches`; -1 - row where the image is lost."""
        view, labels = self.prepare(batches.epoch), torch.from_numpy(self.images.dataset.labels.values)
        for places in batches:
            given = torch.tensor([row for _, row in places])
            rows = torch.where(given < 0, -1 - given, given)
            own = labels[rows].clone()
            lost = view.lost[rows]
            own[(given < 0) | lost] = torch.nan
            yield self._shaped(view.features[rows], view.shape), own, torch.where(lost, -1 - rows, rows)

    def fit_for(self, n_images: int) -> bool:
        """Return whether the features of so many images may be held."""
        return 4 * n_images * math.prod(self.cut.shape) <= _MOST_BYTES

    def validation_logits(self, network: nn.Module, gather: Callable[..., Gathered]) -> Gathered:
        """Return what `gather` would of a network with this frozen part: logits [N, K] of the validation images and which could be read [N].

        `gather` computes their features once.
        """
        if self._validation is None:
            frozen = self.cut.frozen(network.eval())
            self._validation = gather(network=_Flat(frozen), width=math.prod(self.cut.shape))
        table, readable = self._validation
        trained = self.cut.trained(network).eval()
        with torch.inference_mode(), self.accelerator.autocast():
            logits = [
                trained(self._shaped(features, self.cut.shape).to(self.accelerator.device)).float().cpu()
                for features in torch.from_numpy(table).split(_BATCH)
            ]
        return torch.cat(logits).numpy(), readable

    def _compute(self, number: int) -> View:
        """Return a view's features; each process computes its share."""
        accelerator, images = self.accelerator, self.images
        epoch = self.epochs[-(-number * len(self.epochs) // self.n_views)]
        own = range(accelerator.process_index, len(images), accelerator.num_processes)
        on_cpu = accelerator.device.type == "cpu"
        size = SMALL_BATCH if on_cpu else _BATCH
        chunks = [[(epoch, row) for row in own[start : start + size]] for start in range(0, len(own), size)]
        frozen = self.cut.frozen(self.model.timm_model.eval())
        # on every process, also where there are more of them than images
        shape = tuple(self._features_of(frozen, images[epoch, 0][0][None]).shape[1:])
        table = torch.zeros(len(images), math.prod(shape), device=accelerator.device)
        lost = torch.zeros(len(images), device=accelerator.device)

        def computed(batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return self._features_of(frozen, batch[0]).flatten(1), batch[2]

        loader = DataLoader(images, batch_sampler=chunks, num_workers=self.workers, worker_init_fn=ignore_interrupt)
        for features, rows in in_own_threads(computed, loader, threads_alone()) if on_cpu else map(computed, loader):
            places = torch.where(rows < 0, -1 - rows, rows)
            table[places], lost[places] = features, (rows < 0).to(lost)
        accelerator.wait_for_everyone()
        return View(number, accelerator.reduce(table, "sum").cpu(), shape, accelerator.reduce(lost, "sum").cpu() > 0)

    def _features_of(self, frozen: nn.Module, pixels: Tensor) -> Tensor:
        with torch.inference_mode(), self.accelerator.autocast():
            values = self.model.transform.normalize(pixels.to(self.accelerator.device)).contiguous(
                memory_format=self.memory_format
            )
            features: Tensor = frozen(values)
        return features.float()

    def _shaped(self, table: Tensor, shape: tuple[int, ...]) -> Tensor:
        features = table.unflatten(1, shape)
        return features.contiguous(memory_format=self.memory_format) if features.ndim == 4 else features


def frozen_features(
    accelerator: Accelerator,
    model: AimonkModel,
    images: TrainImages,
    config: TrainConfig,
    stage: int,
    memory_format: torch.memory_format,
    workers: int,
) -> FrozenFeatures | None:
    """Return what computes the frozen features of a stage.

    Returns None where the settings ask for no views, where the network cannot be cut there, or where one view of all images would not fit
    into 2 GiB.
    """
    n_epochs, _, freeze = config.stages[stage]
    wanted = {"none": 0, "backbone": config.feature_views}.get(freeze, config.prefix_views)
    if not wanted or config.mixup or config.cutmix:
        return None
    network = model.timm_model.eval()
    probe = _probe(model.transform.size).to(accelerator.device).contiguous(memory_format=memory_format)
    drop_rate = model.config.model_args.get("drop_rate", getattr(network, "drop_rate", 0.0))
    cut = cut_head(network, drop_rate, probe) if freeze == "backbone" else cut_frozen(network, probe)
    if cut is None:
        return None
    start = sum(earlier.epochs for earlier in config.stages[:stage])
    epochs, n_views = range(start, start + n_epochs), min(wanted, n_epochs)
    features = FrozenFeatures(accelerator, model, images, cut, epochs, n_views, memory_format, workers, probe)
    return features if features.fit_for(len(images)) else None


def _probe(size: tuple[int, int]) -> Tensor:
    """Return two pictures [2, 3, H, W] without repetitions, between -2 and 2."""
    return torch.linspace(-40, 40, 6 * size[0] * size[1]).sin().mul(2).view(2, 3, *size)


class _Flat(nn.Module):
    """A network whose outputs [N, ...] are made [N, D]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, values: Tensor) -> Tensor:
        features: Tensor = self.network(values)
        return features.flatten(1)
