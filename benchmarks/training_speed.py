"""Training throughput beside the plain loop, transformers' Trainer and fastai (where installed): images a second and memory.

    python benchmarks/training_speed.py [--data-dir DATA] [--architecture mobilenetv2_100] [--steps 8] [--rounds 5] [--json FILE]

The same pictures, network, batch size and labels for all, each in a process of its own. Rounds are interleaved, one contestant computing at a
time, and medians are shown, with the ratio to the plain loop of the same round. Without --data-dir garments are drawn at 400 x 600 pixels.
Weights are random: speed does not depend on them. "the bare step" has its batch in memory and is what no end-to-end training can pass.
"""

import argparse
import importlib.util
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--architecture", default="mobilenetv2_100")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8, help="steps that are timed in each round, after two that are not")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        data = options.data_dir or draw(Path(temporary) / "data", 8 * options.batch_size)
        rows = measure(data, Path(temporary), options)
    print_table(rows, options)
    if options.json:
        options.json.write_text(
            json.dumps({"settings": {key: str(value) for key, value in vars(options).items()}, "rows": rows}, indent=2) + "\n"
        )


def draw(folder: Path, n_images: int) -> Path:
    """Write drawn garments, enlarged to the size and format of photographs."""
    from PIL import Image

    from aimonk_hf.data.sample_data import write_sample_data

    write_sample_data(folder, n_images=n_images, seed=0)
    for path in sorted((folder / "images").iterdir()):
        with Image.open(path) as picture:
            picture.convert("RGB").resize((400, 600)).save(path, "JPEG", quality=90)  # the name's .png does not matter to a reader
    return folder


def measure(data: Path, scratch: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    names = list(CONTESTANTS)
    contestants = {name: Contestant(name, data, scratch / str(number), options) for number, name in enumerate(names)}
    rates: dict[str, list[float]] = {name: [] for name in names}
    memory: dict[str, float] = {}
    for _ in range(options.rounds):
        for name, contestant in contestants.items():
            rate, memory[name] = contestant.take_turn(options.steps)
            rates[name].append(rate)
    for contestant in contestants.values():
        contestant.end()
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
    """A process, with its readers, that is stopped but for its turns: readers would go on reading ahead in the time of the next."""

    def __init__(self, name: str, data: Path, scratch: Path, options: argparse.Namespace) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        scratch.mkdir()
        process = context.Process(target=serve, args=(name, theirs, data, options.architecture, options.batch_size, scratch))
        process.start()
        self._process = psutil.Process(process.pid)
        self._pipe.recv()  # built
        self._pause()

    def _family(self) -> list[psutil.Process]:
        return [*self._process.children(recursive=True), self._process]

    def _pause(self) -> None:
        for process in self._family():
            process.suspend()

    def take_turn(self, n_steps: int) -> tuple[float, float]:
        """Return images per second over so many steps, and megabytes."""
        for process in self._family():
            process.resume()
        self._pipe.send(n_steps)
        found: tuple[float, float] = self._pipe.recv()
        self._pause()
        return found

    def end(self) -> None:
        """Kill the process and its readers."""
        for process in self._family():
            process.kill()


def serve(name: str, pipe: Connection, data: Path, architecture: str, batch_size: int, scratch: Path) -> None:
    """In a process of its own: train until killed, as a script does, in the main thread."""
    multiprocessing.set_start_method("fork", force=True)  # readers are forked, as from a script that a user starts
    os.environ.update(ACCELERATE_USE_CPU="true", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    CONTESTANTS[name](data, architecture, batch_size, scratch, Turns(pipe))


class Turns:
    """Called after every step: times as many steps as are asked for, after two that are not timed, and holds the loop between turns."""

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
        self._pipe.send((self._images / (time.perf_counter() - self._start), peak_memory()))
        self._left = self._pipe.recv()
        self._untimed, self._images = 2, 0


def peak_memory() -> float:
    """Return the megabytes that this process and its reader processes hold now; pages that they share count in each."""
    own = psutil.Process()
    return sum(process.memory_info().rss for process in (own, *own.children(recursive=True))) / 2**20


def read_table(data: Path) -> tuple[list[Path], Any]:
    from aimonk_hf.data.dataset import AttributeDataset

    dataset = AttributeDataset.from_folder(data)
    return dataset.paths, dataset.labels.values


def plain_loop(data: Path, architecture: str, batch_size: int, scratch: Path, after_step: Turns) -> None:
    """What a published solution does."""
    from plain import plain_training

    for _, n_images in plain_training(*read_table(data), architecture, batch_size):
        after_step(n_images)


def transformers_trainer(data: Path, architecture: str, batch_size: int, scratch: Path, after_step: Turns) -> None:
    """transformers' Trainer on TimmWrapper, with its own image processor and default settings; only the loss is masked."""
    import torch
    from PIL import Image
    from plain import masked_loss
    from torch.utils.data import Dataset
    from transformers import AutoImageProcessor, AutoModelForImageClassification, Trainer, TrainerCallback, TrainingArguments

    from aimonk_hf import AimonkModel

    paths, labels = read_table(data)
    AimonkModel.from_timm(architecture, [f"a{k}" for k in range(labels.shape[1])], pretrained=False).save_pretrained(scratch / "model")
    model, processor = (
        AutoModelForImageClassification.from_pretrained(scratch / "model"),
        AutoImageProcessor.from_pretrained(scratch / "model"),
    )

    class Pictures(Dataset[Any]):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, row: int) -> Any:
            pixels = processor(Image.open(paths[row]).convert("RGB"))["pixel_values"][0]
            return {"pixel_values": torch.as_tensor(pixels), "labels": torch.from_numpy(labels[row])}

    class Masked(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
            wanted = inputs.pop("labels")
            return masked_loss(model(**inputs).logits, wanted)

    class TakeTurns(TrainerCallback):
        def on_step_end(self, *arguments: Any, **more: Any) -> None:
            after_step(batch_size)

    settings = TrainingArguments(
        output_dir=str(scratch / "out"),
        per_device_train_batch_size=batch_size,
        max_steps=10**6,
        dataloader_num_workers=2,
        dataloader_drop_last=True,
        dataloader_persistent_workers=True,
        remove_unused_columns=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Masked(model=model, args=settings, train_dataset=Pictures(), callbacks=[TakeTurns()])
    trainer.train()


def fastai_learner(data: Path, architecture: str, batch_size: int, scratch: Path, after_step: Turns) -> None:
    """fastai's Learner with its own loaders and transforms in batches; only the loss is masked."""
    import timm
    import torch
    from fastai.vision import all as fastai
    from plain import masked_loss

    paths, labels = read_table(data)
    rows = list(range(len(paths)))
    items = [[lambda row: fastai.PILImage.create(paths[row])], [lambda row: torch.from_numpy(labels[row])]]
    loaders = fastai.Datasets(rows, items, splits=[rows, rows[:1]]).dataloaders(
        bs=batch_size,
        num_workers=2,
        drop_last=True,
        after_item=[fastai.Resize(224, fastai.ResizeMethod.Squish), fastai.ToTensor()],
        after_batch=[fastai.IntToFloatTensor(), fastai.Flip(), fastai.Normalize.from_stats(*fastai.imagenet_stats)],
    )

    class TakeTurns(fastai.Callback):
        def after_step(self) -> None:
            after_step(batch_size)

        def before_validate(self) -> None:
            raise fastai.CancelValidException

    network = timm.create_model(architecture, num_classes=labels.shape[1])
    learner = fastai.Learner(
        loaders, network, lambda logits, wanted: masked_loss(logits, wanted), fastai.Adam, lr=1e-4, cbs=[TakeTurns()], path=scratch
    )

    with learner.no_bar(), learner.no_logging():
        learner.fit(10**6)


def ours(data: Path, architecture: str, batch_size: int, scratch: Path, after_step: Turns) -> None:
    """This library's recipe `default`: its own loop, loader, augmentation, averaging and precision."""
    import torch
    from accelerate import Accelerator

    from aimonk_hf import AttributeDataset, TrainConfig
    from aimonk_hf.model.devices import keep_freed_memory, resolve_precision
    from aimonk_hf.training.fitting import build_model
    from aimonk_hf.training.trainer import Trainer

    os.environ["AIMONK_CACHE"] = str(scratch / "cache")
    config = TrainConfig(str(data), str(scratch / "out"), architecture=architecture, pretrained=False, batch_size=batch_size, epochs=10**5)
    dataset = AttributeDataset.from_folder(data)
    accelerator = Accelerator(cpu=True, mixed_precision=resolve_precision("auto", torch.device("cpu")))
    keep_freed_memory()
    trainer = Trainer(config, accelerator, build_model(config, dataset.attributes), dataset)
    while True:
        trainer.end_epoch(trainer.train_epoch(lambda loss, lr: after_step(len(dataset) // trainer.batches.n_steps)))


def bare_step(data: Path, architecture: str, batch_size: int, scratch: Path, after_step: Turns) -> None:
    """Forward, backward and AdamW on one batch in memory, in the precision, with the gradients and in the memory format that `ours` uses."""
    import timm
    import torch

    from aimonk_hf.model.devices import keep_freed_memory, resolve_precision
    from aimonk_hf.training.depthwise import DepthwiseGradients

    keep_freed_memory()
    _, labels = read_table(data)
    precision = resolve_precision("auto", torch.device("cpu"))
    model = timm.create_model(architecture, num_classes=labels.shape[1]).train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    pixels = torch.randn(batch_size, 3, 224, 224).to(memory_format=torch.channels_last)
    wanted = torch.randint(0, 2, (batch_size, labels.shape[1])).float()
    while True:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"), DepthwiseGradients():
            logits = model(pixels)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), wanted)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        after_step(batch_size)


CONTESTANTS: dict[str, Callable[[Path, str, int, Path, Turns], None]] = {
    "plain loop": plain_loop,
    "transformers Trainer": transformers_trainer,
    **({"fastai": fastai_learner} if importlib.util.find_spec("fastai") else {}),
    "aimonk_hf, default": ours,
    "the bare step": bare_step,
}


def print_table(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    from aimonk_hf.judging.console import table

    header = ["", "images/s", "to the plain loop", "memory"]
    cells = [
        [row["name"], f"{row['images_per_second']:.1f}", f"{row['ratio_to_plain']:.2f}x", f"{row['peak_memory_mb']:.0f} MB"] for row in rows
    ]
    print(f"{options.architecture}, batches of {options.batch_size}, {options.rounds} rounds of {options.steps} steps")
    print(table(header, cells))
    rate = {row["name"]: row["images_per_second"] for row in rows}
    print(f"end to end, aimonk_hf reaches {rate['aimonk_hf, default'] / rate['the bare step']:.2f} of the bare step")


if __name__ == "__main__":
    main()
