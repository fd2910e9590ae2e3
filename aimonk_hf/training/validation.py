"""Validation figures of a network in training, over all processes."""

import math
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from aimonk_hf.data.dataset import AttributeDataset
from aimonk_hf.data.image_cache import ImageCache
from aimonk_hf.errors import ImageError, NotFiniteError
from aimonk_hf.evaluation.metrics import auroc, average_precision, count_decisions, f1, mean_defined, nan_to_none
from aimonk_hf.modeling.inference import stream_logits
from aimonk_hf.modeling.losses import Loss
from aimonk_hf.modeling.processing import EvalTransform

# Outputs [N, width], and a mask [N] of the readable images; the rows of the others mean nothing.
Gathered = tuple[NDArray[np.float32], NDArray[np.bool_]]
Cache = ImageCache | None


class Validator:
    """Compute outputs of networks for the validation images; each process computes its share, and all get the whole.

    `cache` holds the decoded images, made by `transform`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        transform: EvalTransform,
        dataset: AttributeDataset,
        batch_size: int,
        cache: Cache,
    ) -> None:
        self.accelerator, self.transform, self.dataset = accelerator, transform, dataset
        self.batch_size, self.cache = batch_size, cache

    def outputs(self, network: nn.Module, width: int) -> Gathered:
        """Return the network's outputs [N, width], and the readable images [N]; the network is left in eval mode."""
        accelerator, dataset, device = self.accelerator, self.dataset, self.accelerator.device
        own = range(accelerator.process_index, len(dataset), accelerator.num_processes)
        table = torch.zeros(len(dataset), width, device=device)
        readable = torch.zeros(len(dataset), device=device)
        network.eval()

        def score(pixels: Tensor) -> Tensor:
            with torch.inference_mode(), accelerator.autocast():
                values = self.transform.normalize(pixels.to(device))
                return network(values.contiguous(memory_format=torch.channels_last)).float()

        sources, prepare = (dataset.paths[row] for row in own), self.transform.pixels
        on_cpu = device.type == "cpu"
        stream = stream_logits(sources, prepare, score, self.batch_size, cache=self.cache, on_cpu=on_cpu)
        for row, (_, outputs) in zip(own, stream, strict=True):
            if not isinstance(outputs, ImageError):
                table[row], readable[row] = outputs, 1
        accelerator.wait_for_everyone()  # however long the images of one process take
        table, readable = accelerator.reduce(table, "sum"), accelerator.reduce(readable, "sum")
        return table.cpu().numpy(), readable.cpu().numpy() > 0


def validation_figures(
    logits: NDArray[np.float32], labels: NDArray[np.float32], loss: Loss, pos_weight: Tensor
) -> dict[str, Any]:
    """Return loss, macro F1 at 0.5, mAP and macro AUROC of logits and labels [N, K]; undefined ones are None.

    Raises `NotFiniteError` where the logits or their loss are infinite or NaN.
    """
    observed = not np.isnan(labels).all()
    mean_loss = (
        float(loss(torch.from_numpy(logits), torch.from_numpy(labels), pos_weight, None)) if observed else math.nan
    )
    if not np.isfinite(logits).all() or (observed and not math.isfinite(mean_loss)):
        raise NotFiniteError(
            "the logits of the validation images, or their loss, are infinite or NaN: try a lower --lr"
        )
    scores = torch.from_numpy(logits).double().sigmoid().numpy()
    figures = {
        "val_loss": mean_loss,
        "macro_f1": mean_defined(f1(count_decisions(labels, scores >= 0.5))),
        "macro_average_precision": mean_defined(average_precision(labels, scores)),
        "macro_auroc": mean_defined(auroc(labels, scores)),
    }
    return dict(nan_to_none(figures))
