"""Compare settings of a recipe on the training part: one training per seed, judged on the images left out.

    python benchmarks/search.py --data-dir DATA --architecture local-dir:FOLDER --json FILE --try "--epochs 6" --try
        "--epochs 6 --lr 2e-3" [--seeds 0 1 2] [--division 0]

The images that `race.py` reports from are put aside first and never read: what is chosen here can be judged on them. Of
the others each seed trains on 70% and judges on 30%, those of --division where it is given (a teacher belongs to one
division); near-duplicates stay together. Differences to the first settings
are taken seed by seed. FILE keeps what has been run: another call with more settings runs only those.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--architecture", required=True, help="a backbone with weights, such as local-dir:FOLDER")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument(
        "--try", dest="settings", action="append", default=[], help="flags of `aimonk-hf train`, as one text; repeat"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--division", type=int, help="the seed that divides the images, for all seeds; default: each its own"
    )
    options = parser.parse_args()
    from aimonk_hf.data.splits import split_rows

    rows: list[Row] = json.loads(options.json.read_text()) if options.json.exists() else []
    dataset, groups = training_part(options.data_dir)
    for seed in options.seeds:
        for settings in options.settings:
            if not any(row["settings"] == settings and row["seed"] == seed for row in rows):
                division = seed if options.division is None else options.division
                part_of = split_rows(dataset.labels.values, [0.7, 0.3], seed=division, groups=groups)
                parts = [dataset.select(np.flatnonzero(part_of == part)) for part in range(2)]
                rows.append({"settings": settings, "seed": seed} | run(parts, options.architecture, settings, seed))
                print(json.dumps(rows[-1]), flush=True)
                options.json.write_text(json.dumps(rows, indent=1) + "\n")
    print_table(rows)


def training_part(data: Path) -> tuple[Any, Any]:
    """Return the images that choices may look at, and their groups of near-duplicates."""
    from fixed_split import fixed_parts

    from aimonk_hf import AttributeDataset
    from aimonk_hf.data.duplicates import image_groups

    dataset = AttributeDataset.from_folder(data)
    dataset = dataset.select([row for row, part in enumerate(fixed_parts(dataset)) if part != "report"])
    return dataset, image_groups(dataset)


def run(parts: list[Any], architecture: str, settings: str, seed: int) -> Row:
    """Train on the first part; return mAP, AUROC and masked loss on the second, and the seconds that training took."""
    import torch
    from accelerate.state import AcceleratorState

    from aimonk_hf.cli.flags import add_train_flags
    from aimonk_hf.modeling.devices import keep_freed_memory, resolve_precision
    from aimonk_hf.training.loop import Trainer
    from aimonk_hf.training.processes import Processes
    from aimonk_hf.training.run_directory import RunDirectory
    from aimonk_hf.training.seeding import seed_everything
    from aimonk_hf.training.settings import TrainConfig
    from aimonk_hf.training.setup import build_model
    from aimonk_hf.training.teacher import soft_targets

    parser = argparse.ArgumentParser()
    add_train_flags(parser)
    flags = [
        "--data-dir",
        "-",
        "--output-dir",
        "-",
        "--architecture",
        architecture,
        "--seed",
        str(seed),
        *settings.split(),
    ]
    config = TrainConfig(**vars(parser.parse_args(flags)))
    AcceleratorState._reset_state()
    precision = resolve_precision(config.mixed_precision.replace("no", "float32"), torch.device("cpu"))
    accelerator = Processes(mixed_precision=precision.replace("float32", "no"), cpu=True)
    keep_freed_memory()
    seed_everything(seed)
    start = time.perf_counter()
    with TemporaryDirectory() as folder:
        run_directory = RunDirectory(replace(config, output_dir=folder))
        run_directory.checkpoints.mkdir()
        soft = soft_targets(config.teacher, run_directory, accelerator, parts) if config.teacher else None
    trainer = Trainer(config, accelerator, build_model(config, parts[0].attributes), parts[0], parts[1], soft)
    while not trainer.finished:
        stage = trainer.begin_stage()
        while trainer.state.stage == stage.number:
            trainer.prepare_epoch(stage)
            row = trainer.train_epoch(stage, lambda steps: None)
            trainer.end_epoch(row)
    seconds = time.perf_counter() - start
    found = trainer.validate(stage)
    return {
        "mAP": found["macro_average_precision"],
        "AUROC": found["macro_auroc"],
        "F1": found["macro_f1"],
        "loss": found["val_loss"],
        "train_loss": row["train_loss"],
        "seconds": seconds,
    }


def print_table(rows: list[Row]) -> None:
    from aimonk_hf.console import table

    base = {row["seed"]: row["mAP"] for row in rows if row["settings"] == rows[0]["settings"]}
    cells = []
    for settings in dict.fromkeys(row["settings"] for row in rows):
        own = [row for row in rows if row["settings"] == settings]
        mean = {key: statistics.mean(row[key] for row in own) for key in ("mAP", "AUROC", "F1", "seconds")}
        gains = [row["mAP"] - base[row["seed"]] for row in own if row["seed"] in base]
        spread = " ".join(f"{gain:+.3f}" for gain in gains)
        cells.append(
            [
                settings or "(default)",
                f"{mean['mAP']:.3f}",
                spread,
                f"{mean['AUROC']:.3f}",
                f"{mean['F1']:.3f}",
                f"{mean['seconds']:.0f} s",
            ]
        )
    print(table(["settings", "mAP", "to the first, by seed", "AUROC", "F1 at 0.5", "training"], cells))


if __name__ == "__main__":
    main()
