"""How a network in training stands on the validation images, over all processes."""

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from aimonk_hf.data.dataset import AttributeDataset
from aimonk_hf.data.pixel_cache import PixelCache
from aimonk_hf.errors import ImageError
from aimonk_hf.judging.metrics import auroc, average_precision, count_decisions, f1, mean_defined
from aimonk_hf.model.inference import stream_logits
from aimonk_hf.model.losses import Loss
from aimonk_hf.model.processing import EvalTransform


def gather_outputs(
    accelerator: Accelerator,
    network: nn.Module,
    width: int,
    transform: EvalTransform,
    dataset: AttributeDataset,
    memory_format: torch.memory_format,
    batch_size: int,
    cache: PixelCache | None = None,
) -> NDArray[np.float32]:
    """Return the network's outputs [N, width] on every process, NaN rows where an image cannot be read; each process computes its share.

    The network is left in eval mode. A `cache` with the transform's fingerprint keeps the decoded pictures.
    """
    own = list(range(accelerator.process_index, len(dataset), accelerator.num_processes))
    table = torch.zeros(len(dataset), width, device=accelerator.device)
    network.eval()

    def score(pixels: Tensor) -> Tensor:
        with torch.inference_mode(), accelerator.autocast():
            values = transform.normalize(pixels.to(accelerator.device)).contiguous(memory_format=memory_format)
            return network(values).float()

    paths = dataset.paths
    stream = stream_logits(
        (paths[row] for row in own), transform.pixels, score, batch_size, cache=cache, on_cpu=accelerator.device.type == "cpu"
    )
    for row, (_, outputs) in zip(own, stream, strict=True):
        table[row] = torch.nan if isinstance(outputs, ImageError) else outputs
    gathered: Tensor = accelerator.reduce(table, "sum")
    return gathered.cpu().numpy()


def validation_figures(logits: NDArray[np.float32], labels: NDArray[np.float32], loss: Loss, pos_weight: Tensor) -> dict[str, float]:
    """Return loss, macro F1 at 0.5, macro average precision and macro AUROC of logits and labels [N, K]; rows of NaN logits are left out."""
    readable = ~np.isnan(logits).any(axis=1)
    logits, labels = logits[readable], labels[readable]
    scores = torch.from_numpy(logits).double().sigmoid().numpy()
    return {
        "val_loss": float(loss(torch.from_numpy(logits), torch.from_numpy(labels), pos_weight, None)),
        "macro_f1": mean_defined(f1(count_decisions(labels, scores >= 0.5))),
        "macro_average_precision": mean_defined(average_precision(labels, scores)),
        "macro_auroc": mean_defined(auroc(labels, scores)),
    }
