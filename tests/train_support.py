"""Small runs, and what they have written."""

import csv
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageEnhance

from aimonk_hf import AimonkModel, AttributeDataset, TrainConfig, train
from aimonk_hf.data.sample_data import write_sample_data
from aimonk_hf.training.callbacks import TrainCallback
from aimonk_hf.training.checkpoints import load_checkpoint

N_DRAWN, N_TWINS = 24, 12  # of `write_twins`
# of the command line, as `small` has them
FLAGS = ["--recipe", "demo", "--epochs", "1", "--batch-size", "16", "--image-size", "32"]
FLAGS += ["--num-workers", "0", "--mixed-precision", "float32"]


def small(data: Path | str, out: Path | str, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {"recipe": "demo", "epochs": 1, "batch_size": 16, "image_size": 32, "num_workers": 0}
    return TrainConfig(str(data), str(out), **values | {"mixed_precision": "float32"} | changes)


def places(data: Path, out: Path) -> list[str]:
    return ["--data-dir", str(data), "--output-dir", str(out)]


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def column(path: Path, name: str) -> dict[str, str]:
    return {row["image"]: row[name] for row in rows_of(path)}


def history(out: Path) -> list[dict[str, str]]:
    """Return the rows of history.csv without times."""
    timing = ("seconds", "images_per_second")
    return [{key: row[key] for key in row if key not in timing} for row in rows_of(out / "history.csv")]


def state_of(out: Path) -> dict[str, Any]:
    """Return the last checkpoint."""
    state = load_checkpoint(out / "checkpoints")
    assert state is not None
    return state


def losses(out: Path) -> list[float]:
    return state_of(out)["losses"].tolist()


def checkpoints(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").glob("step-*"))


def weights(model: AimonkModel) -> dict[str, torch.Tensor]:
    return model.timm_model.state_dict()


def same(first: AimonkModel, second: AimonkModel) -> bool:
    return all(torch.equal(tensor, weights(second)[name]) for name, tensor in weights(first).items())


class Killed(BaseException):
    """Stands in for a process that ends."""


class KillAfter(TrainCallback):
    """Ends the run after the next step, before that is saved."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, step: int, loss: float | None, lr: float) -> None:
        if step > self.step:
            raise Killed


def train_until(step: int, config: TrainConfig) -> None:
    """Train, end as a killed process does, and leave the checkpoint of `step`."""
    with pytest.raises(Killed):
        train(config, callbacks=[KillAfter(step)])


def write_twins(folder: Path) -> Path:
    """Draw 24 images, the first twelve once more at another size and exposure, and the last once more as a copy."""
    write_sample_data(folder, n_images=N_DRAWN, seed=3)
    images, table = folder / "images", (folder / "labels.csv").read_text().splitlines()
    for number in range(N_TWINS):
        with Image.open(images / f"garment_{number:04d}.png") as image:
            ImageEnhance.Brightness(image.convert("RGB").resize((100, 100))).enhance(1.04).save(
                images / f"twin_{number:04d}.jpg", quality=90
            )
        table.append(f"twin_{number:04d}.jpg,{table[1 + number].partition(',')[2]}")
    shutil.copy(images / f"garment_{N_DRAWN - 1:04d}.png", images / "copy.png")
    table.append(f"copy.png,{table[N_DRAWN].partition(',')[2]}")
    (folder / "labels.csv").write_text("\n".join(table) + "\n")
    return folder


def original(image: str) -> str:
    """Return the drawing that an image shows."""
    last = f"garment_{N_DRAWN - 1:04d}.png"
    return last if image == "copy.png" else image.replace("twin_", "garment_").replace(".jpg", ".png")


def in_several(of_image: dict[str, str]) -> set[str]:
    """Return the drawings whose images have different values."""
    found: dict[str, set[str]] = {}
    for image, value in of_image.items():
        found.setdefault(original(image), set()).add(value)
    return {name for name, values in found.items() if len(values) > 1}


def with_labels(data: Path, **columns: Any) -> AttributeDataset:
    """Return the data with a group or a part for each image."""
    dataset = AttributeDataset.from_folder(data)
    dataset.labels = replace(dataset.labels, **columns)
    return dataset


def given_parts(counts: list[int]) -> list[str]:
    """Return the first drawings as training images, and so on; twins and copy are where the drawings are."""
    names = ("train", "validation", "report", "")
    parts = [name for name, count in zip(names, counts, strict=True) for _ in range(count)]
    return [*parts, *parts[:N_TWINS], parts[-1]]
