"""The training loop: stages of epochs of optimiser steps over all processes, validation, and the state that a checkpoint holds."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from aimonk_hf.data.dataset import AttributeDataset
from aimonk_hf.data.image_cache import PixelCache
from aimonk_hf.data.images import shown_name
from aimonk_hf.errors import AimonkError, NotFiniteError, reason_of
from aimonk_hf.evaluation.metrics import nan_to_none
from aimonk_hf.modeling.devices import default_workers
from aimonk_hf.modeling.losses import positive_weights, smooth_labels
from aimonk_hf.modeling.model import AimonkModel
from aimonk_hf.modeling.weights import require_finite
from aimonk_hf.training.augmentation import augmentations_by_epoch
from aimonk_hf.training.batches import EpochBatches, TrainImages, balancing_weights, train_loader
from aimonk_hf.training.depthwise import DepthwiseGradients
from aimonk_hf.training.epoch_choice import best_epoch, epochs_without_gain, plateau_factor
from aimonk_hf.training.epoch_sums import EpochSums
from aimonk_hf.training.features import frozen_features
from aimonk_hf.training.freezing import freeze_parameters, set_train_mode
from aimonk_hf.training.mixing import BatchMix
from aimonk_hf.training.network_cut import WholeNetwork
from aimonk_hf.training.optimisation import (
    build_average,
    build_loss,
    build_optimizer,
    lr_factor,
    set_learning_rate,
    share_statistics,
)
from aimonk_hf.training.progress import write_line
from aimonk_hf.training.seeding import seed_everything
from aimonk_hf.training.settings import Stage, TrainConfig
from aimonk_hf.training.validation import gather_outputs, validation_figures

# Inputs (pixels uint8 [N, 3, H, W], or features [N, ...] of what is frozen), labels [N, K], rows [N].
Batch = tuple[Tensor, Tensor, Tensor]
State = dict[str, Any]


class Trainer:
    """One run's moving parts. `losses` holds the training loss of every step so far, `history` a row per epoch."""

    def __init__(
        self, config: TrainConfig, accelerator: Accelerator, model: AimonkModel, dataset: AttributeDataset
    ) -> None:
        self.config, self.accelerator, self.model, self.dataset = config, accelerator, model, dataset
        dataset.labels.check_observed("images to train on")
        labels = dataset.labels.values
        image_weights = balancing_weights(labels) if config.sampling == "balanced" else None
        weights = positive_weights(
            labels, config.pos_weight_power, config.pos_weight_cap, config.pos_weight_negatives, image_weights
        )
        self.pos_weight = torch.from_numpy(weights).to(accelerator.device)
        self.loss = build_loss(config)
        self.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        model.timm_model.to(accelerator.device).to(memory_format=self.memory_format)
        self.average = build_average(model.timm_model, config)
        augmentations = augmentations_by_epoch(config, model)
        self.images = TrainImages(dataset, augmentations, config.seed, self._cache(augmentations[0].fingerprint))
        self.eval_cache = self._cache(model.transform.fingerprint)
        n_processes, rank = accelerator.num_processes, accelerator.process_index
        self.batches = EpochBatches(
            len(dataset), config.batch_size, config.accumulation_steps, n_processes, rank, config.seed, image_weights
        )
        self.workers = default_workers(n_processes) if config.num_workers is None else config.num_workers
        pin_memory = accelerator.device.type == "cuda"
        self.loader: DataLoader[tuple[Tensor, Tensor, int]] = train_loader(
            self.images, self.batches, self.workers, pin_memory
        )
        self.epoch = self.step = self.stage = self.stage_epoch = 0
        self.epoch_sums = EpochSums()
        self.losses: list[float] = []
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Tensor] | None = None
        self.lost_images: set[str] = set()
        # the stage that `network` (all or the unfrozen part, as accelerate wraps it) and `optimizer` serve
        self._prepared: int | None = None
        self._begin_stage(0)

    def _cache(self, fingerprint: str) -> PixelCache | None:
        return PixelCache(self.dataset.images_dir, fingerprint) if self.config.image_cache else None

    @property
    def planned_steps(self) -> int:
        """Steps of the whole run, as far as no further stage ends early."""
        epochs_left = sum(stage.epochs for stage in self.config.stages[self.stage :]) - self.stage_epoch
        return self.step - self.epoch_sums.steps + epochs_left * self.batches.n_steps

    @property
    def finished(self) -> bool:
        """Whether no epoch is left."""
        return self.stage == len(self.config.stages)

    def _begin_stage(self, number: int) -> None:
        """Turn to a stage; a later one goes on from the best epoch where one is kept."""
        self.stage, self.stage_epoch = number, 0
        if not self.finished and self.best is not None:
            self._load_network(self.best)

    @property
    def _stage(self) -> Stage:
        return self.config.stages[self.stage]

    def _prepare(self) -> None:
        """Freeze what the stage freezes and give the rest a new optimiser."""
        self.accelerator.free_memory()
        network = self.model.timm_model
        freeze_parameters(network, self._stage.freeze)
        self.features = frozen_features(
            self.accelerator, self.model, self.images, self.config, self.stage, self.memory_format, self.workers
        )
        trained = WholeNetwork(network) if self.features is None else self.features.trained
        self.network, self.optimizer = self.accelerator.prepare(trained, build_optimizer(network, self.config))
        if hasattr(self.network, "broadcast_buffers"):
            self.network.broadcast_buffers = (
                False  # `share_statistics` gives all processes the same; DDP would copy those of the first
            )
        self._prepared = self.stage

    def prepare_epoch(self) -> None:
        """Begin the stage where it is new, and compute the features that the next epoch trains on; nothing is lost if this is interrupted."""
        start = time.perf_counter()
        if self._prepared != self.stage:
            self._prepare()
        # counted by plan: an earlier stage may have ended early
        self.batches.epoch = sum(stage.epochs for stage in self.config.stages[: self.stage]) + self.stage_epoch
        if self.features is not None:
            self.features.prepare(self.batches.epoch)
        self.epoch_sums.seconds += time.perf_counter() - start

    def train_epoch(self, after_step: Callable[[float | None, float], None]) -> dict[str, Any]:
        """Take one pass over the training images, or what is left of it; return its row of the history, without validation figures.

        `after_step` is called with the loss (None where no label was observed) and the learning rate of each step.
        """
        self.prepare_epoch()
        start = time.perf_counter()
        sums = self.epoch_sums
        self.batches.first_step = sums.steps
        set_train_mode(self.network)
        lowered = self._lowered()
        lr = 0.0
        batches: Iterator[Batch] = iter(self.loader) if self.features is None else self.features.batches(self.batches)
        for step in range(sums.steps, self.batches.n_steps):
            lr = lowered * self._scheduled(step)
            set_learning_rate(self.optimizer, lr)
            loss, observed = self._take_step(list(islice(batches, self.batches.passes(step))))
            if observed:
                self.losses.append(loss)
            now = time.perf_counter()
            sums.add(loss, observed, now - start)
            start = now
            after_step(loss if observed else None, lr)
        self.epoch += 1
        self._require_finite(f"the weights after epoch {self.epoch} (step {self.step})")
        self.epoch_sums = EpochSums()
        return sums.row(self.epoch, self.stage + 1, lr, len(self.dataset))

    def _require_finite(self, whose: str) -> None:
        for network in (self.model.timm_model, self.kept_network()):
            require_finite(network, whose)

    def _scheduled(self, step: int) -> float:
        """The stage's learning rate in a step of this epoch, as the schedule has it."""
        stage_step, stage_steps = (
            self.stage_epoch * self.batches.n_steps + step,
            self._stage.epochs * self.batches.n_steps,
        )
        return self._stage.lr * lr_factor(self.config.schedule, stage_step, stage_steps, self.config.warmup)

    def _lowered(self) -> float:
        """What plateaus of this stage have made of its learning rate."""
        if self.config.schedule != "plateau":
            return 1.0
        return plateau_factor(self._stage_rows(), self.config.plateau_factor, self.config.plateau_patience)

    def _stage_rows(self) -> list[dict[str, Any]]:
        return [row for row in self.history if row["stage"] == self.stage + 1]

    def end_epoch(self, row: dict[str, Any]) -> str | None:
        """Add the epoch to the history, keep its weights if they are the best, and begin the next stage where this one is over.

        Returns why the stage ended early, or None.
        """
        self.history.append(row)
        self.stage_epoch += 1
        metric, patience = self.config.metric_for_best_model, self.config.early_stopping_patience
        if metric != "none" and best_epoch(self.history, metric) == len(self.history) - 1:
            self.best = {
                name: tensor.detach().cpu().clone() for name, tensor in self.kept_network().state_dict().items()
            }
        watched = "val_loss" if metric == "none" else metric
        stopped = bool(patience) and epochs_without_gain(self._stage_rows(), watched) >= patience
        early = stopped and self.stage_epoch < self._stage.epochs
        reason = f"stage {self.stage + 1} ends early: no better {watched} for {patience} epochs" if early else None
        if stopped or self.stage_epoch == self._stage.epochs:
            self._begin_stage(self.stage + 1)
        return reason

    def _take_step(self, passes: list[Batch]) -> tuple[float, int]:
        """Take one optimiser step over all processes; return its loss and its number of observed labels.

        Without any observed label nothing changes: neither weights, nor averages, nor batch-norm statistics.
        """
        device = self.accelerator.device
        self._note_lost(
            self.dataset.labels.images[-1 - row] for _, _, rows in passes for row in rows.tolist() if row < 0
        )
        mixes = [self._mix(number, inputs) for number, (inputs, _, _) in enumerate(passes)]
        targets = [self._targets(labels, mix) for (_, labels, _), mix in zip(passes, mixes, strict=True)]
        counted = sum((~torch.isnan(labels)).sum() for labels in targets)
        observed = int(self.accelerator.reduce(torch.as_tensor(counted, device=device), "sum"))
        if not observed:
            self.step += 1
            return 0.0, 0
        seed_everything(self.config.seed, 2, self.step, self.accelerator.process_index)  # dropout and the like
        total = torch.zeros((), device=device)
        for number, ((inputs, _, _), labels, mix) in enumerate(zip(passes, targets, mixes, strict=True), start=1):
            with nullcontext() if number == len(passes) else self.accelerator.no_sync(self.network):
                logits = self._logits(inputs, mix)
                loss = self.loss(logits, labels.to(device), self.pos_weight, observed / self.accelerator.num_processes)
                self.accelerator.backward(loss)
            total += loss.detach()
        mean_loss = float(self.accelerator.reduce(total, "mean"))
        if not np.isfinite(mean_loss):
            names = [
                shown_name(self.dataset.labels.images[row])
                for _, _, rows in passes
                for row in rows.tolist()
                if row >= 0
            ]
            told = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            raise NotFiniteError(f"the loss of step {self.step} is {mean_loss}: try a lower --lr; the batch was {told}")
        if self.config.clip_grad:
            self.accelerator.clip_grad_norm_(self.network.parameters(), self.config.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        share_statistics(self.accelerator, self.network)
        self.step += 1
        if self.average is not None:
            self.average.update(self.model.timm_model, step=self.step)
        return mean_loss, observed

    def _mix(self, number: int, pixels: Tensor) -> BatchMix | None:
        if not (self.config.mixup or self.config.cutmix):
            return None
        random = np.random.default_rng([self.config.seed, 3, self.step, self.accelerator.process_index, number])
        height, width = pixels.shape[2:]
        return BatchMix(self.config.mixup, self.config.cutmix, height, width, random)

    def _targets(self, labels: Tensor, mix: BatchMix | None) -> Tensor:
        if self.config.label_smoothing:
            labels = smooth_labels(labels, self.config.label_smoothing)
        return labels if mix is None else mix.labels(labels)

    def _logits(self, inputs: Tensor, mix: BatchMix | None) -> Tensor:
        inputs = inputs.to(self.accelerator.device, non_blocking=True)
        if self.features is None:
            inputs = self.model.transform.normalize(inputs)
            if mix is not None:
                inputs = mix.pixels(inputs)
            inputs = inputs.contiguous(memory_format=self.memory_format)
        with DepthwiseGradients():
            logits: Tensor = self.network(inputs)
        return logits

    def _note_lost(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.lost_images:
                self.lost_images.add(name)
                write_line(f"{shown_name(name)} can no longer be read: its labels count nowhere from now on")

    def validate(self, validation: AttributeDataset) -> dict[str, Any]:
        """Return loss and macro figures of the kept network on the validation images; every image counts once, whatever the processes.

        Raises `NotFiniteError` where its outputs are infinite or NaN.
        """
        gather = partial(
            gather_outputs, accelerator=self.accelerator, transform=self.model.transform, dataset=validation
        )
        gather = partial(
            gather, memory_format=self.memory_format, batch_size=max(32, self.config.batch_size), cache=self.eval_cache
        )
        still = self.average is None or self.stage == 0  # an average of an earlier stage's weights goes on moving
        try:
            if (
                still
                and self._prepared == self.stage
                and self.features is not None
                and self.features.fit_for(len(validation))
            ):
                logits, readable = self.features.validation_logits(self.kept_network(), gather)
            else:
                logits, readable = gather(network=self.kept_network(), width=len(validation.attributes))
            if self.accelerator.is_main_process:
                self._note_lost(validation.labels.images[row] for row in np.flatnonzero(~readable))
            return validation_figures(
                logits[readable], validation.labels.values[readable], self.loss, self.pos_weight.cpu()
            )
        except NotFiniteError as error:
            raise NotFiniteError(f"epoch {self.epoch} (step {self.step}) cannot be validated: {error}") from error

    def kept_network(self) -> torch.nn.Module:
        """Return the network that the run keeps: the averaged one where there is one."""
        return self.average.module if self.average is not None else self.model.timm_model

    def finished_model(self) -> AimonkModel:
        """Return the model on the CPU, in eval mode, with the kept weights in the plain memory format: of the best epoch or of the last."""
        self.accelerator.free_memory()
        self.model.timm_model.load_state_dict(self.best or self.kept_network().state_dict())
        self.model.timm_model.requires_grad_(True)
        self.model.cpu().to(memory_format=torch.contiguous_format)
        return self.model.eval()

    def state(self) -> State:
        """Return all that the rest of the run depends on; random numbers and learning rates follow from the step."""
        scaler = self.accelerator.scaler
        return {
            **{name: getattr(self, name) for name in _PROGRESS},
            "epoch_sums": vars(self.epoch_sums),
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "history": nan_to_none(self.history),
            "network": self.model.timm_model.state_dict(),
            "average": None if self.average is None else self.average.module.state_dict(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict()
            if self._prepared == self.stage
            else None,  # a new stage starts with a new one
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def restore(self, state: State) -> None:
        """Go on from `state`; raises `AimonkError` where it is another network's."""
        try:
            self.model.timm_model.load_state_dict(state["network"])
            if self.average is not None:
                self.average.module.load_state_dict(state["average"] or state["network"])
        except RuntimeError as error:
            raise AimonkError(f"the checkpoint does not fit these settings: {reason_of(error)}") from error
        self._require_finite(f"the checkpoint of step {state['step']} (delete it to go on from the one before)")
        for name in _PROGRESS:
            setattr(self, name, state[name])
        self.epoch_sums = EpochSums(**state["epoch_sums"])
        self.history, self.best, self.losses = state["history"], state["best"], state["losses"].tolist()
        if state["optimizer"] is not None:
            self._prepare()
            self.optimizer.load_state_dict(state["optimizer"])
        if (
            self.accelerator.scaler is not None and state["scaler"]
        ):  # a run that went on in fp16 (--ignore-changes) begins with a new one
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def _load_network(self, weights: dict[str, Tensor]) -> None:
        self.model.timm_model.load_state_dict(weights)
        if self.average is not None:
            self.average.module.load_state_dict(weights)


_PROGRESS = ("epoch", "step", "stage", "stage_epoch")
