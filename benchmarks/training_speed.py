"""Compare training throughput with the plain loop, transformers' Trainer and fastai: images a second, memory.

    python benchmarks/training_speed.py [--data-dir DATA] [--architecture mobilenetv2_100] [--steps 4] [--rounds 3]
        [--json FILE]

The same images, network, batch size and labels for all, each in a process of its own. Rounds are interleaved, one
contestant computing at a time, and medians are shown, with the ratio to the plain loop of the same round. Without
--data-dir garments are drawn at 400 x 600 pixels. Weights are random: speed does not depend on them. "the bare step"
has its batch in memory and is what no end-to-end training can pass.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from peers import PEERS
from plain import AfterEpoch, AfterStep, Loop, Task, plain_loop
from processes import family, family_megabytes, kill_family

from aimonk_hf import AttributeDataset

FOR_EVER = 10**4  # epochs: a contestant trains until it is killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--architecture", default="mobilenetv2_100")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--steps", type=int, default=4, help="steps that are timed in each round, after two that are not"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        data = options.data_dir or draw(Path(temporary) / "data", 8 * options.batch_size)
        task = Task(
            AttributeDataset.from_folder(data),
            options.architecture,
            False,
            options.batch_size,
            FOR_EVER,
            Path(temporary),
        )
        rows = measure(task, options)
    print_table(rows, options)
    if options.json:
        options.json.write_text(
            json.dumps({"settings": {key: str(value) for key, value in vars(options).items()}, "rows": rows}, indent=2)
            + "\n"
        )


def draw(folder: Path, n_images: int) -> Path:
    """Write drawn garments, enlarged to the size and format of photographs."""
    from PIL import Image

    from aimonk_hf.data.sample_data import write_sample_data

    write_sample_data(folder, n_images=n_images, seed=0)
    for path in sorted((folder / "images").iterdir()):
        with Image.open(path) as image:
            image.convert("RGB").resize((400, 600)).save(
                path, "JPEG", quality=90
            )  # the name's .png does not matter to a reader
    return folder


def measure(task: Task, options: argparse.Namespace) -> list[dict[str, Any]]:
    names = list(CONTESTANTS)
    rates: dict[str, list[float]] = {name: [] for name in names}
    memory: dict[str, float] = {}
    with ExitStack() as ends:  # where one fails too: this process would wait for the others
        contestants = {}
        for number, name in enumerate(names):
            contestants[name] = Contestant(name, replace(task, scratch=task.scratch / str(number)))
            ends.callback(contestants[name].end)
        for _ in range(options.rounds):
            for name, contestant in contestants.items():
                rate, memory[name] = contestant.take_turn(options.steps)
                rates[name].append(rate)
    plain = rates["plain loop"]
    return [
        {
            "name": name,
            "images_per_second": statistics.median(rates[name]),
            "ratio_to_plain": statistics.median(own / base for own, base in zip(rates[name], plain, strict=True)),
            "peak_memory_mb": memory[name],
            "rounds": rates[name],
        }
        for name in names
    ]


class Contestant:
    """A process, with its readers, that is stopped but for its turns, so that readers do not read ahead meanwhile."""

    def __init__(self, name: str, task: Task) -> None:
        context = multiprocessing.get_context("spawn")
        self._name = name
        self._pipe, theirs = context.Pipe()
        task.scratch.mkdir()
        self._process = context.Process(target=serve, args=(name, theirs, task))
        self._process.start()
        theirs.close()  # so that its end is seen here
        self._receive()  # built, and one step done
        self._pause()

    def _receive(self) -> tuple[float, float]:
        try:
            found: tuple[float, float] = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise SystemExit(f"{self._name} has failed: its message is above") from None
        return found

    def _pause(self) -> None:
        for process in family(self._process.pid):
            process.suspend()

    def take_turn(self, n_steps: int) -> tuple[float, float]:
        """Return images per second over so many steps, and megabytes."""
        for process in family(self._process.pid):
            process.resume()
        self._pipe.send(n_steps)
        found = self._receive()
        self._pause()
        return found

    def end(self) -> None:
        """Kill the process and its readers."""
        assert self._process.pid is not None
        kill_family(self._process.pid)
        self._process.join()


def serve(name: str, pipe: Connection, task: Task) -> None:
    """In a process of its own: train until killed, as a script does, in the main thread."""
    train_as_a_script()
    CONTESTANTS[name](task, Turns(pipe), lambda score: None)()


def train_as_a_script() -> None:
    """Let readers be forked, as from a script that a user starts, and all compute on the processor."""
    multiprocessing.set_start_method("fork", force=True)
    os.environ.update(ACCELERATE_USE_CPU="true", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")


class Turns:
    """Called after every step: time as many steps as asked for, after two untimed ones, and hold between turns."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._untimed = self._left = 0
        self._images = 0
        self._start = 0.0

    def __call__(self, n_images: int) -> None:
        """Count a step of so many images; return when the next one may begin."""
        if self._untimed:
            self._untimed -= 1
            self._start = time.perf_counter()
            return
        self._images += n_images
        self._left -= 1
        if self._left > 0:
            return
        self._pipe.send((self._images / (time.perf_counter() - self._start), family_megabytes()))
        self._left = self._pipe.recv()
        self._untimed, self._images = 2, 0


def ours(
    task: Task, after_step: AfterStep, after_epoch: AfterEpoch, device: str = "cpu", **settings: Any
) -> Callable[[], None]:
    """This library's recipe `default`: its own loop, loader, augmentation, averaging and precision."""
    import torch

    from aimonk_hf import TrainConfig
    from aimonk_hf.modeling.devices import prepare_for_training, resolve_precision
    from aimonk_hf.training.loop import Trainer
    from aimonk_hf.training.processes import Processes
    from aimonk_hf.training.setup import build_model
    from aimonk_hf.training.taken_steps import TakenStep

    settings = {"image_cache": str(task.scratch / "cache"), "batch_size": task.batch_size, **settings}
    config = TrainConfig("-", "-", architecture=task.architecture, pretrained=False, epochs=task.epochs, **settings)
    precision = resolve_precision("auto", torch.device(device)).replace("float32", "no")
    accelerator = Processes(cpu=device == "cpu", mixed_precision=precision)
    prepare_for_training(accelerator.device)
    trainer = Trainer(
        config, accelerator, build_model(config, task.dataset.attributes), task.dataset, task.dataset.select([])
    )
    n_images = len(task.dataset) // trainer.batches.n_steps

    def after_steps(steps: list[TakenStep]) -> None:
        for _ in steps:
            after_step(n_images)

    def train() -> None:
        while not trainer.finished:
            stage = trainer.begin_stage()
            while trainer.state.stage == stage.number:
                trainer.prepare_epoch(stage)
                trainer.end_epoch(trainer.train_epoch(stage, after_steps))

    return train


def bare_step(task: Task, after_step: AfterStep, after_epoch: AfterEpoch) -> Callable[[], None]:
    """Take forward, backward and AdamW on one batch in memory, in precision and memory format of `ours`."""
    import timm
    import torch

    from aimonk_hf.modeling.devices import keep_freed_memory, resolve_precision
    from aimonk_hf.training.depthwise import DepthwiseGradients

    keep_freed_memory()
    n_attributes = len(task.dataset.attributes)
    precision = resolve_precision("auto", torch.device("cpu"))
    model = timm.create_model(task.architecture, num_classes=n_attributes).train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    pixels = torch.randn(task.batch_size, 3, 224, 224).to(memory_format=torch.channels_last)
    wanted = torch.randint(0, 2, (task.batch_size, n_attributes)).float()

    def train() -> None:
        while True:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"), DepthwiseGradients():
                logits = model(pixels)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), wanted)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            after_step(task.batch_size)

    return train


CONTESTANTS: dict[str, Loop] = {
    "plain loop": plain_loop,
    **PEERS,
    "aimonk_hf, default": ours,
    "the bare step": bare_step,
}


def print_table(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    from aimonk_hf.console import table

    header = ["", "images/s", "to the plain loop", "memory"]
    cells = [
        [
            row["name"],
            f"{row['images_per_second']:.1f}",
            f"{row['ratio_to_plain']:.2f}x",
            f"{row['peak_memory_mb']:.0f} MB",
        ]
        for row in rows
    ]
    print(f"{options.architecture}, batches of {options.batch_size}, {options.rounds} rounds of {options.steps} steps")
    print(table(header, cells))
    rate = {row["name"]: row["images_per_second"] for row in rows}
    print(f"end to end, aimonk_hf reaches {rate['aimonk_hf, default'] / rate['the bare step']:.2f} of the bare step")


if __name__ == "__main__":
    main()
