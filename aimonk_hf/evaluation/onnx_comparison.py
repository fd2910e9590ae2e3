"""Judge torch and exported ONNX files on the same labelled images."""

from pathlib import Path
from typing import Any

import numpy as np

from aimonk_hf.data.dataset import AttributeDataset
from aimonk_hf.evaluation.report import judge_dataset
from aimonk_hf.modeling.onnx_network import ONNX_FILES
from aimonk_hf.modeling.predictor import AimonkPredictor


def compare_metrics(folder: Path, dataset: AttributeDataset) -> dict[str, Any]:
    """Judge torch and each ONNX file of a model folder on labelled images, with the model's thresholds.

    Returns {"n_images", "torch": macro figures, FILE: macro figures and "largest_score_difference"}.
    """
    predictors = {"torch": AimonkPredictor.from_pretrained(folder, backend="torch")}
    for precision, file in ONNX_FILES.items():
        if (folder / file).is_file():
            own = AimonkPredictor.from_pretrained(folder, backend="onnx", precision=precision, device="cpu")
            predictors[Path(file).name] = own
    every = {name: judge_dataset(predictor, dataset) for name, predictor in predictors.items()}
    report: dict[str, Any] = {"n_images": len(every["torch"].paths)}
    for name, judged in every.items():
        kept = ("f1", "average_precision", "auroc", "hamming_accuracy", "exact_match")
        difference = float(np.abs(judged.scores - every["torch"].scores).max())
        macro = judged.report["macro"]
        report[name] = {key: macro[key] for key in kept} | {"largest_score_difference": difference}
    return report
