"""K folds: every image is scored by a model that has not seen it, and these scores judge, tune and calibrate the model of all images."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from numpy.typing import NDArray

from aimonk_hf.data.dataset import AttributeDataset, duplicate_groups
from aimonk_hf.data.images import shown_name
from aimonk_hf.data.splits import split_rows
from aimonk_hf.evaluation.report import score_images
from aimonk_hf.modeling.model import AimonkModel
from aimonk_hf.training.fitting import build_model, fit, machine_settings, resolved_settings
from aimonk_hf.training.loop import Trainer
from aimonk_hf.training.run_directory import RunFolder
from aimonk_hf.training.seeding import seed_everything
from aimonk_hf.training.settings import TrainConfig


@dataclass
class OutOfFold:
    """The images with a score per attribute [N, K], the fold of each image [N] and its group of copies [N].

    A score comes from the model that was trained without the image; rows of images that cannot be read are NaN.
    """

    dataset: AttributeDataset
    scores: NDArray[np.float64]
    fold_of: NDArray[np.int64]
    groups: NDArray[np.int64]


def cross_validate(
    config: TrainConfig, accelerator: Accelerator, run: RunFolder, dataset: AttributeDataset
) -> OutOfFold:
    """Train a model without each fold, in `folds/fold-K` of the run folder, and return the scores of the images left out.

    Folds are stratified as the settings divide images, and copies of one image share a fold. Where the settings choose an epoch, each model
    takes its validation images from those it trains on: a fold that is scored chooses nothing. Finished folds are kept at --resume.
    """
    [groups] = broadcast_object_list(
        [duplicate_groups(dataset.paths)]
    )  # files may change between one process's look and another's
    fold_of = split_rows(dataset.labels.values, [1 / config.folds] * config.folds, config.split, config.seed, groups)
    if accelerator.is_main_process:
        run.write_folds(dataset, fold_of)
    _warn_rare(config, accelerator, dataset)
    scores = np.full((len(dataset), len(dataset.attributes)), np.nan)
    for fold in range(config.folds):
        held_out = np.flatnonzero(fold_of == fold)
        accelerator.print(
            f"fold {fold + 1} of {config.folds}: {len(dataset) - len(held_out)} images to train on, {len(held_out)} left out"
        )
        model = _fold_model(
            _fold_config(config, run.folds / f"fold-{fold + 1}"), accelerator, dataset, fold_of != fold, groups
        )
        scores[held_out], failures = score_together(accelerator, model, dataset.select(held_out).paths)
        for path, reason in failures.items():
            accelerator.print(f"{shown_name(path)} can no longer be read ({reason}): its labels count nowhere")
    if accelerator.is_main_process:
        run.write_out_of_fold(dataset, scores)
    return OutOfFold(dataset, scores, fold_of, groups)


def score_together(
    accelerator: Accelerator, model: AimonkModel, paths: list[Path]
) -> tuple[NDArray[np.float64], dict[Path, str]]:
    """Return on every process what `score_images` returns for the first one's model; each process scores its share."""
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


def hand_on(accelerator: Accelerator, model: AimonkModel) -> None:
    """Give every process the first one's weights, thresholds and metrics, when it has come so far."""
    accelerator.wait_for_everyone()
    if accelerator.num_processes > 1:
        [(weights, model.config, model.metrics)] = broadcast_object_list(
            [(model.state_dict(), model.config, model.metrics)]
        )
        model.load_state_dict(weights)


def _warn_rare(config: TrainConfig, accelerator: Accelerator, dataset: AttributeDataset) -> None:
    for name, column in zip(dataset.attributes, dataset.labels.values.T, strict=True):
        fewest = min(int((column == value).sum()) for value in (0, 1))
        if 0 < fewest < config.folds:
            accelerator.print(
                f"warning: {name} has {fewest} label(s) of one kind, fewer than the {config.folds} folds: "
                + (f"try --folds {fewest}" if fewest > 1 else "add images with that label")
            )


def _fold_config(config: TrainConfig, folder: Path) -> TrainConfig:
    share = config.val_split if config.chooses_epoch else 0.0
    return replace(
        config,
        output_dir=str(folder),
        folds=0,
        val_split=share,
        report_split=0.0,
        log_with=None,
        push_to_hub=None,
        private=False,
    )


def _fold_model(
    config: TrainConfig,
    accelerator: Accelerator,
    dataset: AttributeDataset,
    inside: NDArray[np.bool_],
    groups: NDArray[np.int64],
) -> AimonkModel:
    """Return the model of one fold, from its folder where it is finished."""
    run = RunFolder(config)
    run.check()
    run.check_machine(machine_settings(accelerator))
    if run.finished:
        return AimonkModel.from_pretrained(run.path)
    if accelerator.is_main_process:
        run.open()
    accelerator.wait_for_everyone()
    rows = np.flatnonzero(inside)
    part_of = split_rows(
        dataset.labels.values[rows], [1 - config.val_split, config.val_split], config.split, config.seed, groups[rows]
    )
    if accelerator.is_main_process:
        run.write_split(dataset.select(rows), [("train", "validation")[part] for part in part_of])
    seed_everything(config.seed)
    trainer = Trainer(config, accelerator, build_model(config, dataset.attributes), dataset.select(rows[part_of == 0]))
    fit(trainer, run, dataset.select(rows[part_of == 1]))
    resolved = resolved_settings(trainer)
    model = trainer.finished_model()
    accelerator.free_memory()
    if accelerator.is_main_process:
        model.save_pretrained(run.path)
        run.write_config(resolved, finished=True)
        shutil.rmtree(run.checkpoints)
    return model
