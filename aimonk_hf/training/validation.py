"""How a network in training stands on the validation images, over all processes."""

import math
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from aimonk_hf.data.dataset import AttributeDataset
from aimonk_hf.data.image_cache import PixelCache
from aimonk_hf.errors import ImageError, NotFiniteError
from aimonk_hf.evaluation.metrics import auroc, average_precision, count_decisions, f1, mean_defined, nan_to_none
from aimonk_hf.modeling.inference import stream_logits
from aimonk_hf.modeling.losses import Loss
from aimonk_hf.modeling.processing import EvalTransform

# Outputs [N, width], and which of the N images could be read; the rows of the others mean nothing.
Gathered = tuple[NDArray[np.float32], NDArray[np.bool_]]


def gather_outputs(
    accelerator: Accelerator,
    network: nn.Module,
    width: int,
    transform: EvalTransform,
    dataset: AttributeDataset,
    memory_format: torch.memory_format,
    batch_size: int,
    cache: PixelCache | None = None,
) -> Gathered:
    """Return the network's outputs [N, width] on every process, and which images could be read [N]; each process computes its share.

    The network is left in eval mode. A `cache` with the transform's fingerprint keeps the decoded pictures.
    """
    own = list(range(accelerator.process_index, len(dataset), accelerator.num_processes))
    table = torch.zeros(len(dataset), width, device=accelerator.device)
    readable = torch.zeros(len(dataset), device=accelerator.device)
    network.eval()

    def score(pixels: Tensor) -> Tensor:
        with torch.inference_mode(), accelerator.autocast():
            values = transform.normalize(pixels.to(accelerator.device)).contiguous(memory_format=memory_format)
            return network(values).float()

    paths = dataset.paths
    stream = stream_logits(
        (paths[row] for row in own),
        transform.pixels,
        score,
        batch_size,
        cache=cache,
        on_cpu=accelerator.device.type == "cpu",
    )
    for row, (_, outputs) in zip(own, stream, strict=True):
        if not isinstance(outputs, ImageError):
            table[row], readable[row] = outputs, 1
    accelerator.wait_for_everyone()  # however long the images of one process take
    table, readable = accelerator.reduce(table, "sum"), accelerator.reduce(readable, "sum")
    return table.cpu().numpy(), readable.cpu().numpy() > 0


def validation_figures(
    logits: NDArray[np.float32], labels: NDArray[np.float32], loss: Loss, pos_weight: Tensor
) -> dict[str, Any]:
    """Return loss, macro F1 at 0.5, macro average precision and macro AUROC of logits and labels [N, K], None where a figure is undefined.

    Raises `NotFiniteError` where the logits or their loss are infinite or NaN.
    """
    observed = not np.isnan(labels).all()
    mean_loss = (
        float(loss(torch.from_numpy(logits), torch.from_numpy(labels), pos_weight, None)) if observed else math.nan
    )
    if not np.isfinite(logits).all() or (observed and not math.isfinite(mean_loss)):
        raise NotFiniteError(
            "the logits of the validation images, or their loss, are not finite (infinite or NaN): try a lower --lr"
        )
    scores = torch.from_numpy(logits).double().sigmoid().numpy()
    figures = {
        "val_loss": mean_loss,
        "macro_f1": mean_defined(f1(count_decisions(labels, scores >= 0.5))),
        "macro_average_precision": mean_defined(average_precision(labels, scores)),
        "macro_auroc": mean_defined(auroc(labels, scores)),
    }
    return dict(nan_to_none(figures))
