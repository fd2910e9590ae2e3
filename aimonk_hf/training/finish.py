"""Finish a run: calibrate, tune, evaluate, and write model, figures and plots."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aimonk_hf.data.dataset import AttributeDataset
from aimonk_hf.evaluation.report_table import metrics_table
from aimonk_hf.evaluation.tuning import choose_and_judge, choose_and_judge_out_of_fold, describe_data
from aimonk_hf.modeling.hub import push_model_folder
from aimonk_hf.modeling.model import AimonkModel
from aimonk_hf.modeling.prediction import Prediction
from aimonk_hf.training.epoch_choice import best_epoch
from aimonk_hf.training.folds import OutOfFold
from aimonk_hf.training.loop import Trainer
from aimonk_hf.training.plots import plot_loss_curve, plot_predictions
from aimonk_hf.training.processes import hand_on, score_together
from aimonk_hf.training.run_directory import LOSS_CURVE, SAMPLE_PREDICTIONS, RunDirectory

_PLOTTED_IMAGES = 12


def finish(
    trainer: Trainer,
    run: RunDirectory,
    validation: AttributeDataset,
    report_set: AttributeDataset,
    out_of_fold: OutOfFold | None,
) -> AimonkModel:
    """Calibrate, tune, evaluate, and write model, figures and plots; the other processes help to score and wait."""
    accelerator, config, resolved = trainer.accelerator, trainer.config, trainer.resolved_settings()
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
    model.folder = run.path
    _plot_losses(trainer, run)
    plot_predictions(shown, predictions, run.path / SAMPLE_PREDICTIONS)
    run.write_config(resolved, finished=True)
    if config.push_to_hub:
        print(f"pushed:   {push_model_folder(run.path, config.push_to_hub, private=config.private or None).url}")
    hand_on(accelerator, model)
    return model


def _plot_losses(trainer: Trainer, run: RunDirectory) -> None:
    config, history, n_steps = trainer.config, trainer.state.history, trainer.batches.n_steps
    rows = [row for row in history if row.get("val_loss") is not None]
    validated = [(row["epoch"] * n_steps, row["val_loss"]) for row in rows]
    stages = [row["stage"] for row in history]
    starts = [place * n_steps for place in range(1, len(stages)) if stages[place] != stages[place - 1]]
    kept = None if config.metric_for_best_model == "none" else best_epoch(rows, config.metric_for_best_model)
    plot_loss_curve(trainer.state.losses, validated, run.path / LOSS_CURVE, config.run_name, starts, kept)


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
    config = trainer.config
    choices: dict[str, Any] = {
        "calibration": config.calibrate,
        "objective": config.threshold_objective if config.tune_thresholds else None,
        "seed": config.seed,
    }
    summary = {"training": _summary(trainer, validation, report_set)}
    if out_of_fold is not None:
        dataset = out_of_fold.dataset
        report, scores = choose_and_judge_out_of_fold(
            model, dataset.labels.values, out_of_fold.scores, out_of_fold.fold_of, out_of_fold.groups, **choices
        )
        model.metrics = report | summary
        rows = _some_rows(len(dataset), config.seed)
        return dataset.select(rows), [_as_prediction(model, scores[row]) for row in rows]
    if len(validation):
        score = partial(score_together, trainer.accelerator)
        chooses = config.chooses_epoch
        report = choose_and_judge(model, validation, report_set, epoch_chosen=chooses, score=score, **choices)
        model.metrics = report | summary
    shown = validation if len(validation) else trainer.train_set
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
        "recipe": Path(config.recipe).stem,
        "backbone": config.architecture if ":" not in config.architecture else trainer.model.config.architecture,
        "epochs": len(trainer.state.history),
        "n_train": len(trainer.train_set),
        "n_validation": len(validation),
        "n_report": len(report_set),
        "data": describe_data([trainer.train_set, validation, report_set]),
    }
