"""Race to the plain loop's mAP: whole runs of recipes beside it and its peers, in seconds and in held-out mAP.

    python benchmarks/race.py --data-dir DATA --architecture local-dir:FOLDER [--plain-epochs 10] [--peer-epochs 10]
        [--recipes fast default] [--peers "transformers Trainer" fastai] [--json FILE] [--plot FILE]

Every run starts in a process of its own, one after the other, from the same weights, on the same training images: those
of fixed_split.py. The clock of a loop (the plain one, or one of peers.py) runs while it trains;
that of a recipe from the start of the command to its end: imports, checks of the images, decoding into an empty cache,
validation, report and plots included. A loop's mAP is measured after each epoch, with its clock stopped, and the plain
loop's last one is the mark. A recipe is measured at its end alone, so that its time to the mark is the whole command's.
"training alone" is a loop's clock, and a recipe's epochs: its steps, what it computes of frozen layers, the reading of
images.

A peer gets as many epochs as end within the plain loop's time, so that its schedule is whole: a process that is thrown
away does its first steps, and their pace says how many epochs that is, at least 1 and at most --peer-epochs. Where its
pace was overrated, it is stopped after the epoch in which its clock passes 1.25 times the plain loop's, and the table
says that it was cut. "in its time" is the mAP last measured before the plain loop's clock stopped. Peak memory is that
of a process and its readers, looked at four times a second, measuring included.
"""

import argparse
import csv
import json
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fixed_split import write_fixed_split
from peers import PEERS
from plain import Loop, Score, Task, plain_loop
from processes import PeakMemory, kill_family
from race_table import draw, print_table, summarise
from training_speed import FOR_EVER, Contestant, train_as_a_script

from aimonk_hf import AttributeDataset

BATCH_SIZE = 32
SPLIT = "fixed_split.csv"
PACE_STEPS = 8
MOST_TIME = 1.25  # of the plain loop's
LOOPS: dict[str, Loop] = {"plain loop": plain_loop, **PEERS}
Run = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--architecture", required=True, help="a backbone with weights, such as local-dir:FOLDER")
    parser.add_argument("--plain-epochs", type=int, default=10)
    parser.add_argument(
        "--peer-epochs", type=int, help="at most so many for each peer; as many as the plain loop's if not given"
    )
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--recipes", nargs="+", default=["fast", "default"])
    parser.add_argument("--flags", default="", help="further flags for the recipes, as one text")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        write_fixed_split(options.data_dir, Path(temporary) / SPLIT)
        recipes = [run_recipe(options, recipe, Path(temporary) / recipe) for recipe in options.recipes]
        train_set, report_set = split_parts(options.data_dir, Path(temporary) / options.recipes[0] / "split.csv")
        task = Task(train_set, options.architecture, True, BATCH_SIZE, options.plain_epochs, Path(temporary))
        plain = run_loop("plain loop", task, report_set)
        peers = [
            run_peer(name, task, report_set, plain, options.peer_epochs or options.plain_epochs)
            for name in options.peers
        ]
    table = [summarise(run, plain["rows"]) for run in (plain, *peers, *recipes)]
    print_table(table)
    if options.json:
        settings = {key: str(value) for key, value in vars(options).items()}
        found = {"settings": settings, "plain": plain, "peers": peers, "recipes": recipes, "table": table}
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    if options.plot:
        draw(plain, peers, recipes, options.plot)


def run_recipe(options: argparse.Namespace, recipe: str, out: Path) -> Run:
    """Run the command and return its only row: the whole run."""
    flags = ["--data-dir", str(options.data_dir), "--architecture", options.architecture, "--output-dir", str(out)]
    flags += ["--batch-size", str(BATCH_SIZE), "--recipe", recipe]
    flags += ["--labels", str(out.parent / SPLIT), "--split-column", "split"]
    flags += ["--images-dir", str(AttributeDataset.from_folder(options.data_dir).images_dir)]
    command = [sys.executable, "-m", "aimonk_hf", "train", *flags, *options.flags.split()]
    own_cache = {"AIMONK_CACHE": str(out.parent / f"cache of {recipe}")}  # empty: decoding counts
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, env=os.environ | own_cache)
    with PeakMemory(process.pid) as memory:
        failed = process.wait()
        seconds = time.perf_counter() - start
    if failed:
        raise SystemExit(f"the recipe {recipe} has failed: {' '.join(command[1:])}")
    report = json.loads((out / "metrics.json").read_text())
    with open(out / "history.csv", newline="") as file:
        epochs = [float(row["seconds"]) for row in csv.DictReader(file)]
    row = {
        "epochs": len(epochs),
        "seconds": seconds,
        "mAP": report["macro"]["average_precision"],
        "peak_memory_mb": memory.megabytes,
    }
    print(
        f"`{recipe}`, {len(epochs)} epochs: {seconds:.0f} s ({sum(epochs):.0f} s of it in epochs), "
        f"mAP {row['mAP']:.3f}",
        flush=True,
    )
    return {"name": recipe, "planned_epochs": len(epochs), "cut": False, "training_seconds": sum(epochs), "rows": [row]}


def split_parts(data: Path, split: Path) -> tuple[AttributeDataset, AttributeDataset]:
    """Return the images that split.csv has for training, and those that only report."""
    dataset = AttributeDataset.from_folder(data)
    with open(split, newline="") as file:
        part_of = {row["image"]: row["part"] for row in csv.DictReader(file)}
    parts = [part_of.get(image) for image in dataset.labels.images]
    train_set, report_set = (
        dataset.select([row for row, part in enumerate(parts) if part == name]) for name in ("train", "report")
    )
    if not len(report_set):
        raise SystemExit(f"{len(dataset)} images are too few for a part that chooses nothing")
    return train_set, report_set


def run_peer(name: str, task: Task, report_set: AttributeDataset, plain: Run, most_epochs: int) -> Run:
    """Run a peer for as many epochs as fit the plain loop's time."""
    pace = Contestant(name, replace(task, epochs=FOR_EVER, scratch=task.scratch / f"the pace of {name}"))
    images_per_second, _ = pace.take_turn(PACE_STEPS)
    pace.end()
    per_epoch = len(task.dataset) // BATCH_SIZE * BATCH_SIZE / images_per_second
    plain_seconds = plain["rows"][-1]["seconds"]
    epochs = fitting_epochs(plain_seconds, per_epoch, most_epochs)
    print(f"{name}: {epochs} epochs of some {per_epoch:.0f} s", flush=True)
    scratch = task.scratch / name
    scratch.mkdir()
    return run_loop(name, replace(task, epochs=epochs, scratch=scratch), report_set, MOST_TIME * plain_seconds)


def fitting_epochs(seconds: float, per_epoch: float, most: int) -> int:
    """Return how many epochs end within the seconds, at least 1."""
    return max(1, min(most, int(seconds / per_epoch)))


def run_loop(name: str, task: Task, report_set: AttributeDataset, most_seconds: float = math.inf) -> Run:
    """Train in a process of its own; return a row for each epoch, up to the one that passes `most_seconds`."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=train_loop, args=(there, name, task, report_set))
    process.start()
    there.close()  # so that its end is seen here
    assert process.pid is not None
    rows: list[dict[str, Any]] = []
    with PeakMemory(process.pid) as memory:
        while len(rows) < task.epochs and not (rows and rows[-1]["seconds"] > most_seconds):
            try:
                rows.append(here.recv() | {"peak_memory_mb": memory.megabytes})
            except EOFError:
                raise SystemExit(f"{name} has failed: its message is above") from None
            print(
                f"{name}, epoch {rows[-1]['epochs']}: {rows[-1]['seconds']:.0f} s, mAP {rows[-1]['mAP']:.3f}",
                flush=True,
            )
    kill_family(process.pid)
    process.join()
    return {"name": name, "planned_epochs": task.epochs, "cut": len(rows) < task.epochs, "rows": rows}


def train_loop(pipe: Connection, name: str, task: Task, report_set: AttributeDataset) -> None:
    """In a process of its own: train, and send a row after each epoch."""
    import torch

    train_as_a_script()
    torch.manual_seed(0)
    epochs, seconds, start = 0, 0.0, 0.0

    def after_epoch(score: Score) -> None:
        nonlocal epochs, seconds, start
        seconds += time.perf_counter() - start
        epochs += 1
        pipe.send({"epochs": epochs, "seconds": seconds, "mAP": mean_average_precision(report_set, score)})
        start = time.perf_counter()

    train = LOOPS[name](task, lambda n_images: None, after_epoch)
    start = time.perf_counter()
    train()


def mean_average_precision(dataset: AttributeDataset, score: Score) -> float:
    """Return the mAP over the attributes that have both classes."""
    import numpy as np
    from sklearn.metrics import average_precision_score

    found = []
    for wanted, scored in zip(dataset.labels.values.T, score(dataset.paths).T, strict=True):
        known = ~np.isnan(wanted)
        if len(np.unique(wanted[known])) == 2:
            found.append(average_precision_score(wanted[known], scored[known]))
    return float(np.mean(found))


if __name__ == "__main__":
    main()
