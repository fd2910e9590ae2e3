"""A training run from data folder to run folder."""

import os
import sys
from datetime import timedelta
from functools import partial
from typing import Any

import numpy as np
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env
from numpy.typing import NDArray

from aimonk_hf.data.dataset import AttributeDataset, duplicate_groups
from aimonk_hf.data.image_cache import PixelCache
from aimonk_hf.data.images import shown_name
from aimonk_hf.data.labels import labels_table
from aimonk_hf.data.splits import split_rows
from aimonk_hf.errors import AimonkError, reason_of
from aimonk_hf.evaluation.report_table import metrics_table
from aimonk_hf.evaluation.tuning import choose_and_judge, choose_and_judge_out_of_fold, describe_data
from aimonk_hf.modeling.devices import explain_failure, keep_freed_memory, resolve_precision
from aimonk_hf.modeling.hub_push import create_repository, push_model_folder
from aimonk_hf.modeling.model import AimonkModel
from aimonk_hf.modeling.prediction import Prediction
from aimonk_hf.training.augmentation import train_augmentation
from aimonk_hf.training.epoch_choice import best_epoch
from aimonk_hf.training.fitting import build_model, fit, machine_settings, resolved_settings, try_steps
from aimonk_hf.training.folds import OutOfFold, cross_validate, hand_on, score_together
from aimonk_hf.training.loop import Trainer
from aimonk_hf.training.plots import plot_loss_curve, plot_predictions
from aimonk_hf.training.run_directory import LOSS_CURVE, SAMPLE_PREDICTIONS, RunFolder
from aimonk_hf.training.seeding import seed_everything
from aimonk_hf.training.settings import TrainConfig
from aimonk_hf.training.stopping import stopped_line

PARTS = ("train", "validation", "report")
# A smaller report part could show nothing: its images stay with the validation images then.
_SMALLEST_REPORT = 20
_PLOTTED_IMAGES = 12


def train(config: TrainConfig) -> AimonkModel:
    """Train, write the run folder, and return the kept model in eval mode.

    Every process of an `accelerate launch` calls this; the first one writes, and all return when the run folder is complete. The process
    group stays open. Raises `AimonkError` with one line on data, settings or a machine that cannot be used.
    """
    run = RunFolder(config)
    run.check()
    if run.finished:
        run.check_finished()
        print(f"{run.path} is finished: nothing to resume")
        return AimonkModel.from_pretrained(run.path)
    listed = AttributeDataset.from_folder(config.data_dir, config.labels, config.images_dir, config.attributes)
    listed.labels.check_observed("listed images")
    accelerator = _start_accelerator(config)
    size = config.image_size or 224
    n_images: int | None = None
    try:
        run.check_machine(machine_settings(accelerator))
        if accelerator.is_main_process:
            if config.push_to_hub:
                # before the run, so that a wrong token or a public repository is said now
                create_repository(config.push_to_hub, config.private or None)
            run.open()
        accelerator.wait_for_everyone()
        seed_everything(config.seed)
        model = build_model(
            config, listed.attributes
        )  # before the images are read: what cannot be had or trained is said at once
        try_steps(config, accelerator, model)
        size = model.transform.size[0]
        fingerprints = {
            train_augmentation(config.augmentation, model.transform).fingerprint,
            model.transform.fingerprint,
        }
        dataset = _usable(config, listed, fingerprints, accelerator)
        n_images = len(dataset)
        if accelerator.is_main_process:
            run.check_data(dataset)
        out_of_fold = cross_validate(config, accelerator, run, dataset) if config.folds else None
        train_set, validation, report_set = _split(config, dataset, run, accelerator)
        seed_everything(config.seed)
        trainer = Trainer(config, accelerator, model, train_set)
        fit(trainer, run, validation)
        return _finish(trainer, run, validation, report_set, out_of_fold)
    except (RuntimeError, MemoryError, ValueError) as error:
        if explained := explain_failure(error, config.batch_size, size, n_images):
            raise explained from error
        raise
    except (KeyboardInterrupt, SystemExit):
        if accelerator.is_main_process:
            print(stopped_line(run.path), file=sys.stderr, flush=True)
        raise
    finally:
        accelerator.close()


class _Processes(Accelerator):
    """An accelerator whose processes wait for each other however long it takes.

    Figures of many images, or reading them on a slow disk, take longer than the timeout of a process group; one that ends is noticed at once.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._patient: Any = (
            dist.new_group(backend="gloo", timeout=timedelta(days=7)) if self.num_processes > 1 else None
        )

    def wait_for_everyone(self) -> None:
        if self._patient is not None:
            dist.barrier(group=self._patient)

    def close(self) -> None:
        """End trackers and the group made here; the process group itself is left to the program, which may train again."""
        for tracker in self.trackers:
            tracker.finish()
        if self._patient is not None:
            dist.destroy_process_group(self._patient)


def _start_accelerator(config: TrainConfig) -> _Processes:
    AcceleratorState._reset_state()  # an earlier run in this process may have used another precision
    precision = resolve_precision(
        _launched_precision() or config.mixed_precision,
        PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).device,
    )
    try:
        accelerator = _Processes(mixed_precision=precision, log_with=config.log_with, project_dir=config.output_dir)
    except (ValueError, ImportError) as error:
        raise AimonkError(f"cannot start the run: {reason_of(error)}") from error
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    if config.log_with:
        accelerator.init_trackers(config.run_name, config={key: str(value) for key, value in config.to_dict().items()})
        if not accelerator.trackers:
            raise AimonkError(
                f"the tracker {config.log_with} is not installed: pip install 'aimonk_hf[{config.log_with}]'"
            )
    return accelerator


def _launched_precision() -> str | None:
    """Return what `accelerate launch --mixed_precision` asked for, if it asked for any."""
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    return None if asked == "no" else asked


def _usable(
    config: TrainConfig, dataset: AttributeDataset, fingerprints: set[str], accelerator: Accelerator
) -> AttributeDataset:
    """Return the images that can be read, and name the others; each process reads its share, and all return the same."""
    rank, n_processes = accelerator.process_index, accelerator.num_processes
    caches = [PixelCache(dataset.images_dir, fingerprint) for fingerprint in fingerprints] if config.image_cache else []
    own = dataset.select(range(rank, len(dataset), n_processes)).find_problems(
        progress=accelerator.is_main_process, known_good=lambda path: any(cache.holds(path) for cache in caches)
    )
    accelerator.wait_for_everyone()
    problems = dict(sorted(gather_object([(rank + n_processes * row, reason) for row, reason in own.items()])))
    if problems:
        lines = [f"  {shown_name(dataset.labels.images[row])}: {reason}" for row, reason in problems.items()]
        accelerator.print(
            f"{len(problems)} of {len(dataset)} listed images cannot be used and are left out:", *lines, sep="\n"
        )
        if config.strict:
            first = shown_name(dataset.labels.images[min(problems)])
            raise AimonkError(f"{len(problems)} listed image(s) cannot be used, first {first} (--strict)")
    usable = [row for row in range(len(dataset)) if row not in problems]
    if not usable:
        raise AimonkError(f"none of the {len(dataset)} listed images can be read from {dataset.images_dir}")
    return dataset.select(usable)


def _split(
    config: TrainConfig, dataset: AttributeDataset, run: RunFolder, accelerator: Accelerator
) -> tuple[AttributeDataset, AttributeDataset, AttributeDataset]:
    """Return the images to train on, to validate on, and to report from; the last two may be empty."""
    [groups] = broadcast_object_list(
        [duplicate_groups(dataset.paths)]
    )  # files may change between one process's look and another's
    fractions = _fractions(config, len(np.unique(groups)), accelerator)
    part_of = split_rows(dataset.labels.values, fractions, config.split, config.seed, groups)
    if accelerator.is_main_process:
        run.write_split(dataset, [PARTS[part] for part in part_of])
    train_set, validation, report_set = (dataset.select(np.flatnonzero(part_of == part)) for part in range(3))
    accelerator.print(
        f"{len(dataset)} images, {len(np.unique(groups))} of them different: {len(train_set)} to train on, {len(validation)} to validate, "
        f"{len(report_set)} to report from",
        labels_table(dataset.labels),
        sep="\n",
    )
    _warn_one_sided(dataset, accelerator)
    if len(validation) and np.isnan(validation.labels.values).all():
        accelerator.print(
            "warning: no validation image has a label: no loss, threshold or best epoch can come from them"
        )
    if not len(validation) and not config.folds and (config.tune_thresholds or config.calibrate):
        accelerator.print(
            "warning: no validation images: thresholds stay at 0.5, nothing is calibrated, and there is no report (--folds 5 makes one)"
        )
    return train_set, validation, report_set


def _fractions(config: TrainConfig, n_different: int, accelerator: Accelerator) -> list[float]:
    """Return the shares of the parts; after cross-validation the model trains on all images but those that choose its epoch."""
    if config.folds:
        share = config.val_split if config.chooses_epoch else 0.0
        return [1 - share, share]
    share = config.val_split * config.report_split
    if share and n_different * share < _SMALLEST_REPORT:
        accelerator.print(
            f"a report part of fewer than {_SMALLEST_REPORT} images would show nothing: they stay with the validation images"
        )
        share = 0.0
    return [1 - config.val_split, config.val_split - share] + [share] * bool(share)


def _warn_one_sided(dataset: AttributeDataset, accelerator: Accelerator) -> None:
    for column, name in enumerate(dataset.attributes):
        values = dataset.labels.values[:, column]
        for value, kind in ((1, "positive"), (0, "negative")):
            if not (values == value).any():
                accelerator.print(f"warning: {name} has no {kind} label; nothing can be learned or measured for it")


def _finish(
    trainer: Trainer,
    run: RunFolder,
    validation: AttributeDataset,
    report_set: AttributeDataset,
    out_of_fold: OutOfFold | None,
) -> AimonkModel:
    """Calibrate, choose thresholds, judge, and write model, figures and plots; the other processes help to score and wait for the model."""
    accelerator, config, resolved = trainer.accelerator, trainer.config, resolved_settings(trainer)
    model = trainer.finished_model()
    if not accelerator.is_main_process:
        for part in (validation, report_set) if out_of_fold is None else ():
            if len(part):
                score_together(accelerator, model, part.paths)
        hand_on(accelerator, model)
        return model
    shown, predictions = _judge(model, trainer, validation, report_set, out_of_fold)
    if model.metrics:
        print(metrics_table(model.metrics))
    model.save_pretrained(run.path)
    rows = [row for row in trainer.history if row.get("val_loss") is not None]
    validated = [(row["epoch"] * trainer.batches.n_steps, row["val_loss"]) for row in rows]
    stages = [row["stage"] for row in trainer.history]
    starts = [place * trainer.batches.n_steps for place in range(1, len(stages)) if stages[place] != stages[place - 1]]
    kept = None if config.metric_for_best_model == "none" else best_epoch(rows, config.metric_for_best_model)
    plot_loss_curve(trainer.losses, validated, run.path / LOSS_CURVE, config.run_name, starts, kept)
    plot_predictions(shown, predictions, run.path / SAMPLE_PREDICTIONS)
    run.write_config(resolved, finished=True)
    if config.push_to_hub:
        print(f"pushed:   {push_model_folder(run.path, config.push_to_hub, config.private or None).url}")
    hand_on(accelerator, model)
    return model


def _judge(
    model: AimonkModel,
    trainer: Trainer,
    validation: AttributeDataset,
    report_set: AttributeDataset,
    out_of_fold: OutOfFold | None,
) -> tuple[AttributeDataset, list[Prediction | None]]:
    """Calibrate and tune as the settings say, and give the model its metrics; what chose anything is never reported from as if it had not.

    Returns some images with predictions for the plot: out-of-fold ones where there are any.
    """
    config = trainer.config
    objective = config.threshold_objective if config.tune_thresholds else None
    summary = {"training": _summary(trainer, validation, report_set)}
    if out_of_fold is not None:
        dataset = out_of_fold.dataset
        report, scores = choose_and_judge_out_of_fold(
            model,
            dataset.labels.values,
            out_of_fold.scores,
            out_of_fold.fold_of,
            out_of_fold.groups,
            calibration=config.calibrate,
            objective=objective,
            seed=config.seed,
        )
        model.metrics = report | summary
        rows = _some_rows(len(dataset), config.seed)
        return dataset.select(rows), [_as_prediction(model, scores[row]) for row in rows]
    if len(validation):
        report = choose_and_judge(
            model,
            validation,
            report_set,
            calibration=config.calibrate,
            objective=objective,
            epoch_chosen=config.chooses_epoch,
            seed=config.seed,
            score=partial(score_together, trainer.accelerator),
        )
        model.metrics = report | summary
    shown = validation if len(validation) else trainer.dataset
    shown = shown.select(_some_rows(len(shown), config.seed))
    return shown, model.predict(shown.paths, on_error="skip")


def _as_prediction(model: AimonkModel, scores: NDArray[np.float64]) -> Prediction | None:
    if np.isnan(scores).any():
        return None
    return Prediction(dict(zip(model.config.attributes, scores.tolist(), strict=True)), model.config.thresholds)


def _some_rows(n_rows: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(n_rows)[:_PLOTTED_IMAGES]


def _summary(trainer: Trainer, validation: AttributeDataset, report_set: AttributeDataset) -> dict[str, Any]:
    config = trainer.config
    return {
        "recipe": config.recipe,
        "backbone": config.architecture if ":" not in config.architecture else trainer.model.config.architecture,
        "epochs": len(trainer.history),
        "n_train": len(trainer.dataset),
        "n_validation": len(validation),
        "n_report": len(report_set),
        "data": describe_data([trainer.dataset, validation, report_set]),
    }
