"""Several processes of one run: waiting, sharing scores, sharing the model."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import broadcast_object_list, gather_object
from numpy.typing import NDArray
from torch import Tensor

from aimonk_hf.evaluation.report import score_images
from aimonk_hf.modeling.model import AimonkModel

T = TypeVar("T")


class Processes(Accelerator):
    """An accelerator whose processes wait for each other without a timeout; one that ends is noticed at once.

    Figures of many images, or reading them from a slow disk, take longer than the timeout of a process group.
    """

    def __init__(self, **settings: Any) -> None:
        # `share_statistics` averages batch-norm statistics; DDP would copy those of the first process
        super().__init__(kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)], **settings)
        week = timedelta(days=7)
        self._patient: Any = dist.new_group(backend="gloo", timeout=week) if self.num_processes > 1 else None

    def wait_for_everyone(self) -> None:
        """Return when every process has called this."""
        if self._patient is not None:
            dist.barrier(group=self._patient)

    def sum_on_host(self, values: Tensor) -> Tensor:
        """Return the sum, over all processes, of a tensor in the host's memory, in place."""
        if self._patient is not None:
            dist.all_reduce(values, group=self._patient)
        return values

    def close(self) -> None:
        """End trackers and the group made here; the process group itself is left to the program."""
        for tracker in self.trackers:
            tracker.finish()
        if self._patient is not None:
            dist.destroy_process_group(self._patient)


def score_together(
    accelerator: Accelerator, model: AimonkModel, paths: list[Path]
) -> tuple[NDArray[np.float64], dict[Path, str]]:
    """Score images with the first process's model, as `score_images` does; each process scores its share."""
    rank, n_processes = accelerator.process_index, accelerator.num_processes
    hand_on(accelerator, model)
    own = score_images(model, paths[rank::n_processes], progress=accelerator.is_main_process)
    accelerator.wait_for_everyone()
    scores = np.full((len(paths), len(model.config.attributes)), np.nan)
    failures: dict[Path, str] = {}
    for number, (part, unread) in enumerate(gather_object([own])):
        scores[number::n_processes] = part
        failures |= unread
    return scores, failures


def compute_once(accelerator: Accelerator, compute: Callable[[], T]) -> T:
    """Return to every process the value that the first one computes, as long as that takes."""
    found: list[Any] = [compute() if accelerator.is_main_process else None]
    accelerator.wait_for_everyone()
    value: T = broadcast_object_list(found)[0]
    return value


def hand_on(accelerator: Accelerator, model: AimonkModel) -> None:
    """Give every process the first one's weights, thresholds and metrics, when it has come so far."""
    accelerator.wait_for_everyone()
    if accelerator.num_processes > 1:
        weights = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
        own = (weights, model.config, model.metrics)
        [(weights, model.config, model.metrics)] = broadcast_object_list([own])
        model.load_state_dict(weights)
