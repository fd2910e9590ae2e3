"""Measure how the cost of an image grows with their number: seconds, microseconds per image, peak memory.

    python benchmarks/scale.py [--sizes 1000,10000,100000] [--attributes 40] [--parts NAME,NAME] [--limit 1800] [--json
        FILE]

Of labels only no images are drawn: --sizes 10000,1000000 --parts labels.csv,labels.txt,labels.jsonl,labels.parquet

Every part runs at every size in a process of its own, so that its peak memory is its own; reading the modules and
making the inputs are not timed. "memory" is how far the process rose above what it held before the part began. "growth"
is the cost of an image over that at the smallest size: a part above 1.5 is marked "grows". Images are drawn: 32 x 32
pixels, one in fifty a copy of another. "predict-2" and "epoch-2" are commands in two processes under torchrun, with a
thread each: what is shown is the slowest process and the largest one, and beside it the seconds of the whole command,
whose start of several seconds hides the rest where images are few.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from processes import kill_family, own_peak, reset_own_peak
from scale_groups import GROUPS
from scale_parts import READING, TIMED, Part, write_data

MOST_GROWTH = 1.5
MOST_REPEATS, LEAST_SECONDS = 5, 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="1000,10000,100000", help="numbers of images, the smallest first")
    parser.add_argument("--attributes", type=int, default=40)
    parser.add_argument("--parts", help=f"some of: {','.join(PARTS)}")
    parser.add_argument("--limit", type=float, default=1800, help="seconds after which a part is given up")
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--one-part", nargs=4, metavar=("NAME", "FOLDER", "IMAGES", "ATTRIBUTES"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.one_part:
        name, folder, n_images, n_attributes = options.one_part
        print(json.dumps(PARTS[name](Path(folder), int(n_images), int(n_attributes))))
        return
    parts = options.parts.split(",") if options.parts else list(PARTS)
    if unknown := [name for name in parts if name not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}: name some of {','.join(PARTS)}")
    sizes = [int(size) for size in options.sizes.split(",")]
    rows: list[dict[str, Any]] = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            print(f"{size} images with {options.attributes} attributes", file=sys.stderr)
            write_data(Path(folder), size, options.attributes, with_images=not set(parts) <= set(READING))
            for name in parts:
                rows.append(row := run_part(name, Path(folder), size, options))
                took = "given up" if row["seconds"] is None else f"{row['seconds']:.3f} s, {row['megabytes']:.0f} MB"
                print(f"  {name}: {took}", file=sys.stderr)  # so that an ended run has shown something
    add_growth(rows)
    print(report(sorted(rows, key=lambda row: parts.index(row["part"]))))
    if options.json:
        options.json.write_text(json.dumps({"attributes": options.attributes, "rows": rows}, indent=2) + "\n")


def run_part(name: str, folder: Path, size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Run one part in a process of its own; seconds and memory are None where it was given up."""
    command = [sys.executable, __file__, "--one-part", name, str(folder), str(size), str(options.attributes)]
    environment = os.environ | {"AIMONK_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    row: dict[str, Any] = {"part": name, "images": size, "seconds": None, "megabytes": None}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        out, errors = process.communicate(timeout=options.limit)
    except subprocess.TimeoutExpired:
        kill_family(process.pid)  # those that torchrun started too
        process.communicate()
        return row
    if process.returncode:
        raise SystemExit(f"{name} failed at {size} images: {errors.strip()[-3000:]}")
    return row | json.loads(out.splitlines()[-1])


def time_part(part: Part, folder: Path, n_images: int, n_attributes: int) -> dict[str, float]:
    """Return seconds, the least of several where they are few, and the megabytes that the first run added."""
    act = part(folder, n_images, n_attributes)
    before = reset_own_peak()
    times = [seconds(act)]
    megabytes = max(0.0, own_peak() - before)
    while len(times) < MOST_REPEATS and sum(times) < LEAST_SECONDS:
        times.append(seconds(act))
    return {"seconds": min(times), "megabytes": megabytes}


def seconds(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def add_growth(rows: list[dict[str, Any]]) -> None:
    first: dict[str, float] = {}
    for row in rows:
        cost = None if row["seconds"] is None else 1e6 * row["seconds"] / row["images"]
        row["microseconds_per_image"] = cost
        row["growth"] = None if cost is None else cost / first.setdefault(row["part"], cost)
        row["grows"] = row["seconds"] is None or row["growth"] > MOST_GROWTH


def report(rows: list[dict[str, Any]]) -> str:
    from aimonk_hf.console import table

    cells = []
    for row in rows:
        figures = ["given up", "", "", "", ""]
        if row["seconds"] is not None:
            growth = f"{'grows ' * row['grows']}{row['growth']:.2f}"
            command = f"{row['command_seconds']:.1f}" if "command_seconds" in row else ""
            figures = [
                f"{row['seconds']:.3f}",
                f"{row['microseconds_per_image']:.1f}",
                f"{row['megabytes']:.0f} MB",
                growth,
                command,
            ]
        cells.append([row["part"], str(row["images"]), *figures])
    return table(["part", "images", "seconds", "us an image", "memory", "growth", "whole command"], cells)


PARTS: dict[str, Callable[[Path, int, int], dict[str, float]]] = {
    **{name: partial(time_part, part) for name, part in TIMED.items()},
    **GROUPS,
}


if __name__ == "__main__":
    main()
