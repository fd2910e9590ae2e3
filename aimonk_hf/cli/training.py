"""The commands train, recipes and sample-data."""

import argparse
import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import NoReturn

from aimonk_hf.cli.flags import Command, add_train_flags
from aimonk_hf.errors import AimonkError


def add_training_commands(command: Command, with_train_flags: bool = True) -> None:
    """Add the commands to the parser."""
    train = command("train", _train, "train a model on a data folder")
    if with_train_flags:
        add_train_flags(train)
        repeat = "train with N seeds on one division, print mean and spread; the first model is kept"
        train.add_argument("--seeds", type=int, metavar="N", help=repeat)
    command("recipes", _recipes, "list the named training settings")
    sample = command("sample-data", _sample_data, "write a drawn dataset: garments with four attributes")
    sample.add_argument("folder", metavar="DIR")
    sample.add_argument("--images", type=int, default=600)
    sample.add_argument("--seed", type=int, default=0)


def _train(options: argparse.Namespace) -> int:
    from aimonk_hf.training.settings import TrainConfig

    config = TrainConfig(**{key: value for key, value in vars(options).items() if key not in ("run", "seeds")})
    import torch.distributed as dist

    from aimonk_hf.training.run import train
    from aimonk_hf.training.run_directory import LOSS_CURVE, SAMPLE_PREDICTIONS
    from aimonk_hf.training.seeds import train_seeds

    in_main_thread = threading.current_thread() is threading.main_thread()
    # an ending as by Ctrl-C: half-written files are removed, other processes are not left waiting
    before = signal.signal(signal.SIGTERM, _end) if in_main_thread else None
    try:
        if options.seeds is None:
            train(config)
        else:
            train_seeds(config, options.seeds)
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
    if os.environ.get("RANK", "0") == "0":
        folder = Path(config.output_dir)
        print(f"model:    {folder}")
        print(f"plots:    {folder / LOSS_CURVE}, {folder / SAMPLE_PREDICTIONS}")
        print(f"predict:  aimonk-hf predict IMAGE --model {folder}")
        print(f"serve:    aimonk-hf app --model {folder}")
    return 0


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _recipes(options: argparse.Namespace) -> int:
    from aimonk_hf.training.recipes import list_recipes

    for recipe in list_recipes():
        print(f"{recipe.name}: {recipe.system}")
        if recipe.unsaid:
            print(f"  left unsaid, chosen here: {recipe.unsaid}")
        print("  " + ", ".join(f"{key} {value}" for key, value in recipe.settings.items()))
    return 0


def _sample_data(options: argparse.Namespace) -> int:
    from aimonk_hf.data.sample_data import write_sample_data

    if options.images < 1 or options.seed < 0:
        raise AimonkError("--images must be at least 1 and --seed not negative")
    folder = write_sample_data(options.folder, options.images, options.seed)
    print(f"written:  {options.images} images and labels.csv in {folder}")
    return 0
