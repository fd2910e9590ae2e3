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
from aimonk_hf.evaluation import score_images
from aimonk_hf.losses import positive_weights
from aimonk_hf.metrics import build_report
from aimonk_hf.modeling import AimonkModel
from aimonk_hf.plots import plot_loss_curve, plot_predictions
from aimonk_hf.run_folder import LOSS_CURVE, SAMPLE_PREDICTIONS, RunFolder
from aimonk_hf.seeding import seed_everything
from aimonk_hf.splits import split_rows
from aimonk_hf.thresholds import cross_fit, decide, tune_thresholds
from aimonk_hf.train_config import TrainConfig
from aimonk_hf.trainer import Trainer

PARTS = ("train", "validation")
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
        run.open()
    accelerator.wait_for_everyone()
    dataset = _load_data(config, accelerator)
    train_set, validation = _split(config, dataset, run, accelerator)
    seed_everything(config.seed)
    model = _build_model(config, dataset.attributes)
    try:
        trainer = Trainer(config, accelerator, model, train_set, _positive_weights(config, train_set, accelerator))
        _fit(trainer, run, validation)
        return _finish(trainer, run, validation)
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


def _load_data(config: TrainConfig, accelerator: Accelerator) -> AttributeDataset:
    """Read and check the data; every process finds the same images usable."""
    dataset = AttributeDataset.from_folder(config.data_dir, config.labels, config.images_dir, config.attributes)
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
) -> tuple[AttributeDataset, AttributeDataset]:
    groups = duplicate_groups(dataset.paths)
    fractions = [1 - config.val_split, config.val_split]
    part_of = split_rows(dataset.labels.values, fractions, config.split, config.seed, groups)
    if accelerator.is_main_process:
        run.write_split(dataset.labels.images, [PARTS[part] for part in part_of])
    train_set, validation = (dataset.select(np.flatnonzero(part_of == part)) for part in range(2))
    accelerator.print(
        f"{len(dataset)} images, {len(np.unique(groups))} of them different: {len(train_set)} to train on, {len(validation)} to validate",
        labels_table(dataset.labels),
        sep="\n",
    )
    _warn_one_sided(dataset, accelerator)
    return train_set, validation


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


def _finish(trainer: Trainer, run: RunFolder, validation: AttributeDataset) -> AimonkModel:
    """Choose thresholds, judge, and write model, figures and plots; the other processes only get the model."""
    model, config = trainer.finished_model(), trainer.config
    if not trainer.accelerator.is_main_process:
        return model
    shown = validation if len(validation) else trainer.dataset
    if len(validation):
        scores, _ = score_images(model, validation.paths, progress=True)
        model.metrics = _judge(model, config, validation.labels.values, scores) | {"training": _summary(trainer, validation)}
        print(metrics_table(model.metrics))
    model.save_pretrained(run.path)
    title = config.run_name
    validated = [(row["epoch"] * trainer.batches.n_steps, row["val_loss"]) for row in trainer.history if "val_loss" in row]
    plot_loss_curve(trainer.losses, validated, run.path / LOSS_CURVE, title)
    chosen = np.random.default_rng(config.seed).permutation(len(shown))[:_PLOTTED_IMAGES]
    plot_predictions(shown.select(chosen), model.predict(shown.select(chosen).paths, on_error="skip"), run.path / SAMPLE_PREDICTIONS)
    run.write_config(_resolved(trainer), finished=True)
    return model


def _judge(model: AimonkModel, config: TrainConfig, labels: NDArray[np.float32], scores: NDArray[np.float64]) -> dict[str, Any]:
    """Store thresholds in the model's config and return metrics.json; tuned thresholds judge only images that did not tune them."""
    readable = ~np.isnan(scores).all(axis=1)
    labels, scores = labels[readable], scores[readable]
    names = model.config.attributes
    if config.tune_thresholds:
        tuned = tune_thresholds(labels, scores, config.threshold_objective)
        model.config.thresholds = dict(zip(names, tuned.tolist(), strict=True))
        decisions = cross_fit(labels, scores, config.threshold_objective, seed=config.seed)
    else:
        decisions = decide(scores, list(model.config.thresholds.values()))
    return build_report(labels, scores, decisions, names, model.config.thresholds) | {"thresholds_tuned": config.tune_thresholds}


def _summary(trainer: Trainer, validation: AttributeDataset) -> dict[str, Any]:
    config = trainer.config
    return {
        "recipe": config.recipe,
        "backbone": config.architecture if ":" not in config.architecture else trainer.model.config.architecture,
        "epochs": config.epochs,
        "n_train": len(trainer.dataset),
        "n_validation": len(validation),
    }
