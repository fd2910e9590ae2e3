"""The training loop: setup, stages, epochs, steps, validation, the choice of an epoch, checkpoints."""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from aimonk_hf.data.dataset import AttributeDataset
from aimonk_hf.data.image_cache import open_image_cache
from aimonk_hf.data.images import shown_name
from aimonk_hf.errors import AimonkError, NotFiniteError, reason_of
from aimonk_hf.modeling.losses import positive_weights, smooth_labels, with_soft_targets
from aimonk_hf.modeling.model import AimonkModel
from aimonk_hf.modeling.streaming import default_workers
from aimonk_hf.modeling.weights import require_finite
from aimonk_hf.training.augmentation import augmentations_by_epoch, mix_batch
from aimonk_hf.training.batches import Batch, EpochBatches, TrainImages, balancing_weights, image_loader
from aimonk_hf.training.callbacks import TrainCallback
from aimonk_hf.training.checkpoints import EpochSums, RunState, last_checkpoint, load_checkpoint, save_checkpoint
from aimonk_hf.training.epoch_choice import best_epoch, epochs_without_improvement, plateau_factor
from aimonk_hf.training.features import HeadFeatures, can_cache
from aimonk_hf.training.freezing import freeze_parameters, set_train_mode
from aimonk_hf.training.optimisation import build_loss, build_optimizer, load_optimizer, schedule_lr, share_statistics
from aimonk_hf.training.processes import Processes
from aimonk_hf.training.progress import ProgressBar, epoch_line, write_line
from aimonk_hf.training.run_directory import RunDirectory
from aimonk_hf.training.seeding import seed_everything
from aimonk_hf.training.settings import Stage, TrainConfig
from aimonk_hf.training.setup import autocast, machine_settings, reported_attributes, with_attributes
from aimonk_hf.training.stopping import StopRequest
from aimonk_hf.training.taken_steps import TakenStep, read_losses, steps_between_reads
from aimonk_hf.training.validation import Validator, validation_figures


@dataclass
class ActiveStage:
    """A stage's own parts: the network as accelerate wraps it (the head alone with `features`) and its optimiser."""

    number: int
    settings: Stage
    network: nn.Module
    optimizer: torch.optim.Optimizer
    features: HeadFeatures | None


class Trainer:
    """One run: the parts that stay the same through all stages, and its `state`."""

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Processes,
        model: AimonkModel,
        train_set: AttributeDataset,
        validation: AttributeDataset,
        soft_targets: NDArray[np.float32] | None = None,
    ) -> None:
        train_set.labels.check_observed("images to train on")
        self.config, self.accelerator, self.model, self.train_set = config, accelerator, model, train_set
        self.state, self.lost_images, self.saved_at = RunState(), set[str](), time.monotonic()
        labels, n_processes, rank = train_set.labels.values, accelerator.num_processes, accelerator.process_index
        image_weights = balancing_weights(labels) if config.sampling == "balanced" else None
        weights = positive_weights(
            labels, config.pos_weight_power, config.pos_weight_cap, config.pos_weight_negatives, image_weights
        )
        self.pos_weight = torch.from_numpy(weights).to(accelerator.device)
        self.loss = self.train_loss = build_loss(config)
        if soft_targets is not None:
            labels = np.concatenate([labels, soft_targets], axis=1)
            self.train_loss = with_soft_targets(self.loss, config.teacher_weight)
        self.mixes = bool(config.mixup or config.cutmix)
        self.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        self.reported = reported_attributes(config, train_set.attributes)
        model.timm_model.to(accelerator.device).to(memory_format=self.memory_format)
        # warmed up, so that early weights fade
        ema = partial(ModelEmaV3, decay=config.ema_decay, use_warmup=True)
        self.average = ema(model.timm_model) if config.ema_decay else None
        self.compiled: Any = torch.compile(model.timm_model) if config.compile else model.timm_model
        self.steps_between_reads = steps_between_reads(accelerator.device)
        augmentations = augmentations_by_epoch(config, model)
        cache = open_image_cache(config.image_cache, augmentations[0].fingerprint)
        self.images = TrainImages(train_set.paths, labels, augmentations, config.seed, cache)
        self.batches = EpochBatches(
            len(train_set), config.batch_size, config.accumulation_steps, n_processes, rank, config.seed, image_weights
        )
        self.workers = default_workers(n_processes) if config.num_workers is None else config.num_workers
        self.loader = image_loader(self.images, self.batches, self.workers, accelerator.device)
        cache = open_image_cache(config.image_cache, model.transform.fingerprint)
        self.validator = Validator(accelerator, model, validation, max(32, config.batch_size), cache)

    def fit(self, run: RunDirectory, callbacks: Sequence[TrainCallback] = ()) -> None:
        """Train the epochs that are left, from the last checkpoint where the run is resumed."""
        accelerator, config, is_main = self.accelerator, self.config, self.accelerator.is_main_process
        stage = self.resume(run) if config.resume else None
        if is_main:
            run.write_config(self.resolved_settings())
        progress = ProgressBar(self.planned_steps, self.state.step, quiet=not is_main)

        def after_steps(steps: list[TakenStep]) -> None:
            for step in steps:
                progress.after_step(step.loss, step.lr)
                for callback in callbacks:
                    callback.on_step(step.number, step.loss, step.lr)
            asked = stop.asked()
            due = asked or 0 < 60 * config.checkpoint_minutes <= time.monotonic() - self.saved_at
            if due and self.state.epoch_sums.steps < self.batches.n_steps:  # else the epoch's checkpoint follows
                self.save(run, stage)
                if asked:
                    stop.leave()

        with closing(progress):
            while not self.finished:
                if stage is None or stage.number != self.state.stage:
                    stage = self.begin_stage()
                self.prepare_epoch(stage)  # a signal ends the run at once here: every trained step is saved
                with StopRequest(accelerator) as stop:
                    try:
                        row = self.train_epoch(stage, after_steps)
                        if len(self.validator.dataset):
                            row |= self.validate(stage)
                    except NotFiniteError as error:
                        raise NotFiniteError(f"{error}; {self._advice(run)}") from error
                    ended_early = self.end_epoch(row)
                    if is_main:
                        write_line(epoch_line(row, config.n_epochs, len(config.stages)) + ended_early)
                        run.write_history(self.state.history)
                    self.save(run, stage)
                    if stop.asked():
                        stop.leave()
                progress.skip_to(self.state.step, self.planned_steps)
                logged = {name: value for name, value in row.items() if value is not None}
                del logged["epoch"], logged["stage"]
                accelerator.log(logged, step=self.state.step)
                for callback in callbacks:
                    callback.on_epoch(row)
                accelerator.wait_for_everyone()

    @property
    def finished(self) -> bool:
        """Return whether no epoch is left."""
        return self.state.stage == len(self.config.stages)

    @property
    def planned_steps(self) -> int:
        """Steps of the whole run, as far as no further stage ends early."""
        epochs_left = sum(stage.epochs for stage in self.config.stages[self.state.stage :]) - self.state.stage_epoch
        return self.state.step - self.state.epoch_sums.steps + epochs_left * self.batches.n_steps

    def begin_stage(self) -> ActiveStage:
        """Freeze what the stage freezes and give the rest a new optimiser."""
        self.accelerator.free_memory()
        number, config, network = self.state.stage, self.config, self.model.timm_model
        settings, epochs = config.stages[number], self._planned_epochs(number)
        freeze_parameters(network, settings.freeze)
        features = None
        wanted = settings.freeze == "backbone" and config.feature_views and not self.mixes
        if wanted and can_cache(self.model, len(self.train_set) + len(self.validator.dataset)):
            features = HeadFeatures(
                self.accelerator, self.model, self.images, epochs, config.feature_views, config.batch_size, self.workers
            )
        # a new shell each time: accelerate marks what it has prepared, and does so only once
        trained = nn.Sequential(self.compiled if features is None else features.head)
        prepared, optimizer = self.accelerator.prepare(trained, build_optimizer(network, config))
        return ActiveStage(number, settings, prepared, optimizer, features)

    def prepare_epoch(self, stage: ActiveStage) -> None:
        """Turn to the next epoch's images, and compute their features where the stage caches them."""
        start = time.perf_counter()
        self.batches.epoch = self._planned_epochs(stage.number)[self.state.stage_epoch]
        if stage.features is not None:
            stage.features.prepare(self.batches.epoch)
        self.state.epoch_sums.seconds += time.perf_counter() - start

    def _planned_epochs(self, number: int) -> range:
        """Return the epochs of a stage, as if no stage ended early."""
        earlier = sum(stage.epochs for stage in self.config.stages[:number])
        return range(earlier, earlier + self.config.stages[number].epochs)

    def train_epoch(self, stage: ActiveStage, after_steps: Callable[[list[TakenStep]], None]) -> dict[str, Any]:
        """Take the rest of a pass over the training images; return its row of the history, without validation figures.

        `after_steps` is called with steps whose losses were read: one on a CPU, several on an accelerator.
        """
        config, state, sums, n_steps = self.config, self.state, self.state.epoch_sums, self.batches.n_steps
        start = time.perf_counter()
        self.batches.first_step = sums.steps
        set_train_mode(stage.network)
        highest, lr, taken = stage.settings.lr, 0.0, list[TakenStep]()
        if config.schedule == "plateau":
            highest *= plateau_factor(self._stage_rows(), config.plateau_factor, config.plateau_patience)
        batches = iter(self.loader) if stage.features is None else stage.features.batches(self.batches)
        for step in range(sums.steps, n_steps):
            done, total = state.stage_epoch * n_steps + step, stage.settings.epochs * n_steps
            lr = schedule_lr(stage.optimizer, config, highest, done, total)
            taken.append(self._take_step(stage, list(islice(batches, self.batches.passes(step))), lr))
            if len(taken) == self.steps_between_reads or step == n_steps - 1:
                read_losses(taken)
                state.losses += [one.loss for one in taken if one.loss is not None]
                now = time.perf_counter()
                for one in taken:
                    sums.add(one.loss or 0.0, one.observed, (now - start) / len(taken))
                start = now
                after_steps(taken)
                taken = []
        state.epoch, state.epoch_sums = state.epoch + 1, EpochSums()
        self._require_finite(f"the weights after epoch {state.epoch} (step {state.step})")
        return sums.row(state.epoch, stage.number + 1, lr, len(self.train_set))

    def _stage_rows(self) -> list[dict[str, Any]]:
        return [row for row in self.state.history if row["stage"] == self.state.stage + 1]

    def _take_step(self, stage: ActiveStage, passes: list[Batch], lr: float) -> TakenStep:
        """Take one optimiser step over all processes; its loss stays on the device.

        Without any observed label nothing changes: neither weights, nor averages, nor batch-norm statistics.
        """
        accelerator, config, state, names = self.accelerator, self.config, self.state, self.train_set.labels.images
        given = [row for *_, rows in passes for row in rows.tolist()]
        self._note_lost(names[-1 - row] for row in given if row < 0)
        counted = torch.tensor(sum(self._observed(targets) for _, targets, _ in passes))
        observed = float(accelerator.sum_on_host(counted))
        total = torch.zeros((), device=accelerator.device)
        taken = TakenStep(state.step + 1, lr, [names[row] for row in given if row >= 0], observed, total)
        if not observed:
            state.step += 1
            return taken
        seed_everything(config.seed, 2, state.step, accelerator.process_index)  # dropout, mixing and the like
        for number, (inputs, given_targets, _) in enumerate(passes, start=1):
            with nullcontext() if number == len(passes) else accelerator.no_sync(stage.network):
                values, targets = self._on_device(stage, inputs, given_targets)
                with autocast(accelerator):
                    logits = stage.network(values)
                loss = self.train_loss(logits, targets, self.pos_weight, observed / accelerator.num_processes)
                accelerator.backward(loss)
            total += loss.detach()
        taken.on_device = accelerator.reduce(total, "mean")
        if config.clip_grad:
            accelerator.clip_grad_norm_(stage.network.parameters(), config.clip_grad)
        stage.optimizer.step()
        stage.optimizer.zero_grad()
        share_statistics(accelerator, stage.network)
        state.step += 1
        if self.average is not None:
            self.average.update(self.model.timm_model, step=state.step)
        return taken

    def _note_lost(self, names: Iterable[str]) -> None:
        for name in sorted(set(names) - self.lost_images):
            self.lost_images.add(name)
            write_line(f"{shown_name(name)} can no longer be read: its labels count nowhere from now on")

    def _observed(self, targets: Tensor) -> float:
        """Return the number of observed labels, and of soft targets as often as their weight says."""
        missing = torch.isnan(targets)
        if self.mixes:
            missing |= missing.roll(1, 0)  # torchvision mixes each image with the one before it
        labels, *soft = (~missing).split(len(self.pos_weight), dim=1)
        return int(labels.sum()) + self.config.teacher_weight * sum(int(one.sum()) for one in soft)

    def _on_device(self, stage: ActiveStage, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return normalised pixels (or features) and targets of a pass, smoothed and mixed as the settings say."""
        config, device = self.config, self.accelerator.device
        inputs, targets = inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)
        if config.label_smoothing:
            labels, *soft = targets.split(len(self.pos_weight), dim=1)
            targets = torch.cat([smooth_labels(labels, config.label_smoothing), *soft], dim=1)
        if stage.features is not None:
            return inputs, targets
        pixels = self.model.normalize(inputs)
        if self.mixes:
            pixels, targets = mix_batch(pixels, targets, config.mixup, config.cutmix)
        return pixels.contiguous(memory_format=self.memory_format), targets

    def validate(self, stage: ActiveStage) -> dict[str, Any]:
        """Return loss and macro figures of the kept network on the validation images."""
        kept, dataset = self.kept_network.eval(), self.validator.dataset
        try:
            # an EMA that began in an earlier stage still moves in the backbone
            if stage.features is not None and (self.average is None or stage.number == 0):
                logits, readable = stage.features.validation_logits(kept, self.validator)
            else:
                logits, readable = self.validator.outputs(kept, len(dataset.attributes))
            if self.accelerator.is_main_process:
                self._note_lost(dataset.labels.images[row] for row in torch.nonzero(~readable).flatten().tolist())
            labels = dataset.labels.values[readable.numpy()]
            return validation_figures(logits[readable], labels, self.loss, self.pos_weight.cpu(), len(self.reported))
        except NotFiniteError as error:
            where = f"epoch {self.state.epoch} (step {self.state.step})"
            raise NotFiniteError(f"{where} cannot be validated: {error}") from error

    def end_epoch(self, row: dict[str, Any]) -> str:
        """Add the epoch to the history, keep its weights if they are the best, and turn to the next stage at its end.

        A later stage starts from the best epoch where one is kept. Returns a line on a stage that ended early.
        """
        state, metric, patience = self.state, self.config.metric_for_best_model, self.config.early_stopping_patience
        state.history.append(row)
        state.stage_epoch += 1
        if metric != "none" and best_epoch(state.history, metric) == len(state.history) - 1:
            weights = self.kept_network.state_dict()
            state.best = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
        watched = "val_loss" if metric == "none" else metric
        stopped = patience and epochs_without_improvement(self._stage_rows(), watched) >= patience
        over = state.stage_epoch == self.config.stages[state.stage].epochs
        if stopped or over:
            state.stage, state.stage_epoch = state.stage + 1, 0
            if not self.finished and state.best is not None:
                for network in {self.model.timm_model, self.kept_network}:
                    network.load_state_dict(state.best)
        early = stopped and not over
        return f"\nstage {row['stage']} ends early: no better {watched} for {patience} epochs" if early else ""

    @property
    def kept_network(self) -> nn.Module:
        """The network that the run keeps: the EMA where there is one."""
        return self.model.timm_model if self.average is None else self.average.module

    def save(self, run: RunDirectory, stage: ActiveStage | None) -> None:
        """Write a checkpoint of all that the rest of the run depends on."""
        if not self.accelerator.is_main_process:
            return
        same_stage = stage if stage is not None and stage.number == self.state.stage else None
        weights = {
            "network": self.model.timm_model.state_dict(),
            "average": self.average and self.average.module.state_dict(),
            "optimizer": same_stage and same_stage.optimizer.state_dict(),  # a new stage starts with a new one
            "scaler": (scaler := self.accelerator.scaler) and scaler.state_dict(),
        }
        self.saved_at = self.state.count_seconds(self.saved_at)
        save_checkpoint(run.checkpoints, self.state.step, self.state.to_dict() | weights)

    def resume(self, run: RunDirectory) -> ActiveStage | None:
        """Take over the last checkpoint, if there is one; return its stage where that has begun."""
        saved, accelerator = load_checkpoint(run.checkpoints), self.accelerator
        if len(set(gather_object([saved and saved["step"]]))) > 1:
            raise AimonkError(
                f"The processes found different checkpoints in {run.checkpoints}: machines must share the run directory"
            )
        if saved is None:
            accelerator.print(f"no checkpoint in {run.checkpoints}: starting afresh")
            return None
        try:
            self.model.timm_model.load_state_dict(saved["network"])
            if self.average is not None:
                self.average.module.load_state_dict(saved["average"] or saved["network"])
        except RuntimeError as error:
            raise AimonkError(f"The checkpoint does not fit these settings: {reason_of(error)}") from error
        self._require_finite(f"the checkpoint of step {saved['step']} (delete it to resume from the one before)")
        self.state = RunState.from_dict(saved)
        if accelerator.scaler is not None and saved["scaler"]:  # none of a run that began in another precision
            accelerator.scaler.load_state_dict(saved["scaler"])
        if self.finished:
            accelerator.print(f"all epochs were already trained ({self.state.epoch}): no step is left, only the report")
            return None
        steps = self.state.epoch_sums.steps
        within = f", step {steps} of {self.batches.n_steps}" if steps else ""
        accelerator.print(f"Continuing after epoch {self.state.epoch} of {self.config.n_epochs}{within}")
        if saved["optimizer"] is None:
            return None
        stage = self.begin_stage()
        load_optimizer(stage.optimizer, saved["optimizer"])
        return stage

    def finished_model(self) -> AimonkModel:
        """Return the model of the reported attributes, with the weights of the best epoch or of the last."""
        self.accelerator.free_memory()
        self.model.timm_model.load_state_dict(self.state.best or self.kept_network.state_dict())
        self.model.timm_model.requires_grad_(True)
        self.model.to(memory_format=torch.contiguous_format)
        return with_attributes(self.model, self.reported).eval()

    def resolved_settings(self) -> dict[str, Any]:
        """Return what "auto" and the defaults came to, for train_config.json."""
        return {
            **machine_settings(self.accelerator),
            "num_workers": self.workers,
            "image_size": list(self.model.transform.size),
            "pos_weight": dict(zip(self.train_set.attributes, self.pos_weight.tolist(), strict=True)),
        }

    def _require_finite(self, whose: str) -> None:
        for network in (self.model.timm_model, self.kept_network):
            require_finite(network, whose)

    def _advice(self, run: RunDirectory) -> str:
        fp16 = self.accelerator.mixed_precision == "fp16"
        narrow = "fp16 overflows early, try --mixed-precision float32; " if fp16 else ""
        if kept := last_checkpoint(run.checkpoints):
            return f"{narrow}the last good checkpoint is {kept}: --resume --ignore-changes continues from it"
        return f"{narrow}there is no checkpoint yet"
