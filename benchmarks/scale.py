"""Does the cost of an image stay the same when there are more of them? Seconds, microseconds per image and peak memory by number of images.

    python benchmarks/scale.py [--sizes 1000,10000,100000] [--attributes 40] [--parts NAME,NAME] [--limit 1800] [--json FILE]

Every part runs at every size in a process of its own, so that its peak memory is its own; reading the modules and making the inputs are not
timed. "memory" is how far the process rose above what it held before the part began. "growth" is the cost of an image over that at the
smallest size: a part above 1.5 is marked "grows". Pictures are drawn: 32 x 32 pixels, one in fifty a copy of another.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIDE = 32
COPY_EVERY = 50
MOST_GROWTH = 1.5
MOST_REPEATS, LEAST_SECONDS = 5, 0.5
Part = Callable[[Path, int, int], Callable[[], object]]  # folder, images, attributes -> what is timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="1000,10000,100000", help="numbers of images, the smallest first")
    parser.add_argument("--attributes", type=int, default=40)
    parser.add_argument("--parts", help=f"some of: {','.join(PARTS)}")
    parser.add_argument("--limit", type=float, default=1800, help="seconds after which a part is given up")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one-part", nargs=4, metavar=("NAME", "FOLDER", "IMAGES", "ATTRIBUTES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one_part:
        name, folder, n_images, n_attributes = options.one_part
        print(json.dumps(time_part(PARTS[name], Path(folder), int(n_images), int(n_attributes))))
        return
    parts = options.parts.split(",") if options.parts else list(PARTS)
    if unknown := [name for name in parts if name not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}: name some of {','.join(PARTS)}")
    sizes = [int(size) for size in options.sizes.split(",")]
    rows: list[dict[str, Any]] = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            print(f"{size} images with {options.attributes} attributes", file=sys.stderr)
            write_data(Path(folder), size, options.attributes)
            rows += [run_part(name, Path(folder), size, options) for name in parts]
    add_growth(rows)
    print(report(sorted(rows, key=lambda row: parts.index(row["part"]))))
    if options.json:
        options.json.write_text(json.dumps({"attributes": options.attributes, "rows": rows}, indent=2) + "\n")


def run_part(name: str, folder: Path, size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Run one part in a process of its own; seconds and memory are None where it was given up."""
    command = [sys.executable, __file__, "--one-part", name, str(folder), str(size), str(options.attributes)]
    environment = os.environ | {"AIMONK_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    row: dict[str, Any] = {"part": name, "images": size, "seconds": None, "megabytes": None}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=options.limit, env=environment)
    except subprocess.TimeoutExpired:
        return row
    if done.returncode:
        raise SystemExit(f"{name} failed at {size} images: {done.stderr.strip()[-500:]}")
    return row | json.loads(done.stdout.splitlines()[-1])


def time_part(part: Part, folder: Path, n_images: int, n_attributes: int) -> dict[str, float]:
    """Return seconds, the least of several where they are few, and how many megabytes the first run rose above what was held before."""
    act = part(folder, n_images, n_attributes)
    before = reset_peak()
    times = [seconds(act)]
    megabytes = max(0.0, peak() - before)
    while len(times) < MOST_REPEATS and sum(times) < LEAST_SECONDS:
        times.append(seconds(act))
    return {"seconds": min(times), "megabytes": megabytes}


def seconds(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def reset_peak() -> float:
    """Let the peak begin anew where the system can (Linux), and return the megabytes held now."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> float:
    """Return the largest number of megabytes held since `reset_peak`, or since the process began."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def add_growth(rows: list[dict[str, Any]]) -> None:
    first: dict[str, float] = {}
    for row in rows:
        cost = None if row["seconds"] is None else 1e6 * row["seconds"] / row["images"]
        row["microseconds_per_image"] = cost
        row["growth"] = None if cost is None else cost / first.setdefault(row["part"], cost)
        row["grows"] = row["seconds"] is None or row["growth"] > MOST_GROWTH


def report(rows: list[dict[str, Any]]) -> str:
    from aimonk_hf.judging.console import table

    cells = []
    for row in rows:
        figures = ["given up", "", "", ""]
        if row["seconds"] is not None:
            growth = f"{'grows ' * row['grows']}{row['growth']:.2f}"
            figures = [f"{row['seconds']:.3f}", f"{row['microseconds_per_image']:.1f}", f"{row['megabytes']:.0f} MB", growth]
        cells.append([row["part"], str(row["images"]), *figures])
    return table(["part", "images", "seconds", "us an image", "memory", "growth"], cells)


# What the parts work on


def write_data(folder: Path, n_images: int, n_attributes: int) -> None:
    """Write pictures, labels.csv and labels.txt; every fiftieth picture is a hard link to the one before."""
    from PIL import Image

    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    names = [f"{number:06d}.png" for number in range(n_images)]
    for number, name in enumerate(names):
        path = folder / "images" / name
        if number % COPY_EVERY == COPY_EVERY - 1:
            os.link(folder / "images" / names[number - 1], path)
            continue
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        coarse.save(path, compress_level=1)
        os.utime(path, (1_700_000_000, 1_700_000_000))  # the cache keeps no picture whose file is seconds old
    texts = np.array(["0", "1", "NA"])[np.nan_to_num(draw_labels(n_images, n_attributes), nan=2).astype(np.int8)]
    header = ["image", *attribute_names(n_attributes)]
    with open(folder / "labels.csv", "w") as table, open(folder / "labels.txt", "w") as plain:
        table.write(",".join(header) + "\n")
        for name, row in zip(names, texts, strict=True):
            table.write(f"{name},{','.join(row)}\n")
            plain.write(f"{name} {' '.join(row)}\n")


def draw_labels(n_images: int, n_attributes: int) -> NDArray[np.float32]:
    """Return labels [N, K] in {0, 1, NaN} with prevalences from 5% to 50% and 10% missing."""
    rng = np.random.default_rng(1)
    values = (rng.random((n_images, n_attributes), dtype=np.float32) < np.linspace(0.05, 0.5, n_attributes)).astype(np.float32)
    values[rng.random(values.shape, dtype=np.float32) < 0.1] = np.nan
    return values


def draw_scores(labels: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return scores [N, K] that know something of the labels."""
    rng = np.random.default_rng(2)
    return 1 / (1 + np.exp(-(np.nan_to_num(labels, nan=0.5) + rng.normal(-0.5, 1, labels.shape))))


def attribute_names(n_attributes: int) -> list[str]:
    return [f"attribute_{number}" for number in range(n_attributes)]


# The parts


def reading_csv(folder: Path, n_images: int, n_attributes: int) -> Callable[[], object]:
    from aimonk_hf import read_labels

    return lambda: read_labels(folder / "labels.csv")


def reading_text(folder: Path, n_images: int, n_attributes: int) -> Callable[[], object]:
    from aimonk_hf import read_labels

    return lambda: read_labels(folder / "labels.txt")


def opening_folder(folder: Path, n_images: int, n_attributes: int) -> Callable[[], object]:
    from aimonk_hf import AttributeDataset

    return lambda: AttributeDataset.from_folder(folder)


def checking_pictures(folder: Path, n_images: int, n_attributes: int) -> Callable[[], object]:
    from aimonk_hf import AttributeDataset

    dataset = AttributeDataset.from_folder(folder)
    return dataset.find_problems


def grouping_copies(folder: Path, n_images: int, n_attributes: int) -> Callable[[], object]:
    from aimonk_hf import AttributeDataset
    from aimonk_hf.data.dataset import duplicate_groups

    paths = AttributeDataset.from_folder(folder).paths
    return lambda: duplicate_groups(paths)


def splitting(folder: Path, n_images: int, n_attributes: int) -> Callable[[], object]:
    from aimonk_hf.data.splits import split_rows

    labels, groups = draw_labels(n_images, n_attributes), np.arange(n_images)
    groups[COPY_EVERY - 1 :: COPY_EVERY] -= 1
    return lambda: split_rows(labels, [0.8, 0.1, 0.1], groups=groups)


def near_duplicates(folder: Path, n_images: int, n_attributes: int) -> Callable[[], object]:
    from aimonk_hf import AttributeDataset
    from aimonk_hf.data.near_duplicates import find_duplicates, group_numbers, thumbnail

    paths = AttributeDataset.from_folder(folder).paths
    thumbnails = [thumbnail(path) for path in paths]
    return lambda: group_numbers(n_images, find_duplicates(paths, thumbnails))


def auditing(folder: Path, n_images: int, n_attributes: int) -> Callable[[], object]:
    import scipy.stats  # noqa: F401 - whose reading is not to be timed

    from aimonk_hf import AttributeDataset
    from aimonk_hf.judging.audit import audit
    from aimonk_hf.judging.audit_report import audit_markdown

    dataset = AttributeDataset.from_folder(folder)
    return lambda: audit_markdown(audit(dataset).findings)


def filling_cache(folder: Path, n_images: int, n_attributes: int) -> Callable[[], object]:
    from aimonk_hf import AttributeDataset
    from aimonk_hf.data.pixel_cache import PixelCache

    paths = AttributeDataset.from_folder(folder).paths

    def fill() -> None:
        cache = PixelCache(folder / "images", f"plain {SIDE}", tempfile.mkdtemp(dir=folder))
        for path in paths:
            cache.get(path, partial(decode, path))

    return fill


def reading_cache(folder: Path, n_images: int, n_attributes: int) -> Callable[[], object]:
    from aimonk_hf import AttributeDataset
    from aimonk_hf.data.pixel_cache import PixelCache

    paths = AttributeDataset.from_folder(folder).paths

    def read() -> None:
        cache = PixelCache(folder / "images", f"plain {SIDE}", folder / "cache")
        for path in paths:
            cache.get(path, partial(decode, path))

    read()  # fills it
    return read


def decode(path: Path) -> NDArray[np.uint8]:
    from aimonk_hf.data.images import read_image

    return np.asarray(read_image(path))


def planning_epoch(folder: Path, n_images: int, n_attributes: int) -> Callable[[], object]:
    from aimonk_hf.training.batches import EpochBatches, balancing_weights

    labels = draw_labels(n_images, n_attributes)

    def plan() -> int:
        weights = balancing_weights(labels)
        batches = EpochBatches(n_images=n_images, batch_size=32, accumulation_steps=1, n_processes=1, rank=0, seed=0, image_weights=weights)
        return sum(map(len, batches))

    return plan


def predicting(folder: Path, n_images: int, n_attributes: int) -> Callable[[], object]:
    import torch

    from aimonk_hf import AimonkModel
    from aimonk_hf.model.predict_files import list_images, predict_files

    torch.manual_seed(0)
    names = attribute_names(n_attributes)
    model = AimonkModel.from_timm("test_resnet", names, pretrained=False, image_size=SIDE).eval()

    def predict() -> None:
        paths = list_images([folder / "images"])
        with open(os.devnull, "w") as out, open(os.devnull, "w") as sys.stderr:
            if failed := predict_files(model.stream(paths), names, len(paths), "text", out):
                raise SystemExit(f"{failed} pictures could not be read")

    return predict


def judging(folder: Path, n_images: int, n_attributes: int) -> Callable[[], object]:
    import sklearn.metrics  # noqa: F401 - whose reading is not to be timed

    from aimonk_hf.judging.metrics import build_report

    labels = draw_labels(n_images, n_attributes)
    scores = draw_scores(labels)
    names = attribute_names(n_attributes)
    return lambda: build_report(labels, scores, scores >= 0.5, names, dict.fromkeys(names, 0.5))


def bootstrapping(folder: Path, n_images: int, n_attributes: int) -> Callable[[], object]:
    import scipy.stats  # noqa: F401 - whose reading is not to be timed

    from aimonk_hf.judging.intervals import bootstrap_intervals

    labels = draw_labels(n_images, n_attributes)
    scores = draw_scores(labels)
    return lambda: bootstrap_intervals(labels, scores, scores >= 0.5)


def permuting(folder: Path, n_images: int, n_attributes: int) -> Callable[[], object]:
    import scipy.stats  # noqa: F401 - whose reading is not to be timed

    from aimonk_hf.judging.signal_test import permutation_p_values

    labels = draw_labels(n_images, n_attributes)
    scores = draw_scores(labels)
    return lambda: permutation_p_values(labels, scores)


def tuning(folder: Path, n_images: int, n_attributes: int) -> Callable[[], object]:
    from aimonk_hf.model.thresholds import cross_fit, tune_thresholds

    labels = draw_labels(n_images, n_attributes)
    scores = draw_scores(labels)
    return lambda: (tune_thresholds(labels, scores), cross_fit(labels, scores))


def finding_suspects(folder: Path, n_images: int, n_attributes: int) -> Callable[[], object]:
    import scipy.stats  # noqa: F401 - whose reading is not to be timed

    from aimonk_hf.judging.suspect_labels import find_fillable, find_suspects

    labels = draw_labels(n_images, n_attributes).astype(float)
    scores = draw_scores(draw_labels(n_images, n_attributes))
    return lambda: (find_suspects(labels, scores), find_fillable(labels, scores))


PARTS: dict[str, Part] = {
    "labels.csv": reading_csv,
    "labels.txt": reading_text,
    "from_folder": opening_folder,
    "find_problems": checking_pictures,
    "duplicate_groups": grouping_copies,
    "split": splitting,
    "near-duplicates": near_duplicates,
    "audit": auditing,
    "cache-filling": filling_cache,
    "cache-reading": reading_cache,
    "epoch-plan": planning_epoch,
    "predict": predicting,
    "metrics": judging,
    "bootstrap": bootstrapping,
    "permutation": permuting,
    "thresholds": tuning,
    "suspects": finding_suspects,
}


if __name__ == "__main__":
    main()
