"""Score the images of prediction_speed.py: this library, bare networks, transformers' pipeline, timm by hand."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Scores = np.ndarray[Any, np.dtype[np.float64]]
Score = Callable[[], Scores]  # scores all images once: [N, K]


@dataclass(frozen=True)
class Contestant:
    """A way of scoring a folder: a name in `WAYS`, with what these leave open."""

    name: str
    way: str
    batch_size: int = 32
    backend: str = "auto"
    layout: str = "nchw"
    precision: str = "float32"
    keep_memory: bool = False
    workers: int | None = None

    @property
    def exact(self) -> bool:
        """Whether its scores must be those of the others."""
        return self.precision == "float32"


def library(one: Contestant, folder: Path, paths: list[Path]) -> Score:
    """`AimonkPredictor.stream` as `aimonk-hf predict` calls it."""
    from aimonk_hf import AimonkPredictor
    from aimonk_hf.errors import ImageError

    model = AimonkPredictor.from_pretrained(folder, backend=one.backend, precision=one.precision)

    def score() -> Scores:
        rows = []
        for path, prediction in model.stream(paths, batch_size=one.batch_size, workers=one.workers):
            if isinstance(prediction, ImageError):
                raise SystemExit(f"{path!s}: {prediction}")
            rows.append(list(prediction.scores.values()))
        return np.array(rows)

    return score


def in_memory(one: Contestant, folder: Path, paths: list[Path]) -> list[np.ndarray[Any, Any]]:
    """Return the normalised pixels float32 [N, 3, H, W] of each batch."""
    from aimonk_hf import AimonkConfig
    from aimonk_hf.data.images import read_image
    from aimonk_hf.modeling.processing import EvalTransform

    transform = EvalTransform(AimonkConfig.from_pretrained(folder).pretrained_cfg)
    pixels = transform.normalize(np.stack([transform.pixels(read_image(path)) for path in paths]))
    return [pixels[start : start + one.batch_size] for start in range(0, len(pixels), one.batch_size)]


def bare_onnx(one: Contestant, folder: Path, paths: list[Path]) -> Score:
    """onnxruntime alone with its own settings, its batches in memory."""
    import onnxruntime
    from scipy.special import expit

    session = onnxruntime.InferenceSession(folder / "onnx/model.onnx", providers=["CPUExecutionProvider"])
    batches = in_memory(one, folder, paths)
    return lambda: expit(np.concatenate([session.run(["logits"], {"pixel_values": one})[0] for one in batches]))


def bare_openvino(one: Contestant, folder: Path, paths: list[Path]) -> Score:
    """OpenVINO alone with its hint for throughput, its batches in memory."""
    import openvino
    from scipy.special import expit

    settings = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(folder / "onnx/model.onnx", "CPU", settings)
    batches = in_memory(one, folder, paths)

    def score() -> Scores:
        queue, rows = openvino.AsyncInferQueue(compiled), dict[int, Any]()
        queue.set_callback(lambda request, number: rows.update({number: request.get_output_tensor(0).data.copy()}))
        for number, batch in enumerate(batches):
            queue.start_async({"pixel_values": batch}, number)
        queue.wait_all()
        return expit(np.concatenate([rows[number] for number in range(len(batches))]))

    return score


def bare(one: Contestant, folder: Path, paths: list[Path]) -> Score:
    """torch alone, its batches in memory."""
    import torch

    from aimonk_hf import AimonkModel
    from aimonk_hf.modeling.devices import keep_freed_memory

    if one.keep_memory:
        keep_freed_memory()
    layout = torch.channels_last if one.layout == "channels_last" else torch.contiguous_format
    network = AimonkModel.from_pretrained(folder).timm_model.to(memory_format=layout)
    batches = [torch.from_numpy(batch).contiguous(memory_format=layout) for batch in in_memory(one, folder, paths)]

    def score() -> Scores:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=one.precision == "bf16"):
            scores: Scores = torch.cat([network(batch).float() for batch in batches]).double().sigmoid().numpy()
        return scores

    return score


def pipeline(one: Contestant, folder: Path, paths: list[Path]) -> Score:
    """transformers' pipeline over the same files, in batches of 32."""
    from transformers import pipeline as build

    from aimonk_hf.storage import read_json

    names = read_json(folder / "config.json")["label_names"]
    classify = build("image-classification", str(folder), top_k=1000, batch_size=one.batch_size)
    files = list(map(str, paths))

    def score() -> Scores:
        answers = [{row["label"]: row["score"] for row in answer} for answer in classify(files)]
        return np.array([[answer[name] for name in names] for answer in answers])

    return score


WAYS: dict[str, Callable[[Contestant, Path, list[Path]], Score]] = {
    "library": library,
    "bare": bare,
    "bare onnx": bare_onnx,
    "bare openvino": bare_openvino,
    "pipeline": pipeline,
}


def timm_by_hand(folder: Path) -> Callable[[Path], Scores]:
    """The lines that a user of timm writes: its transform and its network, one image at a time."""
    import timm
    import torch
    from PIL import Image

    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))

    def score(path: Path) -> Scores:
        with torch.inference_mode(), Image.open(path) as image:
            values: Scores = network(transform(image.convert("RGB"))[None])[0].double().sigmoid().numpy()
        return values

    return score
