"""A stream of pictures through a network: threads decode ahead, the network takes whole batches, memory stays bounded."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from aimonk_hf.data.images import ImageSource, read_image
from aimonk_hf.data.pixel_cache import PixelCache
from aimonk_hf.errors import ImageError

Source = TypeVar("Source", bound=ImageSource)


def stream_logits(
    sources: Iterable[Source],
    prepare: Callable[[Image.Image], Tensor],
    network: Callable[[Tensor], Tensor],
    batch_size: int = 32,
    workers: int | None = None,
    cache: PixelCache | None = None,
) -> Iterator[tuple[Source, Tensor | ImageError]]:
    """Yield each source, in order, with its logits [K], or with the `ImageError` that says why there are none.

    `prepare` turns an RGB image into uint8 [3, H, W] (run in threads: Pillow decodes outside Python's lock); `network` turns uint8
    [N, 3, H, W] into logits [N, K]. No more than three batches are held at a time, however long `sources` is. A `cache`, made for what
    `prepare` does, keeps the pixels of sources that are paths.
    """

    def load(source: Source) -> Tensor | ImageError:
        try:
            if cache is None or not isinstance(source, str | os.PathLike):
                return prepare(read_image(source))
            pixels = cache.get(source, lambda: prepare(read_image(source)).permute(1, 2, 0).numpy())
            return torch.from_numpy(pixels).permute(2, 0, 1)
        except ImageError as error:
            return error

    waiting: deque[tuple[Source, Future[Tensor | ImageError]]] = deque()
    remaining = iter(sources)
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
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


def _score(
    batch: list[tuple[Source, Tensor | ImageError]], network: Callable[[Tensor], Tensor]
) -> Iterator[tuple[Source, Tensor | ImageError]]:
    pixels = [item for _, item in batch if isinstance(item, Tensor)]
    rows = iter(network(torch.stack(pixels))) if pixels else iter(())
    for source, item in batch:
        yield source, (next(rows) if isinstance(item, Tensor) else item)
