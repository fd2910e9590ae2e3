"""Score the images of prediction_speed.py: this library, the bare network, transformers' pipeline, timm by hand."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

Scores = np.ndarray[Any, np.dtype[np.float64]]
Score = Callable[[], Scores]  # scores all pictures once: [N, K]


@dataclass(frozen=True)
class Contestant:
    """A way of scoring a folder: "library", "bare" or "pipeline", with what these leave open."""

    name: str
    way: str
    batch_size: int = 32
    layout: str = "nchw"
    precision: str = "float32"
    keep_memory: bool = False
    workers: int | None = None

    @property
    def exact(self) -> bool:
        """Whether its scores must be those of the others."""
        return self.precision == "float32"


def library(one: Contestant, folder: Path, paths: list[Path]) -> Score:
    """`model.stream` as a user calls it."""
    from aimonk_hf import AimonkModel
    from aimonk_hf.errors import ImageError

    model = AimonkModel.from_pretrained(folder)

    def score() -> Scores:
        rows = []
        for path, prediction in model.stream(
            paths, batch_size=one.batch_size, workers=one.workers, precision=one.precision
        ):
            if isinstance(prediction, ImageError):
                raise SystemExit(f"{path!s}: {prediction}")
            rows.append(list(prediction.scores.values()))
        return np.array(rows)

    return score


def bare(one: Contestant, folder: Path, paths: list[Path]) -> Score:
    """The network alone, its batches in memory: no end-to-end prediction with the same settings can be faster."""
    import torch

    from aimonk_hf.data.images import read_image

    prepare, network = load(one, folder)
    pixels = torch.stack([prepare(read_image(path)) for path in paths])
    batches = pixels.split(one.batch_size)
    return lambda: torch.cat([network(batch) for batch in batches]).double().sigmoid().numpy()


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
    "pipeline": pipeline,
}


def load(
    one: Contestant, folder: Path
) -> tuple[Callable[..., "torch.Tensor"], Callable[["torch.Tensor"], "torch.Tensor"]]:
    """Return the functions from an image to pixels, and from pixels uint8 [N, 3, H, W] to logits [N, K]."""
    import torch

    from aimonk_hf import AimonkModel
    from aimonk_hf.modeling.devices import keep_freed_memory

    if one.keep_memory:
        keep_freed_memory()
    model = AimonkModel.from_pretrained(folder)
    layout = torch.channels_last if one.layout == "channels_last" else torch.contiguous_format
    model.timm_model.to(memory_format=layout)

    def network(pixels: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=one.precision == "bf16"):
            values = model.transform.normalize(pixels).contiguous(memory_format=layout)
            logits: torch.Tensor = model.timm_model(values).float()
            return logits

    return model.transform.pixels, network


def timm_by_hand(folder: Path) -> Callable[[Path], Scores]:
    """The lines that a user of timm writes: its transform and its network, one picture at a time."""
    import timm
    import torch
    from PIL import Image

    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))

    def score(path: Path) -> Scores:
        with torch.inference_mode(), Image.open(path) as picture:
            values: Scores = network(transform(picture.convert("RGB"))[None])[0].double().sigmoid().numpy()
        return values

    return score
