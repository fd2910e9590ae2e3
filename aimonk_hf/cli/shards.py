"""Predictions shared among the processes of a torchrun launch, and put together into one file in the order of the images."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import numpy as np

from aimonk_hf.errors import AimonkError
from aimonk_hf.storage import atomic_path, make_folder

Write = Callable[[list[Path], TextIO, bool], int]


def launched_processes() -> int:
    """Return how many processes torchrun or accelerate started; 1 without them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def write_shared(paths: list[Path], output: Path, write: Write) -> int:
    """Let each process write its part of the paths beside `output`, and the first one join them; return the failures of all.

    `write` takes paths, an open file, and whether a header is due, and returns its failures. Parts are contiguous, so that joining keeps the
    order whatever the records look like. Raises `AimonkError` where another process has ended before its part was written.
    """
    import torch.distributed as dist

    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    make_folder(output.parent)
    parts = [output.with_name(f".{output.name}.part-{number}") for number in range(world)]
    own = [paths[place] for place in np.array_split(np.arange(len(paths)), world)[rank]]
    try:
        with open(parts[rank], "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            failed = write(own, file, rank == 0)
        failures: list[int] = [0] * world
        dist.all_gather_object(failures, failed)
        if rank == 0:
            with atomic_path(output) as temporary, open(temporary, "wb") as joined:
                for part in parts:
                    with open(part, "rb") as file_of_part:
                        shutil.copyfileobj(file_of_part, joined)
        dist.barrier()  # the first process needs every part until it has joined them
    except RuntimeError as error:
        raise AimonkError(
            f"another process ended before its part of {output} was written: its own message says why"
        ) from error
    except OSError as error:
        raise AimonkError(f"cannot write {parts[rank]}: {error.strerror or error}") from error
    finally:
        parts[rank].unlink(missing_ok=True)
        dist.destroy_process_group()
    return sum(failures)
