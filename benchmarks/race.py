"""To the plain loop's mAP: whole runs of recipes beside the plain loop, in seconds and in mAP on images that chose nothing.

    python benchmarks/race.py --data-dir DATA --architecture local-dir:FOLDER [--plain-epochs 10] [--recipes fast default] [--json FILE]
        [--plot FILE]

Every run starts in a process of its own, one after the other, from the same weights, on the same training images. The clock of the plain loop runs
while it trains; that of a recipe from the start of the command to its end: imports, checks of the images, validation, report and plots
included. The plain loop's mAP is measured after each epoch, with its clock stopped, and the last one is the mark.
"""

import argparse
import csv
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

BATCH_SIZE = 32
SHARES = {"val_split": 0.3, "report_split": 0.7}  # search.py chooses settings on the other images
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--architecture", required=True, help="a backbone with weights, such as local-dir:FOLDER")
    parser.add_argument("--plain-epochs", type=int, default=10)
    parser.add_argument("--recipes", nargs="+", default=["fast", "default"])
    parser.add_argument("--flags", default="", help="further flags for the recipes, as one text")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        runs = [own_run(options, recipe, Path(temporary) / recipe) for recipe in options.recipes]
        plain = plain_run(options, Path(temporary) / options.recipes[0] / "split.csv")
    print_table(plain, runs)
    if options.json:
        settings = {key: str(value) for key, value in vars(options).items()}
        options.json.write_text(json.dumps({"settings": settings, "plain": plain, "runs": runs}, indent=2) + "\n")
    if options.plot:
        draw(plain, runs, options.plot)


def own_run(options: argparse.Namespace, recipe: str, out: Path) -> Row:
    flags = ["--data-dir", str(options.data_dir), "--architecture", options.architecture, "--output-dir", str(out)]
    flags += ["--batch-size", str(BATCH_SIZE), "--recipe", recipe]
    flags += [part for name, share in SHARES.items() for part in (f"--{name.replace('_', '-')}", str(share))]
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "aimonk_hf", "train", *flags, *options.flags.split()],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )
    seconds = time.perf_counter() - start
    report = json.loads((out / "metrics.json").read_text())
    with open(out / "history.csv", newline="") as file:
        epochs = [float(row["seconds"]) for row in csv.DictReader(file)]
    training, found = sum(epochs), report["macro"]["average_precision"]
    print(f"`{recipe}`, {len(epochs)} epochs: {seconds:.0f} s ({training:.0f} s of it in epochs), mAP {found:.3f}", flush=True)
    return {"recipe": recipe, "epochs": len(epochs), "seconds": seconds, "training_seconds": training, "mAP": found}


def plain_run(options: argparse.Namespace, split: Path) -> list[Row]:
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=train_plain, args=(there, options.data_dir, options.architecture, options.plain_epochs, split)
    )
    process.start()
    there.close()  # so that its end is seen here
    rows = []
    for _ in range(options.plain_epochs):
        try:
            rows.append(here.recv())
        except EOFError:
            raise SystemExit("the plain loop has failed: its message is above") from None
        print(f"plain loop, epoch {rows[-1]['epochs']}: {rows[-1]['seconds']:.0f} s, mAP {rows[-1]['mAP']:.3f}", flush=True)
    process.kill()
    return rows


def train_plain(pipe: Connection, data: Path, architecture: str, epochs: int, split: Path) -> None:
    """In a process of its own: train on the images that split.csv has for training, and send a row after each epoch."""
    from plain import plain_training

    from aimonk_hf.data.dataset import AttributeDataset

    multiprocessing.set_start_method("fork", force=True)  # readers are forked, as from a script that a user starts
    dataset = AttributeDataset.from_folder(data)
    with open(split, newline="") as file:
        part_of = {row["image"]: row["part"] for row in csv.DictReader(file)}
    parts = [part_of.get(image) for image in dataset.labels.images]
    train_set, report_set = (dataset.select([row for row, part in enumerate(parts) if part == name]) for name in ("train", "report"))
    if not len(report_set):
        raise SystemExit(f"{len(dataset)} images are too few for a part that chooses nothing")
    steps, seconds, start = len(train_set) // BATCH_SIZE, 0.0, time.perf_counter()
    for step, (network, _) in enumerate(
        plain_training(train_set.paths, train_set.labels.values, architecture, BATCH_SIZE, pretrained=True), 1
    ):
        if step % steps:
            continue
        seconds += time.perf_counter() - start
        pipe.send({"epochs": step // steps, "seconds": seconds, "mAP": measure(network, report_set)})
        start = time.perf_counter()


def measure(network: Any, report_set: Any) -> float:
    """Return the mAP over the attributes that have both classes."""
    import numpy as np
    import torch
    from plain import Pictures
    from sklearn.metrics import average_precision_score
    from torch.utils.data import DataLoader

    labels = report_set.labels.values
    network.eval()
    with torch.inference_mode():
        scores = torch.cat(
            [network(pixels) for pixels, _ in DataLoader(Pictures(report_set.paths, labels, network, mirrored=False), 64)]
        ).numpy()
    network.train()
    found = []
    for wanted, scored in zip(labels.T, scores.T, strict=True):
        known = ~np.isnan(wanted)
        if len(np.unique(wanted[known])) == 2:
            found.append(average_precision_score(wanted[known], scored[known]))
    return float(np.mean(found))


def print_table(plain: list[Row], runs: list[Row]) -> None:
    from aimonk_hf.judging.console import table

    mark = plain[-1]
    cells = [["plain loop", str(mark["epochs"]), f"{mark['seconds']:.0f} s", "1", f"{mark['mAP']:.3f}", ""]]
    for run in runs:
        share = f"1/{mark['seconds'] / run['seconds']:.1f}"
        cells.append(
            [run["recipe"], str(run["epochs"]), f"{run['seconds']:.0f} s", share, f"{run['mAP']:.3f}", f"{run['mAP'] - mark['mAP']:+.3f}"]
        )
    print(table(["", "epochs", "wall clock", "share of the plain loop's", "mAP", "above it"], cells))


def draw(plain: list[Row], runs: list[Row], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    axes.plot(
        [row["seconds"] / 60 for row in plain], [row["mAP"] for row in plain], "o-", color="#7f8c8d", label="plain loop, after each epoch"
    )
    axes.plot([row["seconds"] / 60 for row in runs], [row["mAP"] for row in runs], "s", color="#2563eb", label="recipes, whole runs")
    for row in runs:
        axes.annotate(row["recipe"], (row["seconds"] / 60, row["mAP"]), (6, -4), textcoords="offset points", fontsize=9)
    axes.axhline(plain[-1]["mAP"], color="#7f8c8d", linewidth=0.8, linestyle=":")
    axes.set(xlabel="minutes", ylabel="mAP on images that chose nothing", xlim=(0, None))
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
