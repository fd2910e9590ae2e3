"""The epochs of a run: a model from settings, steps with checkpoints and progress, a line and a history row after each epoch."""

import copy
import time
from contextlib import closing
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from aimonk_hf.console import duration, figure
from aimonk_hf.data.dataset import AttributeDataset
from aimonk_hf.errors import AimonkError, NotFiniteError, reason_of
from aimonk_hf.modeling.backbones import REFUSALS, cannot_compute
from aimonk_hf.modeling.devices import explain_failure
from aimonk_hf.modeling.model import AimonkModel
from aimonk_hf.training.augmentation import sizes_by_epoch
from aimonk_hf.training.checkpoints import last_checkpoint, load_checkpoint, save_checkpoint
from aimonk_hf.training.depthwise import DepthwiseGradients
from aimonk_hf.training.freezing import freeze_parameters, set_train_mode
from aimonk_hf.training.loop import Trainer
from aimonk_hf.training.optimisation import build_optimizer, unusable_optimizer
from aimonk_hf.training.progress import TrainingProgress, write_line
from aimonk_hf.training.run_directory import RunFolder
from aimonk_hf.training.settings import TrainConfig
from aimonk_hf.training.stopping import StopRequest


def build_model(config: TrainConfig, attributes: list[str]) -> AimonkModel:
    """Return a model with a fresh head of one output per attribute, as the settings say."""
    rates = {"drop_rate": config.drop_rate, "drop_path_rate": config.drop_path_rate}
    return AimonkModel.from_timm(
        config.architecture,
        attributes,
        pretrained=config.pretrained,
        image_size=config.image_size,
        preprocessing=config.preprocessing(),
        **{name: rate for name, rate in rates.items() if rate is not None},
    )


def try_steps(config: TrainConfig, accelerator: Accelerator, model: AimonkModel) -> None:
    """Take a step of each stage with a copy of the network on two random images, so that a refusal comes before the images are read.

    The model stays as it is; random numbers are drawn, so seed afterwards. Raises `AimonkError` with the reason of timm or torch.
    """
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    network = copy.deepcopy(model.timm_model).to(accelerator.device).to(memory_format=memory_format)
    epochs = iter(sizes_by_epoch(config, model))
    for stage in config.stages:
        freeze_parameters(network, stage.freeze)
        optimizer = build_optimizer(network, config)
        set_train_mode(network)
        for size in dict.fromkeys(islice(epochs, stage.epochs)):
            try:
                with accelerator.autocast(), DepthwiseGradients():
                    logits = network(
                        torch.randn(2, 3, *size, device=accelerator.device).contiguous(memory_format=memory_format)
                    )
                logits.float().mean().backward()
            except REFUSALS as error:
                raise _why_no_step(config, model, size, error) from error
        try:
            optimizer.step()
        except REFUSALS as error:
            raise unusable_optimizer(config, error) from error
        optimizer.zero_grad()


def _why_no_step(config: TrainConfig, model: AimonkModel, size: tuple[int, int], error: Exception) -> AimonkError:
    if explained := explain_failure(error, config.batch_size, size[0]):
        return explained
    if size == model.transform.size:
        return cannot_compute(model.config.architecture, size, error)
    found = f"{model.config.architecture} cannot compute training images of {size[0]} x {size[1]} pixels ({reason_of(error)})"
    return AimonkError(f"{found}: --train-scale 1,1 keeps them at the image size")


def fit(trainer: Trainer, run: RunFolder, validation: AttributeDataset) -> None:
    """Run the epochs that are left, from the last checkpoint where the run is resumed."""
    accelerator, config = trainer.accelerator, trainer.config
    _warn_one_sided(trainer)
    if config.resume:
        _resume(trainer, run)
    if accelerator.is_main_process:
        run.write_config(resolved_settings(trainer))
    progress = TrainingProgress(trainer.planned_steps, trainer.step, quiet=not accelerator.is_main_process)
    saved_at = time.monotonic()

    def after_step(loss: float | None, lr: float) -> None:
        nonlocal saved_at
        progress.after_step(loss, lr)
        due = config.checkpoint_minutes and time.monotonic() - saved_at >= 60 * config.checkpoint_minutes
        within_epoch = (
            trainer.epoch_sums.steps < trainer.batches.n_steps
        )  # else the one after the epoch follows at once
        stop.agree(accelerator)
        if (due or stop.asked) and within_epoch:
            if accelerator.is_main_process:
                save_checkpoint(run.checkpoints, trainer.step, trainer.state())
            saved_at = time.monotonic()
            stop.leave_if_asked(accelerator)

    with closing(progress):
        while not trainer.finished:
            trainer.prepare_epoch()  # a signal ends the run at once here: all that was trained is saved
            with StopRequest() as stop:
                try:
                    row = trainer.train_epoch(after_step)
                    if len(validation):
                        row |= trainer.validate(validation)
                except NotFiniteError as error:
                    narrow = (
                        "fp16 overflows early, try --mixed-precision no; "
                        if accelerator.mixed_precision == "fp16"
                        else ""
                    )
                    raise NotFiniteError(f"{error}; {narrow}{_where_to_go_on(run)}") from error
                ended_early = trainer.end_epoch(row)
                if accelerator.is_main_process:
                    write_line(_epoch_line(row, config))
                    if ended_early:
                        write_line(ended_early)
                    run.write_history(trainer.history)
                    save_checkpoint(run.checkpoints, trainer.step, trainer.state())
                saved_at = time.monotonic()
                stop.agree(accelerator)
                stop.leave_if_asked(accelerator)
            progress.skip_to(trainer.step, trainer.planned_steps)
            accelerator.log(
                {key: value for key, value in row.items() if key not in ("epoch", "stage") and value is not None},
                step=trainer.step,
            )
            accelerator.wait_for_everyone()


def _resume(trainer: Trainer, run: RunFolder) -> None:
    state = load_checkpoint(run.checkpoints)
    if len(set(gather_object([state and state["step"]]))) > 1:
        raise AimonkError(
            f"the processes found different checkpoints in {run.checkpoints}: all machines must share the output folder"
        )
    if state is None:
        trainer.accelerator.print(f"no checkpoint in {run.checkpoints}: starting afresh")
        return
    trainer.restore(state)
    if trainer.finished:
        trainer.accelerator.print(
            f"all epochs were already trained ({trainer.epoch}): no step is left, only the report"
        )
        return
    within = f", step {trainer.epoch_sums.steps} of {trainer.batches.n_steps}" if trainer.epoch_sums.steps else ""
    trainer.accelerator.print(f"going on after epoch {trainer.epoch} of {trainer.config.n_epochs}{within}")


def _where_to_go_on(run: RunFolder) -> str:
    kept = last_checkpoint(run.checkpoints)
    return (
        f"the last good checkpoint is {kept}: --resume --ignore-changes goes on from it"
        if kept
        else "there is no checkpoint yet"
    )


def _warn_one_sided(trainer: Trainer) -> None:
    columns = list(zip(trainer.dataset.attributes, trainer.dataset.labels.values.T, strict=True))
    unlabelled = [name for name, column in columns if np.isnan(column).all()]
    if unlabelled:
        trainer.accelerator.print(
            f"warning: no training label for {', '.join(unlabelled)}; nothing is learned, the scores mean nothing"
        )
    without = [name for name, column in columns if name not in unlabelled and not (column == 1).any()]
    if without:
        trainer.accelerator.print(
            f"warning: no positive training label for {', '.join(without)}; pos_weight stays 1 there"
        )


def resolved_settings(trainer: Trainer) -> dict[str, Any]:
    """Return what "auto" and the defaults came to, for train_config.json."""
    return {
        **machine_settings(trainer.accelerator),
        "num_workers": trainer.workers,
        "image_size": list(trainer.model.transform.size),
        "pos_weight": dict(zip(trainer.dataset.attributes, trainer.pos_weight.tolist(), strict=True)),
    }


def machine_settings(accelerator: Accelerator) -> dict[str, Any]:
    """Return what accelerate came to on this machine, as far as the steps depend on it."""
    return {
        "mixed_precision": accelerator.mixed_precision,
        "device": accelerator.device.type,
        "processes": accelerator.num_processes,
    }


def _epoch_line(row: dict[str, Any], config: TrainConfig) -> str:
    epochs = config.n_epochs
    parts = [f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}"]
    if len(config.stages) > 1:
        parts.append(f"stage {row['stage']}")
    parts.append(f"loss {figure(row['train_loss'], 4)}")
    if "val_loss" in row:
        parts += [
            f"validation loss {figure(row['val_loss'], 4)}",
            f"mAP {figure(row['macro_average_precision'])}",
            f"AUROC {figure(row['macro_auroc'])}",
            f"F1 at 0.5 {figure(row['macro_f1'])}",
        ]
    parts += [f"{figure(row['images_per_second'], 0)} images/s", duration(row["seconds"])]
    if row["skipped_steps"]:
        parts.append(f"{row['skipped_steps']} step(s) without any label skipped")
    return "  ".join(parts)
