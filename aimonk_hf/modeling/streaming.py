"""Stream images through a network: threads decode, the network computes whole batches, memory stays bounded."""

import math
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from aimonk_hf.data.image_cache import ImageCache, Pixels
from aimonk_hf.data.images import read_image, shown_name
from aimonk_hf.errors import ImageError, NotFiniteError

Outputs = NDArray[np.floating[Any]]
Source = TypeVar("Source")
Item = TypeVar("Item")
Result = TypeVar("Result")

# Fewer images are decoded by threads before processes have started; so are those of a server, whose threads hold locks
# that a forked process would wait for.
_FEWEST_FOR_PROCESSES = 256


@dataclass
class Network:
    """A function from uint8 pixels [N, H, W, 3] to outputs [N, K], which uses all cores or an accelerator.

    On a CPU `threads` of them are faster, each computing small batches by `compute_in_thread` after `start_thread`,
    which is given their number. Without `threads` one thread computes and others decode ahead of it; on an
    accelerator, which is faster than threads that share Python's lock, processes decode many files.
    """

    compute: Callable[[Pixels], Outputs]
    threads: int = 0
    thread_batch: int = 8  # images whose activations stay in a processor's cache
    compute_in_thread: Callable[[Pixels], Outputs] | None = None
    start_thread: Callable[[int], None] | None = None
    on_accelerator: bool = False

    def mirrored(self) -> "Network":
        """Return the network whose outputs are averaged with those of the mirrored images."""

        def both(compute: Callable[[Pixels], Outputs]) -> Callable[[Pixels], Outputs]:
            return lambda pixels: (compute(pixels) + compute(np.ascontiguousarray(pixels[:, :, ::-1]))) / 2

        in_thread = both(self.compute_in_thread) if self.compute_in_thread else None
        return replace(self, compute=both(self.compute), compute_in_thread=in_thread)


def stream_outputs(
    sources: Iterable[Source],
    prepare: Callable[[Image.Image], Pixels],
    network: Network,
    batch_size: int = 32,
    workers: int | None = None,
    cache: ImageCache | None = None,
) -> Iterator[tuple[Source, Outputs | ImageError]]:
    """Yield each source, in order, with its finite outputs [K], or with the `ImageError` that prevented them.

    `prepare` turns an RGB image into uint8 [H, W, 3]. A `cache`, made for `prepare`, keeps the pixels of paths. Raises
    `NotFiniteError` for outputs that are infinite or NaN.
    """
    load, remaining = partial(_load, prepare, cache), iter(sources)
    if not network.threads:
        first = list(islice(remaining, _FEWEST_FOR_PROCESSES if network.on_accelerator else 0))
        may_fork = sys.platform == "linux" and current_thread() is main_thread()
        pool: Executor
        if may_fork and len(first) == _FEWEST_FOR_PROCESSES and _is_path(first[0]):
            pool = ProcessPoolExecutor(workers or default_workers(), get_context("fork"), _ignore_interrupt)
        else:
            pool = ThreadPoolExecutor(workers or default_workers())
        for batch in _batches(in_pool(load, chain(first, remaining), pool, 2 * batch_size), batch_size):
            yield from _score(batch, network.compute)
        return
    threads, size = workers or network.threads, min(batch_size, network.thread_batch)
    first = list(islice(remaining, size * threads))
    alone = threads == 1 or len(first) <= 1  # one image is computed by all cores
    if not alone:
        size = min(size, math.ceil(len(first) / threads))  # every thread gets some of a few images
    batches = _batches(chain(first, remaining), size)
    compute = network.compute if alone else network.compute_in_thread or network.compute

    def score(batch: list[Source]) -> list[tuple[Source, Outputs | ImageError]]:
        return _score([load(source) for source in batch], compute)

    if alone:
        yield from chain.from_iterable(map(score, batches))
        return
    start = network.start_thread or (lambda threads: None)
    pool = ThreadPoolExecutor(threads, initializer=start, initargs=(threads,))
    yield from chain.from_iterable(in_pool(score, batches, pool, 2 * threads))


def _load(
    prepare: Callable[[Image.Image], Pixels], cache: ImageCache | None, source: Source
) -> tuple[Source, Pixels | ImageError]:
    try:
        if cache is None or not _is_path(source):
            return source, prepare(read_image(as_readable(source)))
        return source, cache.get(cast("Path", source), lambda: prepare(read_image(cast("Path", source))))
    except ImageError as error:
        return source, error


def _ignore_interrupt() -> None:
    # Ctrl-C reaches every process of the terminal; the one that reads the results ends the others
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _is_path(source: Any) -> bool:
    return isinstance(source, str | os.PathLike)


def in_pool(compute: Callable[[Item], Result], items: Iterable[Item], pool: Executor, ahead: int) -> Iterator[Result]:
    """Yield `compute` of each item, in order, with at most `ahead` items held; close the pool at the end."""
    waiting: deque[Future[Result]] = deque()
    remaining = iter(items)
    with pool:
        try:
            while True:
                waiting.extend(pool.submit(compute, item) for item in islice(remaining, ahead - len(waiting)))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def default_workers(n_processes: int = 1) -> int:
    """Return the workers of each of `n_processes`: its share of this machine's cores, at most 8."""
    on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", n_processes))
    return min(8, max(1, (os.cpu_count() or 1) // on_this_machine))


def as_readable(source: Any) -> Any:
    """Return a uint8 tensor [3, H, W] as an array [H, W, 3] of the same memory, any other source as it is."""
    if not hasattr(source, "permute"):  # a torch tensor, without importing torch
        return source
    if str(source.dtype) != "torch.uint8" or source.ndim != 3 or len(source) != 3:
        raise ImageError(f"a tensor must be uint8 [3, H, W], found {source.dtype} {list(source.shape)}")
    return source.cpu().permute(1, 2, 0).numpy()


def sigmoid(logits: Outputs) -> NDArray[np.float64]:
    """Return scores of logits, without overflow for large ones."""
    return np.exp(-np.logaddexp(0, -logits.astype(np.float64)))


def finite(outputs: Outputs, source: Any = None) -> Outputs:
    """Return the outputs of an image; raise `NotFiniteError` for an infinite or NaN one."""
    if not np.isfinite(outputs).all():
        name = shown_name(os.fspath(source)) if _is_path(source) else "this image"
        advice = "these weights give no scores, train with a lower --lr"
        raise NotFiniteError(f"The network's output for {name} is not finite (infinite or NaN): {advice}")
    return outputs


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch


def _score(
    batch: list[tuple[Source, Pixels | ImageError]], compute: Callable[[Pixels], Outputs]
) -> list[tuple[Source, Outputs | ImageError]]:
    pixels = [item for _, item in batch if not isinstance(item, ImageError)]
    rows = iter(compute(np.stack(pixels)) if pixels else ())
    return [(source, item if isinstance(item, ImageError) else finite(next(rows), source)) for source, item in batch]
