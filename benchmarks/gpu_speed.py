"""Compare training and prediction on an accelerator with the bare step and with transformers.

    python benchmarks/gpu_speed.py [--networks NAME,NAME] [--batch-size 128] [--steps 30] [--json FILE]

Images a second of: the bare step (a batch on the device, bf16, channels_last, fused AdamW), the plain loop of the
published systems, and our `default` from cached images, for each network; bare step and ours compiled, for two of them;
transformers' Trainer, for the first; then a folder by `AimonkPredictor`, and by transformers' pipeline at its best of
batches of 1, 8 and 64. Each network has random weights. Without an accelerator everything runs on the CPU, small, to
show that it runs.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plain import Task, plain_loop
from training_speed import draw, ours

from aimonk_hf import AttributeDataset, TrainConfig
from aimonk_hf.data.dataset import for_each
from aimonk_hf.data.image_cache import open_image_cache
from aimonk_hf.data.images import read_image
from aimonk_hf.training.augmentation import augmentations_by_epoch
from aimonk_hf.training.setup import build_model

NETWORKS = ("mobilenetv2_100", "efficientnet_b0", "resnet50", "convnext_tiny", "vit_small_patch16_224")
COMPILED = ("resnet50", "vit_small_patch16_224")
CPU = torch.device("cpu")
DEVICE = (torch.accelerator.current_accelerator() or CPU) if torch.accelerator.is_available() else CPU
Row = dict[str, Any]


class Done(Exception):
    """Ends a training loop after the timed steps."""


class Clock:
    """Called after each step with its images: time the steps after the first third, and end the loop then."""

    def __init__(self, steps: int) -> None:
        self.untimed, self.steps = max(1, steps // 3), steps
        self.taken = self.images = 0
        self.start = 0.0

    def __call__(self, n_images: int) -> None:
        """Count a step."""
        self.taken += 1
        if self.taken <= self.untimed:
            synchronize()
            self.start = time.perf_counter()
        else:
            self.images += n_images
        if self.taken == self.untimed + self.steps:
            raise Done

    def rate(self, train: Callable[[], None]) -> float:
        """Return the images a second of a loop that calls this after each step."""
        try:
            train()
        except Done:
            synchronize()
        return self.images / (time.perf_counter() - self.start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    small = DEVICE.type == "cpu"
    parser.add_argument("--networks", default="mobilenetv2_100" if small else ",".join(NETWORKS))
    parser.add_argument("--batch-size", type=int, default=4 if small else 128)
    parser.add_argument("--steps", type=int, default=2 if small else 30)
    parser.add_argument("--images", type=int, default=24 if small else 2048)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error")
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else DEVICE.type
    print(f"{name}; torch {torch.__version__}, batches of {options.batch_size}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        dataset = AttributeDataset.from_folder(draw(place / "data", options.images))
        rows = [one for network in options.networks.split(",") for one in train_rows(network, dataset, place, options)]
        rows += folder_rows(options.networks.split(",")[0], dataset.paths, place)
    if options.json:
        options.json.write_text(json.dumps({"device": name, "torch": torch.__version__, "rows": rows}, indent=2) + "\n")


def train_rows(network: str, dataset: AttributeDataset, place: Path, options: argparse.Namespace) -> list[Row]:
    """Measure the loops of one network, and print each as it comes."""
    rows: list[Row] = []

    def add(name: str, loop: Callable[[Task, Any, Any], Callable[[], None]]) -> None:
        scratch = place / f"{network}-{len(rows)}"
        scratch.mkdir()
        task = Task(dataset, network, False, options.batch_size, 10**4, scratch)
        reset_memory()
        clock = Clock(options.steps)
        try:
            rate = clock.rate(loop(task, clock, lambda score: None))
        except (RuntimeError, ImportError) as error:
            print(f"  {network}, {name}: left out ({str(error).splitlines()[0][:100]})", flush=True)
            return
        bare = next((row["images_per_second"] for row in rows if row["name"] == "bare step"), rate)
        rows.append({"network": network, "name": name, "images_per_second": rate, "to_bare": rate / bare} | memory())
        print(f"  {network}, {name}: {rate:.1f} images/s, {rate / bare:.2f} of the bare step", flush=True)

    add("bare step", bare_step)
    if network in COMPILED and DEVICE.type != "cpu":
        add("bare step, compiled", partial(bare_step, compiled=True))
    add("aimonk_hf, default", ours_filled)
    if network in COMPILED and DEVICE.type != "cpu":
        add("aimonk_hf, default, compiled", partial(ours_filled, compiled=True))
    add("plain loop", plain_loop if DEVICE.type == "cpu" else moved(plain_loop))
    if network == NETWORKS[0] and find_spec("transformers"):
        from peers import transformers_trainer

        add("transformers Trainer", transformers_trainer)
    return rows


def bare_step(task: Task, after_step: Any, after_epoch: Any, compiled: bool = False) -> Callable[[], None]:
    """Take forward, backward and AdamW on one batch on the device."""
    import timm

    width = len(task.dataset.attributes)
    model = timm.create_model(task.architecture, num_classes=width).train().to(DEVICE)
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=DEVICE.type == "cuda")
    forward = torch.compile(model) if compiled else model
    pixels = torch.randn(task.batch_size, 3, 224, 224, device=DEVICE).to(memory_format=torch.channels_last)
    wanted = torch.randint(0, 2, (task.batch_size, width), device=DEVICE).float()

    def train() -> None:
        while True:
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type != "cpu"):
                logits = forward(pixels)
            torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), wanted).backward()
            optimizer.step()
            optimizer.zero_grad()
            after_step(task.batch_size)

    return train


def ours_filled(task: Task, after_step: Any, after_epoch: Any, compiled: bool = False) -> Callable[[], None]:
    """Train by `default` from images that are in the cache already."""
    cache = str(task.scratch / "cache")
    config = TrainConfig("-", "-", architecture=task.architecture, pretrained=False)
    augmentation = augmentations_by_epoch(config, build_model(config, task.dataset.attributes))[0]
    kept = open_image_cache(cache, augmentation.fingerprint)
    assert kept is not None

    def keep(path: Path) -> None:
        kept.get(path, lambda: np.asarray(augmentation.prepare(read_image(path))))

    for_each(task.dataset.paths, keep, "filling the cache", progress=False)
    return ours(task, after_step, after_epoch, DEVICE.type, compile=compiled, image_cache=cache)


def moved(loop: Callable[..., Callable[[], None]]) -> Callable[..., Callable[[], None]]:
    """Run the plain loop with its network on the device and each batch moved there."""
    import plain

    def run(task: Task, after_step: Any, after_epoch: Any) -> Callable[[], None]:
        build, loss = plain.new_network, plain.masked_loss

        def network(task: Task) -> torch.nn.Module:
            made = build(task).to(DEVICE)
            made.register_forward_pre_hook(lambda module, given: tuple(one.to(DEVICE) for one in given))
            return made

        plain.new_network = network
        plain.masked_loss = lambda logits, wanted, weight=None: loss(
            logits, wanted.to(DEVICE), None if weight is None else weight.to(DEVICE)
        )
        try:
            return loop(task, after_step, after_epoch)
        finally:
            plain.new_network = build

    return run


def folder_rows(network: str, paths: list[Path], place: Path) -> list[Row]:
    """Measure a folder by our predictor and by transformers' pipeline."""
    from aimonk_hf import AimonkModel, AimonkPredictor

    folder = place / "predict"
    AimonkModel.from_timm(network, ["one", "two"], pretrained=False).save_pretrained(folder)
    predictor = AimonkPredictor.from_pretrained(folder, backend="torch", precision="auto")
    found = {"aimonk_hf": best_rate(lambda: list(predictor.stream(paths, batch_size=128)), len(paths))}
    if find_spec("transformers"):
        from transformers import pipeline

        classify = pipeline("image-classification", str(folder), device=DEVICE)
        files, workers = [str(path) for path in paths], min(8, os.cpu_count() or 1)

        def score(size: int) -> None:
            list(classify(files, batch_size=size, num_workers=workers))

        for size in (1, 8, 64):
            found[f"transformers pipeline, batches of {size}"] = best_rate(partial(score, size), len(paths))
    rows = [{"network": network, "name": name, "images_per_second": rate} for name, rate in found.items()]
    for row in rows:
        print(f"  folder, {row['name']}: {row['images_per_second']:.1f} images/s", flush=True)
    return rows


def best_rate(act: Callable[[], Any], n_images: int) -> float:
    """Return the median images a second of three runs, after one that is not timed."""
    act()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        act()
        times.append(time.perf_counter() - start)
    return n_images / statistics.median(times)


def synchronize() -> None:
    """Wait for the device."""
    if DEVICE.type != "cpu":
        torch.accelerator.synchronize()


def reset_memory() -> None:
    """Forget the device's peak of memory."""
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def memory() -> Row:
    """Return the device's peak of memory in gigabytes, where it tells it."""
    return {"device_gb": torch.cuda.max_memory_allocated() / 1e9} if DEVICE.type == "cuda" else {}


if __name__ == "__main__":
    main()
