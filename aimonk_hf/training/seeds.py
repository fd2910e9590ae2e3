"""Train the same settings with several seeds, on one division of the images: mean and spread of the figures."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from aimonk_hf.console import figure, table
from aimonk_hf.data.dataset import AttributeDataset
from aimonk_hf.errors import AimonkError
from aimonk_hf.evaluation.metrics import nan_to_none, spread
from aimonk_hf.evaluation.split_file import parts_of
from aimonk_hf.modeling.model import AimonkModel
from aimonk_hf.storage import write_json
from aimonk_hf.training.callbacks import TrainCallback
from aimonk_hf.training.run import listed_images, train
from aimonk_hf.training.settings import TrainConfig

SEEDS_FILE = "seeds.json"
_SHOWN = {"f1": "macro F1", "average_precision": "mAP", "auroc": "macro AUROC"}


def train_seeds(
    config: TrainConfig,
    n_seeds: int,
    model: AimonkModel | None = None,
    dataset: AttributeDataset | None = None,
    callbacks: Sequence[TrainCallback] = (),
) -> list[AimonkModel]:
    """Train with the settings' seed and the `n_seeds` - 1 after it; return the models, of which the first is kept.

    The others are in `seeds/seed-N` of the run directory, and divide the images as the first one did, so that
    `compare` can take all of them as one side. Writes seeds.json: mean, standard deviation and values of each figure.
    """
    if n_seeds < 2:
        raise AimonkError(f"--seeds must be at least 2, found {n_seeds}: it repeats the run with other seeds")
    if config.folds:
        raise AimonkError("--seeds repeats a run on one division, --folds makes several: leave one of them out")
    models = [train(config, model, dataset, callbacks)]
    models[0].folder = Path(config.output_dir)  # in every process of a launch
    divided = copy.copy(listed_images(config, model, dataset))
    parts = [part or "" for part in parts_of(models[0], divided)[0]]
    divided.labels = replace(divided.labels, parts=parts)
    own: dict[str, Any] = {"push_to_hub": None, "private": False}
    for seed in range(config.seed + 1, config.seed + n_seeds):
        place = Path(config.output_dir) / "seeds" / f"seed-{seed}"
        models.append(train(replace(config, seed=seed, output_dir=str(place), **own), model, divided, callbacks))
    if PartialState().is_main_process:
        found = spread_over([one.metrics or {} for one in models])
        write_json(Path(config.output_dir) / SEEDS_FILE, {"first_seed": config.seed, "n_seeds": n_seeds} | found)
        print(spread_table(found))
    return models


def spread_over(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Return mean, standard deviation and values over several metrics.json, of the macro figures and by attribute."""

    def over(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {name: spread([row.get(name) for row in rows]) for name in _SHOWN}

    attributes = reports[0].get("per_attribute", {})
    per_attribute = {name: over([report["per_attribute"][name] for report in reports]) for name in attributes}
    macro = over([report.get("macro", {}) for report in reports])
    return dict(nan_to_none({"macro": macro, "per_attribute": per_attribute}))


def spread_table(found: dict[str, Any]) -> str:
    """Return the macro figures, and the average precision of each attribute, as lines."""
    rows = [(name, found["macro"][key]) for key, name in _SHOWN.items()]
    rows += [(f"  AP of {name}", row["average_precision"]) for name, row in found["per_attribute"].items()]
    cells = [[name, *(figure(row[key]) for key in ("mean", "sd")), *map(figure, row["values"])] for name, row in rows]
    n_seeds = len(rows[0][1]["values"])
    return table(["", "mean", "sd", *(f"seed {number}" for number in range(1, n_seeds + 1))], cells)
