"""Stream images through a network: threads decode, the network computes whole batches, memory stays bounded."""

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from threading import Lock, Thread
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from aimonk_hf.data.image_cache import ImageCache
from aimonk_hf.data.images import ImageSource, read_image, shown_name
from aimonk_hf.errors import ImageError, NotFiniteError
from aimonk_hf.modeling.devices import default_workers

SMALL_BATCH = 8  # images whose activations stay in a processor's cache

Source = TypeVar("Source", bound=ImageSource | Tensor)
Item = TypeVar("Item")
Result = TypeVar("Result")


def stream_logits(
    sources: Iterable[Source],
    prepare: Callable[[Image.Image], Tensor],
    network: Callable[[Tensor], Tensor],
    batch_size: int = 32,
    workers: int | None = None,
    cache: ImageCache | None = None,
    on_cpu: bool = False,
) -> Iterator[tuple[Source, Tensor | ImageError]]:
    """Yield each source, in order, with its finite logits [K], or with the `ImageError` that prevented them.

    `prepare` turns an RGB image into uint8 [3, H, W]; `network` turns uint8 [N, 3, H, W] into logits [N, K], `on_cpu`
    in several threads at once, which decode and compute small batches without waiting for each other. Otherwise
    threads decode ahead of one network. A `cache`, made for `prepare`, keeps the pixels of paths. Raises
    `NotFiniteError` for logits that are infinite or NaN.
    """

    def load(source: Source) -> tuple[Source, Tensor | ImageError]:
        try:
            if cache is None or not isinstance(source, str | os.PathLike):
                return source, prepare(read_image(as_readable(source)))
            pixels = cache.get(source, lambda: prepare(read_image(source)).permute(1, 2, 0).numpy())
            return source, torch.from_numpy(pixels).permute(2, 0, 1)
        except ImageError as error:
            return source, error

    if not on_cpu:
        pool = ThreadPoolExecutor(workers or default_workers(1))
        for batch in _batches(_in_threads(load, sources, pool, batch_size), batch_size):
            yield from _score(batch, network)
        return
    workers, size, remaining = workers or n_inference_threads(), min(batch_size, SMALL_BATCH), iter(sources)
    first = list(islice(remaining, size * workers))
    alone = workers == 1 or len(first) <= 1  # one image is computed by all cores
    if not alone:
        size = min(size, math.ceil(len(first) / workers))  # every thread gets some of a few images
    batches = _batches(chain(first, remaining), size)

    def score(batch: list[Source]) -> list[tuple[Source, Tensor | ImageError]]:
        return _score([load(source) for source in batch], network)

    for scored in map(score, batches) if alone else in_own_threads(score, batches, workers):
        yield from scored


def in_own_threads(compute: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yield `compute` of each item, in order, by threads that share torch's cores evenly.

    At most `2 * workers` items are held. `compute` itself must enter torch's modes, such as autocast.
    """
    usual = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, initializer=_share_cores, initargs=(max(1, usual // workers), usual))
    return _in_threads(compute, items, pool, 2 * workers)


def n_inference_threads() -> int:
    """Return the default number of computing threads on a CPU: one a core, at most 8 and no more than torch uses."""
    return min(default_workers(1), torch.get_num_threads())


def as_readable(source: Any) -> Any:
    """Return a uint8 tensor [3, H, W] as an array [H, W, 3] of the same memory, any other source as it is."""
    if not isinstance(source, Tensor):
        return source
    if source.dtype != torch.uint8 or source.ndim != 3 or len(source) != 3:
        raise ImageError(f"a tensor must be uint8 [3, H, W], found {source.dtype} {list(source.shape)}")
    return source.cpu().permute(1, 2, 0).numpy()


def finite(logits: Tensor, source: ImageSource | Tensor | None = None) -> Tensor:
    """Return the logits of an image; raise `NotFiniteError` for an infinite or NaN one."""
    if not logits.isfinite().all():
        name = shown_name(os.fspath(source)) if isinstance(source, str | os.PathLike) else "this image"
        advice = "these weights give no scores, train with a lower --lr"
        raise NotFiniteError(f"the network's output for {name} is not finite (infinite or NaN): {advice}")
    return logits


def _in_threads(
    compute: Callable[[Item], Result], items: Iterable[Item], pool: ThreadPoolExecutor, ahead: int
) -> Iterator[Result]:
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


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch


def _share_cores(threads: int, usual: int) -> None:
    """Compute with so many cores in this thread; threads that start later begin with the usual number.

    A thread takes its number, when torch first asks for it, from the last one that was set anywhere.
    """
    with _sharing:
        torch.set_num_threads(threads)
        torch.get_num_threads()
        another = Thread(target=torch.set_num_threads, args=(usual,))
        another.start()
        another.join()


_sharing = Lock()


def _score(
    batch: list[tuple[Source, Tensor | ImageError]], network: Callable[[Tensor], Tensor]
) -> list[tuple[Source, Tensor | ImageError]]:
    pixels = [item for _, item in batch if isinstance(item, Tensor)]
    rows = iter(network(torch.stack(pixels)) if pixels else ())
    return [(source, finite(next(rows), source) if isinstance(item, Tensor) else item) for source, item in batch]
