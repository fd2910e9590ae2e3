"""A stream of pictures through a network: threads decode, the network takes whole batches, memory stays bounded."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from threading import Lock, Thread
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from aimonk_hf.data.image_cache import ImageCache
from aimonk_hf.data.images import ImageSource, read_image, shown_name
from aimonk_hf.errors import ImageError, NotFiniteError
from aimonk_hf.modeling.devices import default_workers

# The activations of so few pictures stay small: 13 instead of 18 ms of one core a picture (mobilenetv2_100, float32, 224 pixels).
SMALL_BATCH = 8

Source = TypeVar("Source", bound=ImageSource)
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
    """Yield each source, in order, with its finite logits [K], or with the `ImageError` that says why there are none.

    `prepare` turns an RGB image into uint8 [3, H, W] (run in threads: Pillow decodes outside Python's lock); `network` turns uint8
    [N, 3, H, W] into logits [N, K]. A `cache`, made for what `prepare` does, keeps the pixels of sources that are paths.

    Where the network computes `on_cpu`, each of the `workers` threads decodes small batches and computes them alone, because cores that share
    every operation wait for each other, all the more while others decode; `network` must bear several threads then. Otherwise threads
    decode ahead of one network. Either way a few batches are held at a time, however long `sources` is. There are as many workers as cores,
    at most 8, unless told otherwise; on the CPU also not more than torch may use threads. Logits that are not finite raise `NotFiniteError`.
    """

    def load(source: Source) -> Tensor | ImageError:
        try:
            if cache is None or not isinstance(source, str | os.PathLike):
                return prepare(read_image(source))
            pixels = cache.get(source, lambda: prepare(read_image(source)).permute(1, 2, 0).numpy())
            return torch.from_numpy(pixels).permute(2, 0, 1)
        except ImageError as error:
            return error

    if on_cpu:
        yield from _stream_alone(sources, load, network, min(batch_size, SMALL_BATCH), workers or threads_alone())
    else:
        yield from _stream_ahead(sources, load, network, batch_size, workers or default_workers(1))


def _stream_ahead(
    sources: Iterable[Source],
    load: Callable[[Source], Tensor | ImageError],
    network: Callable[[Tensor], Tensor],
    batch_size: int,
    workers: int,
) -> Iterator[tuple[Source, Tensor | ImageError]]:
    """Let threads decode the next batch while the network computes this one."""
    waiting: deque[tuple[Source, Future[Tensor | ImageError]]] = deque()
    remaining = iter(sources)
    with ThreadPoolExecutor(workers) as pool:
        try:
            while True:
                for source in islice(remaining, 2 * batch_size - len(waiting)):
                    waiting.append((source, pool.submit(load, source)))
                if not waiting:
                    return
                batch = [waiting.popleft() for _ in range(min(batch_size, len(waiting)))]
                yield from _score([(source, future.result()) for source, future in batch], network)
        finally:
            for _, future in waiting:
                future.cancel()


def _stream_alone(
    sources: Iterable[Source],
    load: Callable[[Source], Tensor | ImageError],
    network: Callable[[Tensor], Tensor],
    batch_size: int,
    workers: int,
) -> Iterator[tuple[Source, Tensor | ImageError]]:
    """Let each thread decode and compute batches of its own; one picture alone is computed by all cores."""
    remaining = iter(sources)
    first = list(islice(remaining, batch_size * workers))
    if len(first) <= 1 or workers == 1:
        for batch in _batches(chain(first, remaining), batch_size):
            yield from _score([(source, load(source)) for source in batch], network)
        return
    batches = _batches(
        chain(first, remaining), min(batch_size, -(-len(first) // workers))
    )  # a few pictures are shared out too

    def score(batch: list[Source]) -> list[tuple[Source, Tensor | ImageError]]:
        return list(_score([(source, load(source)) for source in batch], network))

    for scored in in_own_threads(score, batches, workers):
        yield from scored


def in_own_threads(compute: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yield, in order, what `compute` makes of each item; `workers` threads share torch's cores evenly and do not wait for each other.

    At most `2 * workers` items are held, however many there are. torch's modes, such as autocast, must be entered by `compute` itself.
    """
    waiting: deque[Future[Result]] = deque()
    remaining, threads = iter(items), torch.get_num_threads()
    with ThreadPoolExecutor(workers, initializer=_share_cores, initargs=(max(1, threads // workers), threads)) as pool:
        try:
            while True:
                waiting.extend(pool.submit(compute, item) for item in islice(remaining, 2 * workers - len(waiting)))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def threads_alone() -> int:
    """Return how many threads compute alone on the processor unless told otherwise: one for each core, at most 8 and no more than torch uses."""
    return min(default_workers(1), torch.get_num_threads())


def _batches(sources: Iterable[Source], size: int) -> Iterator[list[Source]]:
    remaining = iter(sources)
    while batch := list(islice(remaining, size)):
        yield batch


def _share_cores(threads: int, usual: int) -> None:
    """Let this thread compute with so many cores; threads that others start later begin with the usual number, as before.

    torch keeps a number per thread, which a new thread takes, when it is first asked for, from the last one that was set anywhere.
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
) -> Iterator[tuple[Source, Tensor | ImageError]]:
    pixels = [item for _, item in batch if isinstance(item, Tensor)]
    rows = iter(network(torch.stack(pixels))) if pixels else iter(())
    for source, item in batch:
        yield source, (finite(next(rows), source) if isinstance(item, Tensor) else item)


def finite(logits: Tensor, source: ImageSource | None = None) -> Tensor:
    """Return the logits of an image; raises `NotFiniteError` where one is infinite or NaN."""
    if not logits.isfinite().all():
        name = shown_name(os.fspath(source)) if isinstance(source, str | os.PathLike) else "this image"
        raise NotFiniteError(
            f"the network's output for {name} is not finite (infinite or NaN): these weights give no scores, train with a lower --lr"
        )
    return logits
