"""Finish a run: calibrate, tune, evaluate, and write model, figures and plots."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from aimonk_hf.data.dataset import AttributeDataset
from aimonk_hf.data.duplicates import image_groups
from aimonk_hf.data.imports import imported_from
from aimonk_hf.evaluation.report_table import metrics_table
from aimonk_hf.evaluation.tuning import choose_and_judge, choose_and_judge_out_of_fold, describe_data
from aimonk_hf.modeling.card_fields import given_fields
from aimonk_hf.modeling.hub import dataset_id, push_model_folder
from aimonk_hf.modeling.model import AimonkModel
from aimonk_hf.modeling.onnx_export import onnx_line
from aimonk_hf.modeling.prediction import Prediction
from aimonk_hf.training.epoch_choice import best_epoch
from aimonk_hf.training.folds import OutOfFold
from aimonk_hf.training.loop import Trainer
from aimonk_hf.training.plots import plot_loss_curve, plot_predictions
from aimonk_hf.training.processes import hand_on, score_together
from aimonk_hf.training.run_directory import LOSS_CURVE, SAMPLE_PREDICTIONS, RunDirectory
from aimonk_hf.training.setup import hardware_of
from aimonk_hf.training.tracking import log_plots, log_report, tracked_run

_PLOTTED_IMAGES = 12


def finish(
    trainer: Trainer,
    run: RunDirectory,
    validation: AttributeDataset,
    report_set: AttributeDataset,
    out_of_fold: OutOfFold | None,
) -> AimonkModel:
    """Calibrate, tune, evaluate, and write model, figures and plots; the other processes help to score and wait."""
    accelerator, config = trainer.accelerator, trainer.config
    model = trainer.finished_model()
    model.card |= _card_fields(trainer)
    if accelerator.is_main_process:
        shown, predictions = _judge(model, trainer, validation, report_set, out_of_fold)
        if model.metrics:
            parts = [part.match(trainer.reported) for part in (trainer.train_set, validation, report_set)]
            from_folder = config.init_from or ":" in config.architecture
            model.metrics["training"] = {
                "recipe": Path(config.recipe).stem,
                "backbone": model.config.architecture if from_folder else config.architecture,
                "epochs": len(trainer.state.history),
                "n_train": len(trainer.train_set),
                "n_validation": len(validation),
                "n_report": len(report_set),
                "data": describe_data(parts),
            }
            print(metrics_table(model.metrics))
            log_report(accelerator, model.metrics, trainer.state.step)
        model.cpu()
        model.save_pretrained(run.path)
        model.folder = run.path
        if config.onnx:
            print(onnx_line(model, run.path))
        _plot_losses(trainer, run.path / LOSS_CURVE)
        plot_predictions(shown, predictions, run.path / SAMPLE_PREDICTIONS)
        log_plots(accelerator, [run.path / LOSS_CURVE], [run.path / SAMPLE_PREDICTIONS], trainer.state.step)
        run.write_config(trainer.resolved_settings(), finished=True)
        if config.push_to_hub:
            print(f"pushed:   {push_model_folder(run.path, config.push_to_hub, private=config.private or None).url}")
    elif out_of_fold is None:
        for part in filter(len, (validation, report_set)):
            score_together(accelerator, model, part.paths)
    hand_on(accelerator, model.cpu())
    return model


def _card_fields(trainer: Trainer) -> dict[str, Any]:
    """Return the card's fields that a run knows; the dataset is the Hub's that was read or imported."""
    config, labels = trainer.config, trainer.train_set.labels
    found = dataset_id(config.data_dir) or dataset_id(imported_from(labels.source))
    trainer.state.count_seconds(trainer.saved_at)
    seconds = trainer.state.seconds
    hours, minutes = divmod(round(seconds / 60), 60)
    told = f"{hours} h {minutes} min" if hours else f"{minutes} min" if seconds >= 90 else f"{round(seconds)} s"
    took = {"training_time": told, "hardware": hardware_of(trainer.accelerator)} | tracked_run(trainer.accelerator)
    return given_fields(config.license, config.tags) | ({"datasets": [found]} if found else {}) | took


def _judge(
    model: AimonkModel,
    trainer: Trainer,
    validation: AttributeDataset,
    report_set: AttributeDataset,
    out_of_fold: OutOfFold | None,
) -> tuple[AttributeDataset, list[Prediction | None]]:
    """Calibrate and tune as the settings say, and give the model its metrics, from held-out or out-of-fold scores.

    Returns some images with predictions for the plot: out-of-fold ones where there are any.
    """
    config, names = trainer.config, model.config.attributes
    choices: dict[str, Any] = {
        "calibration": config.calibrate,
        "objective": config.threshold_objective if config.tune_thresholds else None,
        "seed": config.seed,
    }
    shown = (validation if len(validation) else trainer.train_set).match(names)
    if out_of_fold is not None:
        shown, fold_of, groups = out_of_fold.dataset, out_of_fold.fold_of, image_groups(out_of_fold.dataset)
        labels, scores = shown.labels.values, out_of_fold.scores
        model.metrics, scores = choose_and_judge_out_of_fold(model, labels, scores, fold_of, groups, **choices)
    elif len(validation):
        score = partial(score_together, trainer.accelerator)
        model.metrics = choose_and_judge(
            model, validation, report_set, epoch_chosen=config.chooses_epoch, score=score, **choices
        )
    rows = np.random.default_rng(config.seed).permutation(len(shown))[:_PLOTTED_IMAGES]
    shown = shown.select(rows)
    if out_of_fold is None:
        return shown, model.predict(shown.paths, on_error="skip")
    given = [None if np.isnan(row).any() else dict(zip(names, row.tolist(), strict=True)) for row in scores[rows]]
    return shown, [None if own is None else Prediction(own, model.config.thresholds) for own in given]


def _plot_losses(trainer: Trainer, path: Path) -> None:
    config, history, n_steps = trainer.config, trainer.state.history, trainer.batches.n_steps
    rows = [row for row in history if row.get("val_loss") is not None]
    validated = [(row["epoch"] * n_steps, row["val_loss"]) for row in rows]
    stages = [row["stage"] for row in history]
    starts = [place * n_steps for place in range(1, len(stages)) if stages[place] != stages[place - 1]]
    kept = None if config.metric_for_best_model == "none" else best_epoch(rows, config.metric_for_best_model)
    plot_loss_curve(trainer.state.losses, validated, path, config.run_name, starts, kept)
