"""Time the cache of decoded images: images per second read and resized without it, filling it, and from it.

    python benchmarks/decode_cache.py [--data-dir DIR] [--images 300] [--size 256] [--rounds 5] [--json FILE]

Without --data-dir drawn garments are read: JPEG files of 600 x 800 pixels and about 100 kB. One process reads one image
after another, in random order, as each worker of a training does. The ways take turns in every round. "on disk": the
system was asked to forget the cache's pages before; the image files themselves are always read from memory. Every image
is compared with the decoded one.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from aimonk_hf.console import table
from aimonk_hf.data.image_cache import ImageCache, Pixels
from aimonk_hf.data.images import read_image
from aimonk_hf.data.sample_data import draw_garment

WAYS = ("no cache", "filling the cache", "from the cache in memory", "from the cache on disk")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="data folder whose images are read instead of drawn ones")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--size", type=int, default=256, help="pixels per side of what is kept")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file to which the figures are written")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        paths = (
            data_paths(options.data_dir)[: options.images]
            if options.data_dir
            else draw_images(Path(temporary), options.images)
        )
        seconds = measure(paths, options.size, options.rounds, Path(temporary))
        kilobytes = statistics.mean(path.stat().st_size for path in paths) / 1000
    print(
        f"{len(paths)} images of {kilobytes:.0f} kB, resized to {options.size} x {options.size}, "
        f"{options.rounds} rounds, one process"
    )
    print(report(seconds, len(paths)))
    if options.json:
        options.json.write_text(
            json.dumps({"images": len(paths), "size": options.size, "seconds": seconds}, indent=2) + "\n"
        )


def data_paths(data_dir: Path) -> list[Path]:
    from aimonk_hf.data.dataset import AttributeDataset

    dataset = AttributeDataset.from_folder(data_dir)
    problems = dataset.find_problems()
    return [path for row, path in enumerate(dataset.paths) if row not in problems]


def draw_images(folder: Path, count: int) -> list[Path]:
    paths = [folder / f"{number:04d}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        rng = np.random.default_rng(number)
        large = draw_garment(rng).image.resize((600, 800), Image.Resampling.BICUBIC)
        grain = rng.normal(0, 6, (800, 600, 1))
        Image.fromarray((np.asarray(large) + grain).clip(0, 255).astype(np.uint8)).save(path, quality=85)
        os.utime(path, (1_700_000_000, 1_700_000_000))  # files that are seconds old would not be kept yet
    return paths


def measure(paths: list[Path], size: int, rounds: int, folder: Path) -> dict[str, list[float]]:
    """Return the seconds that each way of reading all images took in each round."""
    expected = [decode(path, size) for path in paths]  # also brings the image files into memory
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds):
        cache_folder = folder / f"cache {number}"
        for way in WAYS:
            if way == "from the cache on disk":
                forget_pages(cache_folder)
            seconds[way].append(time_reading(paths, size, None if way == "no cache" else cache_folder, expected))
    return seconds


def time_reading(paths: list[Path], size: int, cache_folder: Path | None, expected: list[Pixels]) -> float:
    """Return the seconds of reading all images, opening the cache included, comparing the pixels not."""
    started = time.perf_counter()
    cache = ImageCache(cache_folder, f"squash {size}") if cache_folder else None
    seconds = time.perf_counter() - started
    order = np.random.default_rng(0).permutation(len(paths))
    for path, wanted in ((paths[row], expected[row]) for row in order):
        started = time.perf_counter()
        pixels = cache.get(path, partial(decode, path, size)) if cache else decode(path, size)
        seconds += time.perf_counter() - started
        if not np.array_equal(pixels, wanted):
            raise SystemExit(f"{path.name}: other pixels than those of decoding")
    return seconds


def decode(path: Path, size: int) -> Pixels:
    return np.asarray(read_image(path).resize((size, size), Image.Resampling.BICUBIC))


def forget_pages(folder: Path) -> None:
    """Ask the system to drop a folder's files from memory; on file systems that live in memory nothing happens."""
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def report(seconds: dict[str, list[float]], n_images: int) -> str:
    """Return a table of medians, with the slowest and the fastest round."""
    plain = seconds["no cache"]
    rows = []
    for way, times in seconds.items():
        rates = [n_images / each for each in times]
        ratio = statistics.median(before / each for before, each in zip(plain, times, strict=True))
        spread = f"{min(rates):.0f}-{max(rates):.0f}"
        rows.append(
            [way, f"{statistics.median(rates):.0f}", spread, f"{1000 / statistics.median(rates):.2f}", f"{ratio:.2f}"]
        )
    return table(["", "images/s", "range", "ms an image", "times as fast"], rows)


if __name__ == "__main__":
    main()
