"""Which images a run folder's model has seen, by the split.csv beside its weights."""

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aimonk_hf.data.dataset import AttributeDataset
from aimonk_hf.errors import AimonkError
from aimonk_hf.judging.evaluation import score_images
from aimonk_hf.model.modeling import AimonkModel
from aimonk_hf.storage import read_json


def read_parts(model: str) -> dict[str, str]:
    """Return image to part of MODEL/split.csv; empty where there is none."""
    path = Path(model) / "split.csv"
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return {row["image"]: row["part"] for row in csv.DictReader(file)}


def choose_part(dataset: AttributeDataset, model: str, part: str | None) -> AttributeDataset:
    """Return the images of one part of the model's split; all of them where `part` is None."""
    if part is None:
        return dataset
    parts = read_parts(model)
    if not parts:
        raise AimonkError(f"{model} has no split.csv: --part needs the folder of a training run")
    rows = [row for row, image in enumerate(dataset.labels.images) if parts.get(image) == part]
    if not rows:
        raise AimonkError(f"{Path(model) / 'split.csv'} puts none of these images into the part {part}")
    return dataset.select(rows)


def seen_before(model: str, data_dir: str, dataset: AttributeDataset) -> tuple[str, str] | None:
    """Return, where the model was trained or tuned on some of these images, what to say of them; None where it has seen none.

    They are the same images if the run was given the same data folder and split.csv names them in another part than "report".
    """
    record = Path(model) / "train_config.json"
    if not record.is_file() or Path(read_json(record)["settings"]["data_dir"]).resolve() != Path(data_dir).resolve():
        return None
    parts = read_parts(model)
    held = [parts[image] for image in dataset.labels.images if parts.get(image, "report") != "report"]
    if not held:
        return None
    counts = ", ".join(f"{held.count(part)} of its {part} part" for part in sorted(set(held)))
    return "the images of this dataset", (
        f"the model knows some of them ({counts}), which flatters it; hence no intervals, no p-values and no verdict (--part report judges fairly)"
    )


def scores_of_unseen(model: str, dataset: AttributeDataset) -> tuple[NDArray[np.float64], str]:
    """Return the model's scores [N, K] with NaN for its training images, in the order of the dataset's attributes, and whose they are."""
    network = AimonkModel.from_pretrained(model)
    columns = dataset.columns_of(network.config.attributes)
    parts = read_parts(model)
    unseen = [row for row, image in enumerate(dataset.labels.images) if parts.get(image) != "train"]
    scores = np.full(dataset.labels.values.shape, np.nan)
    found, _ = score_images(network, [dataset.paths[row] for row in unseen], progress=True)
    scores[np.ix_(unseen, columns)] = found
    note = "which it was not trained on" if parts else "none of which it should have been trained on"
    return scores, f"the scores of {model} for images {note}"
