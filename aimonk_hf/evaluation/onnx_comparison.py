"""Judge torch and exported ONNX files on the same labelled images."""

from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from aimonk_hf.data.dataset import AttributeDataset
from aimonk_hf.errors import AimonkError
from aimonk_hf.evaluation.report import build_report
from aimonk_hf.evaluation.thresholds import decide
from aimonk_hf.modeling.model import AimonkModel
from aimonk_hf.modeling.onnx import logits_of, onnx_network, torch_logits


def compare_metrics(model: AimonkModel, files: list[Path], dataset: AttributeDataset) -> dict[str, Any]:
    """Judge torch and each ONNX file on labelled images with the model's thresholds.

    Returns {"n_images", "torch": macro figures, FILE: macro figures and "largest_score_difference"}.
    """
    config, labels = model.config, dataset.match(model.config.attributes).labels.values
    logits = {"torch": torch_logits(dataset.paths, model)}
    readable = ~np.isnan(logits["torch"]).all(axis=1)
    if not readable.any():
        raise AimonkError(f"none of the {len(dataset)} images in {dataset.images_dir} can be read")
    for path in files:
        logits[path.name] = logits_of(dataset.paths, model.transform, onnx_network(path, model.transform))
    scores = {name: expit(values[readable]) for name, values in logits.items()}
    report: dict[str, Any] = {"n_images": int(readable.sum())}
    for name, own in scores.items():
        decisions = decide(own, config.threshold_values)
        macro = build_report(labels[readable], own, decisions, config.attributes, config.thresholds)["macro"]
        kept = ("f1", "average_precision", "auroc", "hamming_accuracy", "exact_match")
        difference = float(np.abs(own - scores["torch"]).max())
        report[name] = {key: macro[key] for key in kept} | {"largest_score_difference": difference}
    return report
