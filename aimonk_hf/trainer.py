"""The training loop: epochs of optimiser steps over all processes, validation, and the state that a checkpoint holds."""

import time
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from aimonk_hf.batches import EpochBatches, TrainImages, train_loader
from aimonk_hf.data import AttributeDataset
from aimonk_hf.devices import default_workers
from aimonk_hf.errors import AimonkError, ImageError
from aimonk_hf.inference import stream_logits
from aimonk_hf.losses import masked_bce_with_logits
from aimonk_hf.metrics import auroc, average_precision, count_decisions, f1, mean_defined, nan_to_none
from aimonk_hf.modeling import AimonkModel
from aimonk_hf.optimisation import build_average, build_optimizer, lr_factor, set_learning_rate
from aimonk_hf.processing import train_transform
from aimonk_hf.seeding import seed_everything
from aimonk_hf.train_config import TrainConfig

Batch = tuple[Tensor, Tensor, Tensor]  # pixels uint8 [N, 3, H, W], labels [N, K], rows [N]


class Trainer:
    """One run's moving parts. `losses` holds the training loss of every step so far, `history` a row per epoch."""

    def __init__(
        self, config: TrainConfig, accelerator: Accelerator, model: AimonkModel, dataset: AttributeDataset, pos_weight: NDArray[np.float32]
    ) -> None:
        self.config, self.accelerator, self.model, self.dataset = config, accelerator, model, dataset
        self.pos_weight = torch.from_numpy(pos_weight).to(accelerator.device)
        self.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        model.timm_model.to(accelerator.device).to(memory_format=self.memory_format)
        self.average = build_average(model.timm_model, config)
        optimizer = build_optimizer(model.timm_model, config)
        self.batches = EpochBatches(
            len(dataset), config.batch_size, config.accumulation_steps, accelerator.num_processes, accelerator.process_index, config.seed
        )
        self.total_steps = self.batches.n_steps * config.epochs
        self.network, self.optimizer = accelerator.prepare(model, optimizer)
        self.loader = self._make_loader()
        self.epoch = self.step = 0
        self.losses: list[float] = []
        self.history: list[dict[str, Any]] = []
        self.lost_images: set[str] = set()

    def _make_loader(self) -> DataLoader[tuple[Tensor, Tensor, int]]:
        images = TrainImages(self.dataset, train_transform(self.config.augmentation, self.model.transform), self.config.seed)
        workers = self.config.num_workers
        if workers is None:
            workers = default_workers(self.accelerator.num_processes)
        return train_loader(images, self.batches, workers, pin_memory=self.accelerator.device.type == "cuda")

    def train_epoch(self, progress: "tqdm[Any]") -> dict[str, Any]:
        """Take one pass over the training images; return the epoch's row of the history, without its validation figures."""
        self.batches.epoch = self.epoch
        self.network.train()
        start, loss_sum, observed_sum, skipped = time.perf_counter(), 0.0, 0, 0
        lr = 0.0
        batches: Iterator[Batch] = iter(self.loader)
        for step in range(self.batches.n_steps):
            lr = set_learning_rate(self.optimizer, lr_factor(self.config.schedule, self.step, self.total_steps, self.config.warmup))
            loss, observed = self._take_step(list(islice(batches, self.batches.passes(step))))
            loss_sum, observed_sum, skipped = loss_sum + loss * observed, observed_sum + observed, skipped + (observed == 0)
            if observed:
                self.losses.append(loss)
                progress.set_postfix(loss=f"{loss:.3f}", refresh=False)
            progress.update()
        seconds = time.perf_counter() - start
        self.epoch += 1
        return {
            "epoch": self.epoch,
            "stage": 1,
            "lr": lr,
            "train_loss": loss_sum / observed_sum if observed_sum else float("nan"),
            "seconds": seconds,
            "images_per_second": len(self.dataset) / seconds,
            "skipped_steps": skipped,
        }

    def _take_step(self, passes: list[Batch]) -> tuple[float, int]:
        """Take one optimiser step over all processes; return its loss and its number of observed labels.

        Without any observed label nothing changes: neither weights, nor averages, nor batch-norm statistics.
        """
        device = self.accelerator.device
        self._note_lost(passes)
        counted = sum((~torch.isnan(labels)).sum() for _, labels, _ in passes)
        observed = int(self.accelerator.reduce(torch.as_tensor(counted, device=device), "sum"))
        if not observed:
            self.step += 1
            return 0.0, 0
        seed_everything(self.config.seed, 2, self.step, self.accelerator.process_index)  # dropout and the like
        total = torch.zeros((), device=device)
        for number, (pixels, labels, _) in enumerate(passes, start=1):
            with nullcontext() if number == len(passes) else self.accelerator.no_sync(self.network):
                values = self.model.transform.normalize(pixels.to(device, non_blocking=True)).contiguous(memory_format=self.memory_format)
                logits = self.network(values).logits
                loss = masked_bce_with_logits(logits, labels.to(device), self.pos_weight, observed / self.accelerator.num_processes)
                self.accelerator.backward(loss)
            total += loss.detach()
        mean_loss = float(self.accelerator.reduce(total, "mean"))
        if not np.isfinite(mean_loss):
            names = [self.dataset.labels.images[row] for _, _, rows in passes for row in rows.tolist() if row >= 0]
            raise AimonkError(f"the loss of step {self.step} is {mean_loss}: try a lower --lr; the batch was {', '.join(names)}")
        if self.config.clip_grad:
            self.accelerator.clip_grad_norm_(self.network.parameters(), self.config.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        if self.average is not None:
            self.average.update(self.model.timm_model, step=self.step)
        return mean_loss, observed

    def _note_lost(self, passes: list[Batch]) -> None:
        for row in (row for _, _, rows in passes for row in rows.tolist() if row < 0):
            name = self.dataset.labels.images[-1 - row]
            if name not in self.lost_images:
                self.lost_images.add(name)
                tqdm.write(f"{name} can no longer be read: its labels count nowhere from now on")

    def validate(self, validation: AttributeDataset) -> dict[str, float]:
        """Return loss, macro F1 at 0.5, macro average precision and macro AUROC; every image counts once, whatever the processes."""
        logits = self._gather_logits(validation)
        readable = ~np.isnan(logits).any(axis=1)
        logits, labels = logits[readable], validation.labels.values[readable]
        loss = masked_bce_with_logits(torch.from_numpy(logits), torch.from_numpy(labels), self.pos_weight.cpu())
        scores = torch.from_numpy(logits).double().sigmoid().numpy()
        return {
            "val_loss": float(loss),
            "macro_f1": mean_defined(f1(count_decisions(labels, scores >= 0.5))),
            "macro_average_precision": mean_defined(average_precision(labels, scores)),
            "macro_auroc": mean_defined(auroc(labels, scores)),
        }

    def _gather_logits(self, validation: AttributeDataset) -> NDArray[np.float32]:
        """Return logits [N, K] on every process; each scores its share of the rows."""
        own = list(range(self.accelerator.process_index, len(validation), self.accelerator.num_processes))
        network = self.kept_network()
        width = len(validation.attributes)
        table = torch.zeros(len(validation), width, device=self.accelerator.device)
        was_training = network.training
        network.eval()

        def score(pixels: Tensor) -> Tensor:
            with torch.inference_mode(), self.accelerator.autocast():
                values = self.model.transform.normalize(pixels.to(self.accelerator.device)).contiguous(memory_format=self.memory_format)
                return network(values).float()

        paths = validation.paths
        stream = stream_logits((paths[row] for row in own), self.model.transform.pixels, score, max(32, self.config.batch_size))
        for row, (_, logits) in zip(own, stream, strict=True):
            table[row] = torch.nan if isinstance(logits, ImageError) else logits
        network.train(was_training)
        gathered: Tensor = self.accelerator.reduce(table, "sum")
        return gathered.cpu().numpy()

    def kept_network(self) -> torch.nn.Module:
        """Return the network that the run keeps: the averaged one where there is one."""
        return self.average.module if self.average is not None else self.model.timm_model

    def finished_model(self) -> AimonkModel:
        """Return the model on the CPU, in eval mode, with the kept weights in the plain memory format."""
        self.accelerator.unwrap_model(self.network, keep_fp32_wrapper=False)  # gives back the plain forward, without autocast
        self.model.timm_model.load_state_dict(self.kept_network().state_dict())
        self.model.cpu().to(memory_format=torch.contiguous_format)
        return self.model.eval()

    def state(self) -> dict[str, Any]:
        """Return all that the rest of the run depends on; random numbers and learning rates follow from the step."""
        scaler = self.accelerator.scaler
        return {
            "epoch": self.epoch,
            "step": self.step,
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "history": nan_to_none(self.history),
            "network": self.model.timm_model.state_dict(),
            "average": None if self.average is None else self.average.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.epoch, self.step, self.history = state["epoch"], state["step"], state["history"]
        self.losses = state["losses"].tolist()
        self.model.timm_model.load_state_dict(state["network"])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
