"""A stage that trains the head alone: the frozen backbone sees each augmented view of an image once, and the head trains on what it gave."""

from collections.abc import Callable, Iterator
from itertools import chain

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from aimonk_hf.data.dataset import AttributeDataset
from aimonk_hf.model.modeling import AimonkModel
from aimonk_hf.training.batches import EpochBatches, TrainImages
from aimonk_hf.training.train_config import TrainConfig

# All views together take no more than this; where not even one fits, the stage trains on the pictures.
_MOST_BYTES = 2**31
_BATCH = 32


class FrozenFeatures:
    """Features [V, N, D] of V augmented views of the training images, and the `head` (dropout and classifier) that turns them into logits.

    `lost` [V, N] marks images that could not be read any more. Epoch e uses view e modulo V: as many epochs as views see the very pictures
    that they would see without this.
    """

    def __init__(self, features: Tensor, lost: Tensor, head: nn.Module) -> None:
        self.features, self.lost, self.head = features, lost, head
        self._validation: Tensor | None = None

    def validation_logits(
        self, accelerator: Accelerator, network: nn.Module, gather: Callable[..., NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        """Return the logits [N, K] of a network with this backbone on the validation images, of which `gather` computes the features once."""
        if self._validation is None:
            self._validation = torch.from_numpy(gather(network=_Pooled(network), width=self.features.shape[2]))
        with torch.inference_mode(), accelerator.autocast():
            logits: Tensor = network.get_classifier()(self._validation.to(accelerator.device))  # type: ignore[operator]
        return logits.float().cpu().numpy()

    def batches(self, batches: EpochBatches, dataset: AttributeDataset) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield features [N, D], labels [N, K] and rows [N] of each forward pass, in the order of `batches`."""
        view = batches.epoch % len(self.features)
        labels = torch.from_numpy(dataset.labels.values)
        for places in batches:
            given = torch.tensor([row for _, row in places])
            rows = torch.where(given < 0, -1 - given, given)
            own = labels[rows].clone()
            own[(given < 0) | self.lost[view, rows]] = torch.nan
            yield self.features[view, rows], own, rows


class _Pooled(nn.Module):
    """A timm network up to its pooled features [N, D]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, values: Tensor) -> Tensor:
        features: Tensor = self.network.forward_head(self.network.forward_features(values), pre_logits=True)  # type: ignore[operator]
        return features


class _Head(nn.Module):
    """Dropout and the linear classifier on pooled features [N, D]."""

    def __init__(self, drop_rate: float, classifier: nn.Module) -> None:
        super().__init__()
        self.dropout, self.classifier = nn.Dropout(drop_rate), classifier

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.dropout(features))
        return logits


def compute_features(
    accelerator: Accelerator,
    model: AimonkModel,
    images: TrainImages,
    config: TrainConfig,
    n_epochs: int,
    memory_format: torch.memory_format,
    workers: int,
) -> FrozenFeatures | None:
    """Run the frozen backbone once over each view of the training images, shared among the processes.

    Returns None where the network's head is more than dropout and a linear layer on `forward_head(..., pre_logits=True)`, or where one
    view of all images would not fit into 2 GiB.
    """
    network = model.timm_model.eval()
    head = _Head(config.drop_rate, network.get_classifier()).eval()
    device, n_images = accelerator.device, len(images)

    pooled = _Pooled(network)
    probe = torch.zeros(2, 3, *model.transform.size, device=device).to(memory_format=memory_format)
    probe[1] = 1
    with torch.inference_mode():
        if not isinstance(head.classifier, nn.Linear):
            return None
        features = pooled(probe)
        if features.ndim != 2 or not torch.allclose(head(features), network(probe), atol=1e-4):
            return None
    width = features.shape[1]
    n_views = min(config.feature_views, n_epochs, _MOST_BYTES // (4 * width * n_images))
    if not n_views:
        return None
    own = range(accelerator.process_index, n_images, accelerator.num_processes)
    places = [[(view, row) for row in own] for view in range(n_views)]  # the views of two epochs may differ in size: no batch holds both
    chunks = [of_view[start : start + _BATCH] for of_view in places for start in range(0, len(own), _BATCH)]
    table = torch.zeros(n_views, n_images, width, device=device)
    lost = torch.zeros(n_views, n_images, device=device)
    loader = DataLoader(images, batch_sampler=chunks, num_workers=workers)
    order = chain.from_iterable(chunks)
    for pixels, _, rows in loader:
        with torch.inference_mode(), accelerator.autocast():
            values = model.transform.normalize(pixels.to(device)).contiguous(memory_format=memory_format)
            batch = pooled(values).float()
        for row, features_of_row in zip(rows.tolist(), batch, strict=True):
            view, place = next(order)
            table[view, place] = features_of_row
            lost[view, place] = float(row < 0)
    table, lost = accelerator.reduce(table, "sum"), accelerator.reduce(lost, "sum")
    return FrozenFeatures(table.cpu(), lost.cpu() > 0, head)
