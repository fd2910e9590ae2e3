"""Train K folds; out-of-fold scores of all images evaluate, tune and calibrate the final model."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray

from aimonk_hf.data.dataset import AttributeDataset
from aimonk_hf.data.images import shown_name
from aimonk_hf.data.splits import split_rows
from aimonk_hf.modeling.model import AimonkModel
from aimonk_hf.training.loop import Trainer
from aimonk_hf.training.parts import split
from aimonk_hf.training.processes import score_together
from aimonk_hf.training.run_directory import OUT_OF_FOLD, RunDirectory
from aimonk_hf.training.seeding import seed_everything
from aimonk_hf.training.settings import TrainConfig
from aimonk_hf.training.setup import machine_settings, reported_attributes


@dataclass
class OutOfFold:
    """Images with out-of-fold scores [N, K] (NaN: unreadable) and their folds [N]."""

    dataset: AttributeDataset
    scores: NDArray[np.float64]
    fold_of: NDArray[np.int64]


def cross_validate(
    config: TrainConfig,
    accelerator: Accelerator,
    run: RunDirectory,
    dataset: AttributeDataset,
    new_model: Callable[[], AimonkModel],
) -> OutOfFold:
    """Train a model without each fold, in `folds/fold-K` of the run directory; return the scores of held-out images.

    Folds are stratified as the settings divide images, and images of one group share a fold. Where the settings choose
    an epoch, each model takes its validation images from those it trains on: a held-out fold chooses nothing. Finished
    folds are kept at --resume.
    """
    labels, reported = dataset.labels.values, reported_attributes(config, dataset.attributes)
    fold_of = split_rows(labels, [1 / config.folds] * config.folds, config.split, config.seed, dataset.groups)
    if accelerator.is_main_process:
        run.write_folds(dataset, fold_of)
    for name, column in zip(dataset.attributes, labels.T, strict=True):
        fewest = min(int((column == value).sum()) for value in (0, 1))
        if 0 < fewest < config.folds:
            advice = f"try --folds {fewest}" if fewest > 1 else "add images with that label"
            told = f"{name} has {fewest} label(s) of one kind, fewer than the {config.folds} folds"
            accelerator.print(f"warning: {told}: {advice}")
    scores = np.full((len(labels), len(reported)), np.nan)
    for fold in range(config.folds):
        held_out, inside = np.flatnonzero(fold_of == fold), np.flatnonzero(fold_of != fold)
        told = f"fold {fold + 1} of {config.folds}: {len(inside)} images to train on, {len(held_out)} left out"
        accelerator.print(told)
        fold_config = _fold_config(config, run.folds / f"fold-{fold + 1}")
        model = _fold_model(fold_config, accelerator, dataset.select(inside), new_model)
        scores[held_out], failures = score_together(accelerator, model, dataset.select(held_out).paths)
        for path, reason in failures.items():
            accelerator.print(f"{shown_name(path)} can no longer be read ({reason}): its labels count nowhere")
    dataset = dataset.match(reported)
    if accelerator.is_main_process:
        run.write_scores(run.path / OUT_OF_FOLD, dataset, scores)
    return OutOfFold(dataset, scores, fold_of)


def _fold_config(config: TrainConfig, folder: Path) -> TrainConfig:
    share = config.val_split if config.chooses_epoch else 0.0
    own: dict[str, Any] = {"output_dir": str(folder), "folds": 0, "val_split": share, "report_split": 0.0}
    return replace(config, **own, log_with=None, trackio_space=None, push_to_hub=None, private=False)


def _fold_model(
    config: TrainConfig,
    accelerator: Accelerator,
    dataset: AttributeDataset,
    new_model: Callable[[], AimonkModel],
) -> AimonkModel:
    """Return the model of one fold, from its folder where it is finished."""
    run = RunDirectory(config)
    run.check()
    run.check_machine(machine_settings(accelerator))
    if run.finished:
        return AimonkModel.from_pretrained(run.path)
    if accelerator.is_main_process:
        run.open()
    accelerator.wait_for_everyone()
    fractions = [1 - config.val_split, config.val_split]
    train_set, validation, _ = split(config, dataset, fractions, run, accelerator)
    seed_everything(config.seed)
    trainer = Trainer(config, accelerator, new_model(), train_set, validation)
    trainer.fit(run)
    model = trainer.finished_model()
    accelerator.free_memory()
    if accelerator.is_main_process:
        model.save_pretrained(run.path)
        run.write_config(trainer.resolved_settings(), finished=True)
        shutil.rmtree(run.checkpoints)
    return model
