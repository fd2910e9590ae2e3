"""Choose number formats and worker counts for this machine, set its allocator, explain running out of memory."""

import ctypes
import os
import sys
from collections.abc import Callable, Mapping
from concurrent.futures.process import BrokenProcessPool
from importlib.util import find_spec
from pathlib import Path
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any

from PIL import Image

from aimonk_hf.errors import AimonkError, reason_of
from aimonk_hf.modeling.config import PRECISIONS
from aimonk_hf.modeling.streaming import Network, Outputs, Pixels, default_workers

if TYPE_CHECKING:
    import torch

# Drivers of NVIDIA, of AMD, and of either under Windows; without one torch is not imported to look for an accelerator.
_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")

_MEMORY_FAILURES = (
    # torch's allocator, and its loader of a worker that the system killed or that ran out of shared memory
    *("can't allocate memory", "not enough memory", "killed by signal: Killed", "bus error"),
    # CUDA, its libraries, and Apple's GPUs, where torch raises no OutOfMemoryError; onnxruntime
    *("CUDA error: out of memory", "_STATUS_ALLOC_FAILED", "MPS backend out of memory", "Failed to allocate memory"),
)
# torch's process groups, where the other end of a connection is gone
_LOST_PROCESS = ("Connection closed by peer", "Connection reset by peer", "NCCL communicator was aborted")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # glibc's malloc.h


def on_zero_gpu() -> bool:
    """Return whether this is a Space with ZeroGPU, which has a GPU only within functions of `spaces.GPU`."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def resolve_device(requested: str) -> str:
    """Return the device "cpu", "cuda:1", "mps"; "auto" is the accelerator that torch has, else the CPU.

    Each process of a launch has an accelerator of its own, as far as there are so many. Raises `AimonkError` for a
    device that is unknown, gone, or not usable by this torch.
    """
    if requested == "auto" and on_zero_gpu():
        return "cuda"  # `spaces` emulates it where the GPU is not there yet
    may_have_one = os.name == "nt" or sys.platform == "darwin" or any(Path(driver).exists() for driver in _DRIVERS)
    if requested == "cpu" or (requested == "auto" and not (may_have_one and find_spec("torch"))):
        return "cpu"
    if find_spec("torch") is None:
        raise AimonkError(f"--device {requested} needs torch, which is not installed: pip install torch")
    import torch

    if requested == "auto":
        if not torch.accelerator.is_available():
            return "cpu"
        kind, own = str(torch.accelerator.current_accelerator()), os.environ.get("LOCAL_RANK")
        return kind if own is None else f"{kind}:{int(own) % torch.accelerator.device_count()}"
    try:
        return str(torch.zeros(1, device=requested).device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was compiled with CUDA
        there = f"auto, cpu{f', {torch.accelerator.current_accelerator()}' * torch.accelerator.is_available()}"
        raise AimonkError(f"--device {requested} cannot be used ({reason_of(error)}): choose one of {there}") from error


def check_precision(requested: str, int8: bool = False) -> None:
    """Raise `AimonkError` for a precision other than `PRECISIONS`, and int8 where it is allowed."""
    allowed = (*PRECISIONS, "int8") if int8 else PRECISIONS
    if requested not in allowed:
        raise AimonkError(f"precision must be {', '.join(allowed[:-1])} or {allowed[-1]}, found {requested!r}")


def resolve_precision(requested: str, device: "torch.device") -> str:
    """Return "float32", "bf16" or "fp16" for one of `PRECISIONS`; "auto" depends on the kind of device alone."""
    import torch

    check_precision(requested)
    if requested != "auto":
        return requested
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device.type == "cpu" and is_faster_in_bf16() else "float32"


def processor_facts() -> dict[str, Any]:
    """Return the name and the instructions of the processor, or {} where torch is too old to tell."""
    import torch

    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return known


def is_faster_in_bf16() -> bool:
    """Return whether convolutions gain by bf16 on this processor: with AMX, on ARM, and on AMD; not by Intel's AVX512.

    torch is imported only where the processor may have bf16 at all.
    """
    cpu_info = Path("/proc/cpuinfo")
    if find_spec("torch") is None or (cpu_info.exists() and "bf16" not in cpu_info.read_text()):
        return False
    processor = processor_facts()
    if processor.get("amx_bf16") or processor.get("bf16"):
        return True
    return bool(processor.get("avx512_bf16")) and "intel" not in str(processor.get("cpu_name", "")).lower()


def torch_network(forward: "Callable[[torch.Tensor], torch.Tensor]", device: "torch.device") -> Network:
    """Make a function from uint8 pixels [N, 3, H, W], in channels_last order, to outputs [N, K] fit for a stream.

    On a CPU some threads compute at once, on cores of their own; `forward` itself must enter torch's modes.
    """
    import torch

    def compute(pixels: Pixels) -> Outputs:
        values = torch.from_numpy(pixels)
        if device.type == "cuda":
            values = values.pin_memory()  # copied to the device without waiting for it
        outputs: Outputs = forward(values.permute(0, 3, 1, 2)).float().cpu().numpy()
        return outputs

    if device.type != "cpu":
        return Network(compute, on_accelerator=True)
    usual = torch.get_num_threads()
    threads = min(default_workers(), usual)
    return Network(compute, threads, start_thread=lambda threads: _share_cores(max(1, usual // threads), usual))


_sharing = Lock()


def _share_cores(threads: int, usual: int) -> None:
    """Compute with so many cores in this thread; threads that start later begin with the usual number.

    A thread takes its number, when torch first asks for it, from the last one that was set anywhere.
    """
    import torch

    with _sharing:
        torch.set_num_threads(threads)
        torch.get_num_threads()
        another = Thread(target=torch.set_num_threads, args=(usual,))
        another.start()
        another.join()


def prepare_for_training(device: "torch.device") -> None:
    """Let the CPU keep freed memory, or a GPU choose its fastest kernels, with TF32, for the rest of this process."""
    import torch

    if device.type == "cpu":
        keep_freed_memory()
    elif device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as cuDNN's convolutions already are
        torch.backends.cudnn.benchmark = True


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks of up to 1 GB for the next step, which the kernel would otherwise zero anew."""
    _mallopt({_M_MMAP_THRESHOLD: 1 << 30, _M_TRIM_THRESHOLD: (1 << 31) - 1})


def give_back_freed_memory() -> None:
    """Give the memory of decoded images and of tables back to the system; to be called before a server starts threads.

    glibc keeps freed blocks of up to 32 MB in an arena of each thread, and Pillow divides images into smaller ones.
    Arrow, in which pandas keeps text, has an allocator of its own, which keeps freed blocks of every thread.
    """
    _mallopt({_M_ARENA_MAX: 2})
    Image.core.set_block_size(64 << 20)
    if "pyarrow" in sys.modules:
        import pyarrow

        pyarrow.set_memory_pool(pyarrow.system_memory_pool())


def _mallopt(values: Mapping[int, int]) -> None:
    # C libraries other than glibc have no mallopt
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter, value in values.items():
            mallopt(parameter, value)


def explain_failure(
    error: BaseException, batch_size: int, image_size: int, n_images: int | None = None
) -> AimonkError | None:
    """Return the line for a failure of the machine or of torch that a user can mend, or None for another error."""
    if any(words in str(error) for words in _LOST_PROCESS):
        return AimonkError("Another process of this run has ended: its own message says why; --resume continues")
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return AimonkError(f"--compile cannot be used here ({reason_of(error)}): leave it out")
    if "Expected more than 1 value per channel when training" in str(error):
        advice = f"use a --batch-size above {batch_size}, or a larger --image-size"
        if n_images is not None and n_images <= batch_size:
            advice = f"only one of {n_images} usable images is left to train on: add images"
        return AimonkError(f"Batch norm needs more than one value per channel: {advice}")
    if not is_out_of_memory(error):
        return None
    if "DataLoader worker" in str(error) or isinstance(error, BrokenProcessPool):
        return AimonkError("Out of memory in a process that reads images: try a smaller --num-workers")
    return AimonkError(
        f"Out of memory with batch size {batch_size} and image size {image_size}: try --batch-size "
        f"{max(1, batch_size // 2)} (with --accumulation-steps 2 the result stays alike), or a smaller --image-size"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation has failed, on a device or on the host, or the system has ended a worker."""
    said_so = isinstance(error, RuntimeError) and any(words in str(error) for words in _MEMORY_FAILURES)
    # torch's error by its name, because torch may not be installed
    return said_so or isinstance(error, MemoryError | BrokenProcessPool) or type(error).__name__ == "OutOfMemoryError"
