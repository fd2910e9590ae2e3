"""Scores for many callers at once: each brings one picture, the network takes those that wait as one batch."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from threading import Lock

import torch
from torch import Tensor

from aimonk_hf.app.uploads import Budget, Picture, read_picture
from aimonk_hf.data.images import MAX_PIXELS
from aimonk_hf.errors import AimonkError, reason_of
from aimonk_hf.modeling.inference import finite
from aimonk_hf.modeling.model import AimonkModel


class Scorer:
    """Runs the network in one thread, on up to `max_batch` waiting pictures at a time; a failure reaches only the callers of that batch.

    Decoding is done by the callers, at most `MAX_PIXELS` at a time, so that large pictures cannot fill the memory. `network_lock` is held
    while the network computes; whoever uses the network otherwise must hold it too. `n_images` and `n_batches` count what was computed.
    """

    def __init__(self, model: AimonkModel, max_batch: int = 16) -> None:
        self.model = model.eval().requires_grad_(False)
        self.max_batch = max_batch
        self.network_lock = Lock()
        self.n_images = self.n_batches = 0
        self._decoding = Budget(MAX_PIXELS)
        self._waiting: deque[tuple[Tensor, Future[Tensor]]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="network")

    def read(self, source: str | bytes) -> AbstractContextManager[Picture]:
        """Decode an uploaded picture for the length of a block, when its turn has come; raises `ImageError`."""
        return read_picture(source, self._decoding)

    def score(self, pixels: Tensor) -> dict[str, float]:
        """Return the scores of an image as the transform's uint8 pixels [3, H, W]; waits for its turn.

        Raises `AimonkError` where the network's output is not finite.
        """
        answer: Future[Tensor] = Future()
        self._waiting.append((pixels, answer))
        self._thread.submit(self._score_waiting)
        scores = finite(answer.result()).sigmoid().tolist()
        return dict(zip(self.model.config.attributes, scores, strict=True))

    def close(self) -> None:
        """Let the network's thread end after the work at hand."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _score_waiting(self) -> None:
        batch: list[tuple[Tensor, Future[Tensor]]] = []
        while self._waiting and len(batch) < self.max_batch:
            batch.append(self._waiting.popleft())
        if not batch:
            return  # an earlier turn has taken them along
        answers = [answer for _, answer in batch]
        try:
            with self.network_lock:
                pixels = torch.stack([pixels for pixels, _ in batch])
                logits = self.model.logits_of_pixels(pixels)
        except (RuntimeError, MemoryError) as error:
            for answer in answers:
                answer.set_exception(AimonkError(f"the network failed on this batch ({reason_of(error)}): try again"))
            return
        self.n_images += len(batch)
        self.n_batches += 1
        for answer, row in zip(answers, logits, strict=True):
            answer.set_result(row)
