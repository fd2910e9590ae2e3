"""Cached features of a frozen backbone, for a stage that trains the head alone."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from aimonk_hf.modeling.backbones import REFUSALS, heads
from aimonk_hf.modeling.model import AimonkModel
from aimonk_hf.training.batches import Batch, EpochBatches, TrainImages, image_loader
from aimonk_hf.training.validation import Gathered

# The features of one view take no more than this; where they would, the stage trains on the images.
_MOST_BYTES = 2**31
_BATCH = 32


class Head(nn.Module):
    """Apply dropout and the network's linear classifier to pooled features [N, D]."""

    def __init__(self, network: nn.Module, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.dropout, self.classifier = nn.Dropout(drop_rate), network.get_classifier()  # type: ignore[operator]

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits [N, K]."""
        logits: Tensor = self.classifier(self.dropout(features))
        return logits


@dataclass
class HeadFeatures:
    """Compute the pooled features [N, D] of augmented views of the training images once, by all processes together.

    The `epochs` of a stage share `n_views` views evenly; a view is computed when its first epoch begins, and shows that
    epoch's images. `head` trains on them.
    """

    accelerator: Accelerator
    model: AimonkModel
    images: TrainImages
    epochs: range
    n_views: int
    workers: int

    def __post_init__(self) -> None:
        network, model_args = self.model.timm_model, self.model.config.model_args
        self.head = Head(network, model_args.get("drop_rate", getattr(network, "drop_rate", 0.0)))
        self.n_views = min(self.n_views, len(self.epochs))
        self._number: int | None = None  # the view that is held
        self._features = torch.empty(0)
        self._lost = torch.empty(0, dtype=torch.bool)
        self._validation: Gathered | None = None

    def prepare(self, epoch: int) -> None:
        """Compute the view of an epoch where another one is held."""
        number = (epoch - self.epochs.start) * self.n_views // len(self.epochs)
        if number != self._number:
            self._features, self._lost = self._compute(self.epochs[-(-number * len(self.epochs) // self.n_views)])
            self._number = number

    def batches(self, batches: EpochBatches) -> Iterator[Batch]:
        """Yield features [N, D], labels [N, K] and rows [N] of each forward pass, in the order of `batches`."""
        labels = torch.from_numpy(self.images.dataset.labels.values)
        for places in batches:
            given = torch.tensor([row for _, row in places])
            rows = torch.where(given < 0, -1 - given, given)
            own, lost = labels[rows].clone(), self._lost[rows]
            own[(given < 0) | lost] = torch.nan
            yield self._features[rows], own, torch.where(lost, -1 - rows, rows)

    def validation_logits(self, network: nn.Module, gather: Callable[[nn.Module, int], Gathered]) -> Gathered:
        """Return logits [N, K] and readable [N] of the validation images by the network's head; `gather` runs once."""
        if self._validation is None:
            self._validation = gather(Pooled(network), _width(network))
        features, readable = self._validation
        with torch.inference_mode(), self.accelerator.autocast():
            logits = Head(network).eval()(torch.from_numpy(features).to(self.accelerator.device)).float()
        return logits.cpu().numpy(), readable

    def _compute(self, epoch: int) -> tuple[Tensor, Tensor]:
        accelerator, images = self.accelerator, self.images
        own = range(accelerator.process_index, len(images), accelerator.num_processes)
        chunks = [[(epoch, row) for row in own[start : start + _BATCH]] for start in range(0, len(own), _BATCH)]
        pooled = Pooled(self.model.timm_model.eval())
        table = torch.zeros(len(images), _width(self.model.timm_model), device=accelerator.device)
        lost = torch.zeros(len(images), device=accelerator.device)
        loader = image_loader(images, chunks, self.workers, accelerator.device.type == "cuda")
        for pixels, _, rows in loader:
            with torch.inference_mode(), accelerator.autocast():
                values = self.model.transform.normalize(pixels.to(accelerator.device))
                features = pooled(values.contiguous(memory_format=torch.channels_last)).float()
            places = torch.where(rows < 0, -1 - rows, rows)
            table[places], lost[places] = features, (rows < 0).to(lost)
        accelerator.wait_for_everyone()
        return accelerator.reduce(table, "sum").cpu(), accelerator.reduce(lost, "sum").cpu() > 0


class Pooled(nn.Module):
    """Compute a timm network's pooled features [N, D]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, values: Tensor) -> Tensor:
        """Return the input of the head for normalised pixels [N, 3, H, W]."""
        network: Any = self.network
        features: Tensor = network.forward_head(network.forward_features(values), pre_logits=True)
        return features


def can_cache(model: AimonkModel, n_images: int) -> bool:
    """Return whether the network's head is one linear layer on pooled features, and those of all images may be held."""
    network = model.timm_model.eval()
    if len(heads(network)) > 1 or not isinstance(network.get_classifier(), nn.Linear):
        return False
    height, width = model.transform.size
    pixels = torch.linspace(-2, 2, 6 * height * width, device=model.device).view(2, 3, height, width)
    try:
        with torch.inference_mode():
            wanted = network(pixels)
            found = Head(network).eval()(Pooled(network)(pixels))
    except REFUSALS:  # a head that takes something else
        return False
    same = found.shape == wanted.shape and torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)
    return same and 4 * n_images * _width(network) <= _MOST_BYTES


def _width(network: nn.Module) -> int:
    return int(network.get_classifier().in_features)  # type: ignore[operator]
