"""A training run from data folder to run folder."""

import os
from typing import Any

import numpy as np
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import parse_flag_from_env
from numpy.typing import NDArray
from tqdm.auto import tqdm

from aimonk_hf.checkpoints import load_checkpoint, save_checkpoint
from aimonk_hf.console import duration, figure, labels_table, metrics_table
from aimonk_hf.data import AttributeDataset, duplicate_groups
from aimonk_hf.devices import keep_freed_memory, out_of_memory, resolve_precision
from aimonk_hf.errors import AimonkError
from aimonk_hf.hub_push import create_repository, push_model_folder
from aimonk_hf.judging import choose_and_judge, describe_data
from aimonk_hf.losses import positive_weights
from aimonk_hf.modeling import AimonkModel
from aimonk_hf.plots import plot_loss_curve, plot_predictions
from aimonk_hf.run_folder import LOSS_CURVE, SAMPLE_PREDICTIONS, RunFolder
from aimonk_hf.seeding import seed_everything
from aimonk_hf.splits import split_rows
from aimonk_hf.train_config import TrainConfig
from aimonk_hf.trainer import Trainer

PARTS = ("train", "validation", "report")
# A smaller report part could show nothing: its images stay with the validation images then.
_SMALLEST_REPORT = 20
_PLOTTED_IMAGES = 12


def train(config: TrainConfig) -> AimonkModel:
    """Train, write the run folder, and return the kept model in eval mode.

    Every process of an `accelerate launch` calls this; the first one writes. Raises `AimonkError` with one line on data, settings or a
    machine that cannot be used.
    """
    run = RunFolder(config)
    run.check()
    if run.finished:
        print(f"{run.path} is finished: nothing to resume")
        return AimonkModel.from_pretrained(run.path)
    accelerator = _start_accelerator(config)
    if accelerator.is_main_process:
        if config.push_to_hub:
            create_repository(config.push_to_hub)  # before the run, so that a wrong token is said now
        run.open()
    accelerator.wait_for_everyone()
    listed = AttributeDataset.from_folder(config.data_dir, config.labels, config.images_dir, config.attributes)
    seed_everything(config.seed)
    model = _build_model(config, listed.attributes)  # before the images are read: weights that cannot be had are said at once
    dataset = _usable(config, listed, accelerator)
    train_set, validation, report_set = _split(config, dataset, run, accelerator)
    try:
        trainer = Trainer(config, accelerator, model, train_set, _positive_weights(config, train_set, accelerator))
        _fit(trainer, run, validation)
        return _finish(trainer, run, validation, report_set)
    except (RuntimeError, MemoryError) as error:
        if explained := out_of_memory(error, config.batch_size, model.transform.size[0]):
            raise explained from error
        raise
    finally:
        accelerator.end_training()


def _start_accelerator(config: TrainConfig) -> Accelerator:
    AcceleratorState._reset_state()  # an earlier run in this process may have used another precision
    precision = resolve_precision(
        _launched_precision() or config.mixed_precision, PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).device
    )
    try:
        accelerator = Accelerator(mixed_precision=precision, log_with=config.log_with, project_dir=config.output_dir)
    except (ValueError, ImportError) as error:
        raise AimonkError(f"cannot start the run: {str(error).splitlines()[0]}") from error
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    if config.log_with:
        accelerator.init_trackers(config.run_name, config={key: str(value) for key, value in config.to_dict().items()})
        if not accelerator.trackers:
            raise AimonkError(f"the tracker {config.log_with} is not installed: pip install 'aimonk_hf[{config.log_with}]'")
    return accelerator


def _launched_precision() -> str | None:
    """Return what `accelerate launch --mixed_precision` asked for, if it asked for any."""
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    return None if asked == "no" else asked


def _usable(config: TrainConfig, dataset: AttributeDataset, accelerator: Accelerator) -> AttributeDataset:
    """Return the images that can be read, and name the others; every process finds the same."""
    problems = dataset.find_problems(progress=accelerator.is_main_process)
    if problems:
        lines = [f"  {dataset.labels.images[row]}: {reason}" for row, reason in problems.items()]
        accelerator.print(f"{len(problems)} of {len(dataset)} listed images cannot be used and are left out:", *lines, sep="\n")
        if config.strict:
            raise AimonkError(f"{len(problems)} listed image(s) cannot be used, first {dataset.labels.images[min(problems)]} (--strict)")
    usable = [row for row in range(len(dataset)) if row not in problems]
    if not usable:
        raise AimonkError(f"none of the {len(dataset)} listed images can be read from {dataset.images_dir}")
    return dataset.select(usable)


def _split(
    config: TrainConfig, dataset: AttributeDataset, run: RunFolder, accelerator: Accelerator
) -> tuple[AttributeDataset, AttributeDataset, AttributeDataset]:
    """Return the images to train on, to validate on, and to report from; the last two may be empty."""
    groups = duplicate_groups(dataset.paths)
    share = config.val_split * config.report_split
    if share and len(np.unique(groups)) * share < _SMALLEST_REPORT:
        accelerator.print(f"a report part of fewer than {_SMALLEST_REPORT} images would show nothing: they stay with the validation images")
        share = 0.0
    fractions = [1 - config.val_split, config.val_split - share] + [share] * bool(share)
    part_of = split_rows(dataset.labels.values, fractions, config.split, config.seed, groups)
    if accelerator.is_main_process:
        run.write_split(dataset.labels.images, [PARTS[part] for part in part_of])
    train_set, validation, report_set = (dataset.select(np.flatnonzero(part_of == part)) for part in range(3))
    accelerator.print(
        f"{len(dataset)} images, {len(np.unique(groups))} of them different: {len(train_set)} to train on, {len(validation)} to validate, "
        f"{len(report_set)} to report from",
        labels_table(dataset.labels),
        sep="\n",
    )
    _warn_one_sided(dataset, accelerator)
    return train_set, validation, report_set


def _warn_one_sided(dataset: AttributeDataset, accelerator: Accelerator) -> None:
    for column, name in enumerate(dataset.attributes):
        values = dataset.labels.values[:, column]
        for value, kind in ((1, "positive"), (0, "negative")):
            if not (values == value).any():
                accelerator.print(f"warning: {name} has no {kind} label; nothing can be learned or measured for it")


def _positive_weights(config: TrainConfig, train_set: AttributeDataset, accelerator: Accelerator) -> NDArray[np.float32]:
    labels = train_set.labels.values
    without = [name for name, column in zip(train_set.attributes, labels.T, strict=True) if (column == 0).any() and not (column == 1).any()]
    if without:
        accelerator.print(f"warning: no positive training label for {', '.join(without)}; pos_weight stays 1 there")
    return positive_weights(labels, config.pos_weight_power, config.pos_weight_cap)


def _build_model(config: TrainConfig, attributes: list[str]) -> AimonkModel:
    model_args = {"drop_rate": config.drop_rate} if config.drop_rate else {}
    return AimonkModel.from_timm(
        config.architecture,
        attributes,
        pretrained=config.pretrained,
        image_size=config.image_size,
        preprocessing=config.preprocessing(),
        **model_args,
    )


def _fit(trainer: Trainer, run: RunFolder, validation: AttributeDataset) -> None:
    """Run the epochs that are left."""
    accelerator, config = trainer.accelerator, trainer.config
    if config.resume:
        state = load_checkpoint(run.checkpoints)
        if state is not None:
            trainer.restore(state)
            accelerator.print(f"going on after epoch {trainer.epoch} of {config.epochs}")
        else:
            accelerator.print(f"no checkpoint in {run.checkpoints}: starting afresh")
    if accelerator.is_main_process:
        run.write_config(_resolved(trainer))
    with tqdm(
        total=trainer.total_steps,
        initial=trainer.step,
        desc="training",
        unit="step",
        disable=not accelerator.is_main_process,
        dynamic_ncols=True,
        mininterval=0.5,
    ) as progress:
        while trainer.epoch < config.epochs:
            row = trainer.train_epoch(progress)
            if len(validation):
                row |= trainer.validate(validation)
            trainer.history.append(row)
            if accelerator.is_main_process:
                tqdm.write(_epoch_line(row, config.epochs))
                run.write_history(trainer.history)
                save_checkpoint(run.checkpoints, trainer.step, trainer.state())
            accelerator.log({key: value for key, value in row.items() if key not in ("epoch", "stage")}, step=trainer.step)
            accelerator.wait_for_everyone()


def _resolved(trainer: Trainer) -> dict[str, Any]:
    """What "auto" and the defaults came to, for train_config.json."""
    accelerator = trainer.accelerator
    return {
        "mixed_precision": accelerator.mixed_precision,
        "device": accelerator.device.type,
        "processes": accelerator.num_processes,
        "num_workers": trainer.loader.num_workers,
        "image_size": list(trainer.model.transform.size),
        "pos_weight": dict(zip(trainer.dataset.attributes, trainer.pos_weight.tolist(), strict=True)),
    }


def _epoch_line(row: dict[str, Any], epochs: int) -> str:
    parts = [f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}", f"loss {row['train_loss']:.4f}"]
    if "val_loss" in row:
        parts += [
            f"validation loss {row['val_loss']:.4f}",
            f"mAP {figure(row['macro_average_precision'])}",
            f"AUROC {figure(row['macro_auroc'])}",
            f"F1 at 0.5 {figure(row['macro_f1'])}",
        ]
    parts += [f"{row['images_per_second']:.0f} images/s", duration(row["seconds"])]
    if row["skipped_steps"]:
        parts.append(f"{row['skipped_steps']} step(s) without any label skipped")
    return "  ".join(parts)


def _finish(trainer: Trainer, run: RunFolder, validation: AttributeDataset, report_set: AttributeDataset) -> AimonkModel:
    """Calibrate, choose thresholds, judge, and write model, figures and plots; the other processes only get the model."""
    model, config = trainer.finished_model(), trainer.config
    if not trainer.accelerator.is_main_process:
        return model
    shown = validation if len(validation) else trainer.dataset
    if len(validation):
        model.metrics = _judge(model, config, validation, report_set) | {"training": _summary(trainer, validation, report_set)}
        print(metrics_table(model.metrics))
    model.save_pretrained(run.path)
    title = config.run_name
    validated = [(row["epoch"] * trainer.batches.n_steps, row["val_loss"]) for row in trainer.history if "val_loss" in row]
    plot_loss_curve(trainer.losses, validated, run.path / LOSS_CURVE, title)
    chosen = np.random.default_rng(config.seed).permutation(len(shown))[:_PLOTTED_IMAGES]
    plot_predictions(shown.select(chosen), model.predict(shown.select(chosen).paths, on_error="skip"), run.path / SAMPLE_PREDICTIONS)
    run.write_config(_resolved(trainer), finished=True)
    if config.push_to_hub:
        print(f"pushed:   {push_model_folder(run.path, config.push_to_hub).url}")
    return model


def _judge(model: AimonkModel, config: TrainConfig, validation: AttributeDataset, report_set: AttributeDataset) -> dict[str, Any]:
    """Calibrate and tune as the settings say, and return metrics.json; what chose anything is never reported from as if it had not."""
    return choose_and_judge(
        model,
        validation,
        report_set,
        calibration=config.calibrate,
        objective=config.threshold_objective if config.tune_thresholds else None,
        seed=config.seed,
    )


def _summary(trainer: Trainer, validation: AttributeDataset, report_set: AttributeDataset) -> dict[str, Any]:
    config = trainer.config
    return {
        "recipe": config.recipe,
        "backbone": config.architecture if ":" not in config.architecture else trainer.model.config.architecture,
        "epochs": config.epochs,
        "n_train": len(trainer.dataset),
        "n_validation": len(validation),
        "n_report": len(report_set),
        "data": describe_data([trainer.dataset, validation, report_set]),
    }
