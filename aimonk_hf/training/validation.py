"""Outputs of a network over all processes, and the validation figures of a network in training."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aimonk_hf.data.dataset import AttributeDataset
from aimonk_hf.data.image_cache import ImageCache
from aimonk_hf.errors import ImageError, NotFiniteError
from aimonk_hf.evaluation.metrics import auroc, average_precision, count_decisions, f1, mean_defined, nan_to_none
from aimonk_hf.modeling.devices import torch_network
from aimonk_hf.modeling.losses import Loss
from aimonk_hf.modeling.model import AimonkModel
from aimonk_hf.modeling.streaming import stream_outputs
from aimonk_hf.training.processes import Processes

# from normalised pixels [N, 3, H, W] to outputs [N, width]
Network = Callable[[Tensor], Tensor]


@dataclass
class Validator:
    """Compute outputs of networks for the validation images; each process computes its share, and all get the whole.

    `cache` holds the decoded images, made by the model's transform.
    """

    accelerator: Processes
    model: AimonkModel
    dataset: AttributeDataset
    batch_size: int
    cache: ImageCache | None

    def outputs(self, network: Network, width: int) -> tuple[Tensor, Tensor]:
        """Return the outputs [N, width] of a network in eval mode, and the readable images [N]."""
        accelerator, dataset = self.accelerator, self.dataset
        own = range(accelerator.process_index, len(dataset), accelerator.num_processes)
        computed = torch_network(partial(compute_outputs, accelerator, self.model, network), accelerator.device)
        sources, prepare = map(dataset.path, own), self.model.transform.pixels
        stream = stream_outputs(sources, prepare, computed, self.batch_size, cache=self.cache)
        outputs = zip(own, (found for _, found in stream), strict=True)
        read = ((row, torch.from_numpy(found)) for row, found in outputs if not isinstance(found, ImageError))
        return gather_outputs(accelerator, len(dataset), width, read)


def compute_outputs(accelerator: Processes, model: AimonkModel, network: Network, pixels: Tensor) -> Tensor:
    """Return the network's float32 outputs for pixels uint8 [N, 3, H, W], in the run's precision."""
    with torch.inference_mode(), accelerator.autocast():
        values = model.normalize(pixels.to(accelerator.device, non_blocking=True))
        outputs: Tensor = network(values.contiguous(memory_format=torch.channels_last)).float()
        return outputs


def gather_outputs(
    accelerator: Processes, n_rows: int, width: int, own: Iterable[tuple[Any, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Return outputs [n_rows, width] and a mask [n_rows] of those that some process has, in the host's memory.

    `own` yields (rows, outputs). The rows that no process has are 0.
    """
    table, known = torch.zeros(n_rows, width), torch.zeros(n_rows)
    for rows, outputs in own:
        table[rows], known[rows] = outputs.cpu(), 1
    return accelerator.sum_on_host(table), accelerator.sum_on_host(known) > 0


def validation_figures(
    logits: Tensor, labels: NDArray[np.float32], loss: Loss, pos_weight: Tensor, n_reported: int
) -> dict[str, float | None]:
    """Return loss, macro F1 at 0.5, mAP and macro AUROC of logits and labels [N, K]; undefined ones are None.

    The macro figures are of the first `n_reported` attributes, the others are auxiliary.

    Raises `NotFiniteError` where the logits or their loss are infinite or NaN.
    """
    observed = not np.isnan(labels).all()
    mean_loss = float(loss(logits, torch.from_numpy(labels), pos_weight, None)) if observed else math.nan
    if not torch.isfinite(logits).all() or (observed and not math.isfinite(mean_loss)):
        raise NotFiniteError(
            "The logits of the validation images, or their loss, are infinite or NaN: try a lower --lr"
        )
    scores, labels = logits[:, :n_reported].double().sigmoid().numpy(), labels[:, :n_reported]
    figures: dict[str, float | None] = nan_to_none(
        {
            "val_loss": mean_loss,
            "macro_f1": mean_defined(f1(count_decisions(labels, scores >= 0.5))),
            "macro_average_precision": mean_defined(average_precision(labels, scores)),
            "macro_auroc": mean_defined(auroc(labels, scores)),
        }
    )
    return figures
