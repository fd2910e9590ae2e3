"""What the machine can do: number formats, reader processes, and running out of memory."""

import ctypes
import os
import sys
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image

from aimonk_hf.errors import AimonkError

# what torch's allocator says, and its loader of a reader process that the system killed or that ran out of shared memory
_MEMORY_FAILURES = ("can't allocate memory", "not enough memory", "killed by signal: Killed", "bus error")
# what torch's process groups say when the other end of a connection is gone
_LOST_PROCESS = ("Connection closed by peer", "Connection reset by peer", "NCCL communicator was aborted")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # glibc's malloc.h


def resolve_precision(requested: str, device: torch.device) -> str:
    """Return "no", "bf16" or "fp16". "auto" is bf16 where GPU or processor compute faster in it: by what they are, never by timing."""
    if requested != "auto":
        return "float32" if requested == "no" else requested
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device.type == "cpu" and _is_faster_in_bf16(torch.cpu.get_capabilities()) else "float32"


def _is_faster_in_bf16(processor: Mapping[str, Any]) -> bool:
    """Return whether convolutions gain by bf16: with AMX, on ARM, and on AMD.

    Intel's AVX512-BF16 without AMX takes up to twice as long as in float32 (resnet18, Emerald Rapids with AMX hidden: 5.1 against 7.9 images
    a second on one core).
    """
    if processor.get("amx_bf16") or processor.get("bf16"):
        return True
    return bool(processor.get("avx512_bf16")) and "intel" not in str(processor.get("cpu_name", "")).lower()


def keep_freed_memory(largest: int = 1 << 30, kept: int = (1 << 31) - 1) -> None:
    """Let glibc keep freed blocks instead of giving them back to the system: a step on the CPU frees and takes the same gigabyte.

    Without this the kernel zeroes every page anew: 12 instead of 20 images a second (mobilenetv2_100, float32, two cores). Blocks of more than
    `largest` bytes are given back nevertheless, and so is the end of the heap where it is free for more than `kept` bytes.
    """
    _mallopt({_M_MMAP_THRESHOLD: largest, _M_TRIM_THRESHOLD: kept})


def give_back_freed_memory() -> None:
    """Let a server with many threads give the memory of decoded images back to the system; to be called before its threads start.

    glibc keeps freed blocks of up to 32 MB, in an arena for each of many threads; Pillow divides an image into blocks of 16 MB. A lower
    M_MMAP_THRESHOLD would give all of them back, but the network's blocks too, each of which the kernel then zeroes anew.
    """
    _mallopt({_M_ARENA_MAX: 2})
    Image.core.set_block_size(64 << 20)


def _mallopt(values: Mapping[int, int]) -> None:
    mallopt = (
        getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    )  # other C libraries have none
    if mallopt is not None:
        for parameter, value in values.items():
            mallopt(parameter, value)


def default_workers(n_processes: int) -> int:
    """Reader processes per training process, of `n_processes` in all: its share of this machine's cores, at most 8."""
    on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", n_processes))
    return min(8, max(1, (os.cpu_count() or 1) // on_this_machine))


def explain_failure(
    error: BaseException, batch_size: int, image_size: int, n_images: int | None = None
) -> AimonkError | None:
    """Return the one line for a failure of the machine or of torch that a user can do something about, or None where it is another one."""
    text = str(error)
    if any(words in text for words in _LOST_PROCESS):
        return AimonkError(
            "another process of this run has ended: its own message says why; --resume goes on from the last checkpoint"
        )
    if "Expected more than 1 value per channel when training" in text:
        if n_images is not None and n_images <= batch_size:
            return AimonkError(
                f"batch norm cannot train on one image, and no more are left to train on of {n_images} usable ones: add images"
            )
        return AimonkError(
            f"batch norm needs more than one value per channel: use a --batch-size above {batch_size}, or a larger --image-size"
        )
    return out_of_memory(error, batch_size, image_size)


def out_of_memory(error: BaseException, batch_size: int, image_size: int) -> AimonkError | None:
    """Return the one line for a failed allocation, or None where the error is another one."""
    text = str(error)
    failed = isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(words in text for words in _MEMORY_FAILURES)
    )
    if not failed:
        return None
    if "DataLoader worker" in text:
        return AimonkError("out of memory in a process that reads images: try a smaller --num-workers")
    smaller = f"--batch-size {max(1, batch_size // 2)}" if batch_size > 1 else "--batch-size 1"
    return AimonkError(
        f"out of memory with batch size {batch_size} and image size {image_size}: "
        f"try {smaller} (with --accumulation-steps 2 the result stays alike), or a smaller --image-size"
    )
