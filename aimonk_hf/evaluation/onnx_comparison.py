"""Judge torch and exported ONNX files on the same labelled images."""

from pathlib import Path
from typing import Any

import numpy as np

from aimonk_hf.data.dataset import AttributeDataset
from aimonk_hf.errors import AimonkError
from aimonk_hf.evaluation.calibration import to_scores
from aimonk_hf.evaluation.metrics import build_report
from aimonk_hf.evaluation.thresholds import decide
from aimonk_hf.modeling.model import AimonkModel
from aimonk_hf.modeling.onnx import logits_of, onnx_network, torch_logits


def compare_metrics(model: AimonkModel, files: list[Path], dataset: AttributeDataset) -> dict[str, Any]:
    """Judge torch and each ONNX file on labelled images with the model's thresholds.

    Returns {"n_images", "torch": macro figures, FILE: macro figures and "largest_score_difference"}.
    """
    labels = dataset.match(model.config.attributes).labels.values
    expected = torch_logits(dataset.paths, model)
    readable = ~np.isnan(expected).all(axis=1)
    if not readable.any():
        raise AimonkError(f"none of the {len(dataset)} images in {dataset.images_dir} can be read")
    report: dict[str, Any] = {"n_images": int(readable.sum())}
    for name, logits in [("torch", expected)] + [
        (path.name, logits_of(dataset.paths, model.transform, onnx_network(path, model.transform))) for path in files
    ]:
        scores = to_scores(logits[readable])
        decisions = decide(scores, model.config.threshold_values)
        macro = build_report(labels[readable], scores, decisions, model.config.attributes, model.config.thresholds)[
            "macro"
        ]
        difference = np.abs(scores - to_scores(expected[readable])).max()
        report[name] = {
            key: macro[key] for key in ("f1", "average_precision", "auroc", "hamming_accuracy", "exact_match")
        }
        report[name]["largest_score_difference"] = float(difference)
    return report
