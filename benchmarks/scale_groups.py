"""Time the commands of `scale.py` in two processes under torchrun: a folder predicted, an epoch of training.

Started by torchrun, this file is `python -m aimonk_hf` with a clock: it reads the modules first, then runs the command,
and writes what the process took and held.
"""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from processes import own_peak, reset_own_peak
from scale_parts import SIDE, attribute_names

N_PROCESSES = 2
Figures = dict[str, float]


def predicting_in_two(folder: Path, n_images: int, n_attributes: int) -> Figures:
    """Time `aimonk-hf predict FOLDER`, from the listing of the images to the joined file."""
    import torch

    from aimonk_hf import AimonkModel

    torch.manual_seed(0)
    names = attribute_names(n_attributes)
    AimonkModel.from_timm("test_resnet", names, pretrained=False, image_size=SIDE).save_pretrained(folder / "model")
    flags = ["--model", str(folder / "model"), "--format", "csv", "--output", str(folder / "predicted.csv")]
    figures = launch(folder, ["predict", str(folder / "images"), *flags])
    with open(folder / "predicted.csv", newline="") as file:
        if (found := sum(1 for _ in csv.reader(file)) - 1) != n_images:
            raise SystemExit(f"{found} of {n_images} images were predicted")
    return figures


def training_in_two(folder: Path, n_images: int, n_attributes: int) -> Figures:
    """Train for an epoch on all images without validation; return its seconds, the filling of the cache included.

    Each process reads its images itself, so that its memory is all that it needs.
    """
    flags = [
        "--data-dir",
        str(folder),
        "--output-dir",
        str(folder / "run"),
        "--overwrite",
        "--architecture",
        "test_resnet",
        "--no-pretrained",
    ]
    flags += ["--image-size", str(SIDE), "--epochs", "1", "--val-split", "0", "--num-workers", "0"]
    figures = launch(folder, ["train", *flags])
    with open(folder / "run" / "history.csv", newline="") as file:
        (epoch,) = csv.DictReader(file)
    return figures | {"seconds": float(epoch["seconds"])}


def launch(folder: Path, command: list[str]) -> Figures:
    """Run a command in two processes; return the slowest one's seconds, the largest one's megabytes, and the total."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(N_PROCESSES)]
    start = time.perf_counter()
    done = subprocess.run([*torchrun, __file__, str(folder), *command], env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{command[0]} in {N_PROCESSES} processes failed: {done.stderr.strip()[-2000:]}")
    found = [json.loads(figures_file(folder, rank).read_text()) for rank in range(N_PROCESSES)]
    return {key: max(figures[key] for figures in found) for key in ("seconds", "megabytes")} | {
        "command_seconds": seconds
    }


def figures_file(folder: Path, rank: int) -> Path:
    return folder / f"figures-{rank}.json"


def serve(folder: Path, command: list[str]) -> int:
    """In each process: run the command and write its seconds, and the megabytes that it added."""
    from aimonk_hf.cli.main import main

    if command[0] == "predict":
        from aimonk_hf import AimonkModel

        model = AimonkModel.from_pretrained(command[command.index("--model") + 1])
        model.predict(
            sorted((folder / "images").iterdir())[:2]
        )  # what a first image makes torch read is not to be timed
    else:
        import aimonk_hf.training.run  # noqa: F401 - whose reading is not to be measured
    before, start = reset_own_peak(), time.perf_counter()
    failed = main(command)
    figures = {"seconds": time.perf_counter() - start, "megabytes": max(0.0, own_peak() - before)}
    figures_file(folder, int(os.environ["RANK"])).write_text(json.dumps(figures))
    return failed


GROUPS = {"predict-2": predicting_in_two, "epoch-2": training_in_two}


if __name__ == "__main__":
    sys.exit(serve(Path(sys.argv[1]), sys.argv[2:]))
