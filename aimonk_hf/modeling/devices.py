"""Choose number formats and worker counts for this machine, set its allocator, explain running out of memory."""

import ctypes
import os
import sys
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image

from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling.config import PRECISIONS

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}

# torch's allocator, and its loader of a worker that the system killed or that ran out of shared memory
_MEMORY_FAILURES = ("can't allocate memory", "not enough memory", "killed by signal: Killed", "bus error")
# torch's process groups, where the other end of a connection is gone
_LOST_PROCESS = ("Connection closed by peer", "Connection reset by peer", "NCCL communicator was aborted")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # glibc's malloc.h


def resolve_precision(requested: str, device: torch.device) -> str:
    """Return "float32", "bf16" or "fp16" for one of `PRECISIONS`; "auto" depends on the kind of device alone."""
    if requested not in PRECISIONS:
        raise AimonkError(f"precision must be {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}, found {requested!r}")
    if requested != "auto":
        return requested
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device.type == "cpu" and _is_faster_in_bf16(torch.cpu.get_capabilities()) else "float32"


def _is_faster_in_bf16(processor: Mapping[str, Any]) -> bool:
    """Return whether convolutions gain by bf16: with AMX, on ARM, and on AMD; not with Intel's AVX512-BF16 alone."""
    if processor.get("amx_bf16") or processor.get("bf16"):
        return True
    return bool(processor.get("avx512_bf16")) and "intel" not in str(processor.get("cpu_name", "")).lower()


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks of up to 1 GB for the next step, which the kernel would otherwise zero anew."""
    _mallopt({_M_MMAP_THRESHOLD: 1 << 30, _M_TRIM_THRESHOLD: (1 << 31) - 1})


def give_back_freed_memory() -> None:
    """Give the memory of decoded images back to the system; to be called before a server starts its threads.

    glibc keeps freed blocks of up to 32 MB in an arena of each thread, and Pillow divides images into smaller ones.
    """
    _mallopt({_M_ARENA_MAX: 2})
    Image.core.set_block_size(64 << 20)


def _mallopt(values: Mapping[int, int]) -> None:
    # C libraries other than glibc have no mallopt
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter, value in values.items():
            mallopt(parameter, value)


def default_workers(n_processes: int) -> int:
    """Return the workers of each of `n_processes`: its share of this machine's cores, at most 8."""
    on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", n_processes))
    return min(8, max(1, (os.cpu_count() or 1) // on_this_machine))


def explain_failure(
    error: BaseException, batch_size: int, image_size: int, n_images: int | None = None
) -> AimonkError | None:
    """Return the line for a failure of the machine or of torch that a user can mend, or None for another error."""
    if any(words in str(error) for words in _LOST_PROCESS):
        return AimonkError("another process of this run has ended: its own message says why; --resume goes on")
    if "Expected more than 1 value per channel when training" in str(error):
        advice = f"use a --batch-size above {batch_size}, or a larger --image-size"
        if n_images is not None and n_images <= batch_size:
            advice = f"only one of {n_images} usable images is left to train on: add images"
        return AimonkError(f"batch norm needs more than one value per channel: {advice}")
    return out_of_memory(error, batch_size, image_size)


def out_of_memory(error: BaseException, batch_size: int, image_size: int) -> AimonkError | None:
    """Return the line for a failed allocation, or None for another error."""
    said_so = isinstance(error, RuntimeError) and any(words in str(error) for words in _MEMORY_FAILURES)
    if not said_so and not isinstance(error, torch.OutOfMemoryError | MemoryError):
        return None
    if "DataLoader worker" in str(error):
        return AimonkError("out of memory in a process that reads images: try a smaller --num-workers")
    return AimonkError(
        f"out of memory with batch size {batch_size} and image size {image_size}: try --batch-size "
        f"{max(1, batch_size // 2)} (with --accumulation-steps 2 the result stays alike), or a smaller --image-size"
    )
