"""Cached features of a frozen backbone, for a stage that trains the head alone."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from aimonk_hf.modeling.backbones import REFUSALS, heads
from aimonk_hf.modeling.model import AimonkModel
from aimonk_hf.training.batches import Batch, EpochBatches, TrainImages, image_loader
from aimonk_hf.training.processes import Processes
from aimonk_hf.training.validation import Validator, compute_outputs, gather_outputs

# The features of one view and of the validation images take no more than this in the host's memory; where they would,
# the stage trains on the images.
_MOST_BYTES = 2**31


class HeadFeatures:
    """Cache the pooled features [N, D] of augmented training images, computed by all processes together.

    The `epochs` of a stage share `n_views` views evenly; a view is computed when its first epoch begins, and shows that
    epoch's images. `head` trains on them.
    """

    def __init__(
        self,
        accelerator: Processes,
        model: AimonkModel,
        images: TrainImages,
        epochs: range,
        n_views: int,
        batch_size: int,
        workers: int,
    ) -> None:
        self.accelerator, self.model, self.images = accelerator, model, images
        self.batch_size, self.workers = batch_size, workers
        network: Any = model.timm_model
        self.width = network.get_classifier().in_features
        drop_rate = model.config.model_args.get("drop_rate", getattr(network, "drop_rate", 0.0))
        self.head = nn.Sequential(nn.Dropout(drop_rate), network.get_classifier())
        n_views = min(n_views, len(epochs))
        self.first_epochs = [epochs[-(-number * len(epochs) // n_views)] for number in range(n_views)]
        self.held: int | None = None  # the first epoch of the view in memory
        self.features = self.readable = torch.empty(0)
        self.of_validation: tuple[Tensor, Tensor] | None = None

    def prepare(self, epoch: int) -> None:
        """Compute the view of an epoch where another one is held."""
        first = max(one for one in self.first_epochs if one <= epoch)
        if first != self.held:
            view = self._compute(first)
            self.features, self.readable = gather_outputs(self.accelerator, len(self.images), self.width, view)
            self.held = first

    def _compute(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        accelerator, network = self.accelerator, partial(pooled_features, self.model.timm_model.eval())
        own = range(accelerator.process_index, len(self.images), accelerator.num_processes)
        starts = range(0, len(own), self.batch_size)
        chunks = [[(epoch, row) for row in own[start : start + self.batch_size]] for start in starts]
        for pixels, _, rows in image_loader(self.images, chunks, self.workers, accelerator.device):
            features, read = compute_outputs(accelerator, self.model, network, pixels), rows >= 0
            yield rows[read], features[read]

    def batches(self, batches: EpochBatches) -> Iterator[Batch]:
        """Yield features [N, D], targets [N, K or 2K] and rows [N] of each forward pass, in the order of `batches`."""
        for places in batches:
            given = torch.tensor([row for _, row in places])
            rows = torch.where(given < 0, -1 - given, given)
            targets, readable = self.images.targets[rows], self.readable[rows]
            targets[(given < 0) | ~readable] = torch.nan
            yield self.features[rows], targets, torch.where(readable, rows, -1 - rows)

    def validation_logits(self, network: nn.Module, validator: Validator) -> tuple[Tensor, Tensor]:
        """Return logits [N, K] and readable [N] of the validation images, whose features are computed once."""
        if self.of_validation is None:
            self.of_validation = validator.outputs(partial(pooled_features, network.eval()), self.width)
        features, readable = self.of_validation
        with torch.inference_mode(), self.accelerator.autocast():
            logits: Tensor = network.get_classifier()(features.to(self.accelerator.device))  # type: ignore[operator]
        return logits.float().cpu(), readable


def pooled_features(network: Any, values: Tensor) -> Tensor:
    """Return the input [N, D] of a timm network's classifier for normalised pixels [N, 3, H, W]."""
    features: Tensor = network.forward_head(network.forward_features(values), pre_logits=True)
    return features


def can_cache(model: AimonkModel, n_images: int) -> bool:
    """Return whether the network's head is one linear layer on pooled features, and those of all images may be held."""
    network: Any = model.timm_model.eval()
    classifier = network.get_classifier()
    if len(heads(network)) > 1 or not isinstance(classifier, nn.Linear):
        return False
    height, width = model.transform.size
    pixels = torch.linspace(-2, 2, 6 * height * width, device=model.device).view(2, 3, height, width)
    try:
        with torch.inference_mode():
            wanted, found = network(pixels), classifier(pooled_features(network, pixels))
    except REFUSALS:  # a head that takes something else
        return False
    same = found.shape == wanted.shape and torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)
    return same and 4 * n_images * classifier.in_features <= _MOST_BYTES
