"""Score images for many callers at once: each brings one, and the network takes those that wait as one batch."""

import secrets
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from starlette.types import ASGIApp

from aimonk_hf.app.uploads import Limits, Upload, decoded
from aimonk_hf.data.collected import Collection
from aimonk_hf.errors import AimonkError, reason_of
from aimonk_hf.modeling.config import check_thresholds
from aimonk_hf.modeling.devices import on_zero_gpu
from aimonk_hf.modeling.hub import CONFIG_FILE
from aimonk_hf.modeling.predictor import AimonkPredictor
from aimonk_hf.modeling.processing import Pixels
from aimonk_hf.modeling.streaming import Outputs, finite, sigmoid
from aimonk_hf.storage import explained, read_json, write_json

if TYPE_CHECKING:
    from aimonk_hf.modeling.model import AimonkModel

THUMBNAIL = (224, 224)


def on_gpu(compute: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that asks for a GPU of ZeroGPU at each call; the function itself on any other machine.

    Of its arguments and its result copies are made, which pass from one process to another.
    """
    if on_zero_gpu():
        import spaces

        compute = spaces.GPU(compute)
    return compute


class Scorer:
    """Run the network in one thread, on up to `max_batch` waiting images at a time; count images and batches.

    Heat maps are computed there too: torch keeps threads and memory for every thread that computes.
    """

    def __init__(self, model: "AimonkModel | AimonkPredictor", max_batch: int = 16) -> None:
        self.model = model
        if not isinstance(model, AimonkPredictor):
            model.eval()
        self.max_batch = max_batch
        self.n_images = self.n_batches = 0
        self._waiting: deque[tuple[Pixels, Future[Outputs]]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="network")
        self._compute, self._compute_map = on_gpu(self._logits), on_gpu(self._gradient_map)

    def torch_model(self) -> "AimonkModel":
        """Return the torch network of the model, loaded at the first call where onnxruntime computes the scores."""
        model = self.model.torch_model() if isinstance(self.model, AimonkPredictor) else self.model
        return model.requires_grad_(False)

    def score(self, pixels: Pixels) -> dict[str, float]:
        """Return the scores of an image as the transform's uint8 pixels [H, W, 3]; raises `AimonkError`."""
        answer: Future[Outputs] = Future()
        self._waiting.append((pixels, answer))
        self._thread.submit(copy_context().run, self._score_waiting)  # ZeroGPU counts for the visitor of the context
        scores = sigmoid(finite(answer.result())).tolist()
        return dict(zip(self.model.config.attributes, scores, strict=True))

    def gradient_map(self, pixels: Pixels, attribute: str) -> NDArray[np.float32]:
        """Return the heat [H, W] of `grad_cam.gradient_map` for the transform's uint8 pixels [H, W, 3]."""
        self.torch_model()  # loading it keeps nobody waiting
        return self._thread.submit(copy_context().run, self._compute_map, pixels, attribute).result()

    def close(self) -> None:
        """Let the network's thread end after the work at hand."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _score_waiting(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self.max_batch))]
        if not batch:
            return  # an earlier turn has taken them along
        try:
            logits = self._compute(np.stack([pixels for pixels, _ in batch]))
        except Exception as error:  # also gradio's of ZeroGPU, such as a spent quota: the callers wait for an answer
            for _, answer in batch:
                answer.set_exception(AimonkError(f"The network failed on this batch ({reason_of(error)}): try again"))
            return
        self.n_images += len(batch)
        self.n_batches += 1
        for (_, answer), row in zip(batch, logits, strict=True):
            answer.set_result(row)

    def _logits(self, pixels: Pixels) -> Outputs:
        return self.model.network().compute(pixels)

    def _gradient_map(self, pixels: Pixels, attribute: str) -> NDArray[np.float32]:
        from aimonk_hf.app.grad_cam import gradient_map

        return gradient_map(self.torch_model(), pixels, attribute)


@dataclass
class Served:
    """Hold the model behind the app; in a `save_folder` visitors who send the `token` may write thresholds.

    `note` is a sentence on the page about the model; `collection` is where marked images go.
    """

    scorer: Scorer
    name: str
    limits: Limits
    save_folder: Path | None = None
    note: str = ""
    labelling: ASGIApp | None = None
    collection: Collection | None = None
    model_folder: Path | None = None
    token: str = field(default_factory=secrets.token_urlsafe)

    @property
    def stored(self) -> dict[str, float]:
        """Return the model's thresholds by attribute."""
        return self.scorer.model.config.thresholds

    @property
    def is_writable(self) -> bool:
        """Return whether visitors may write something."""
        return self.save_folder is not None or self.collection is not None

    def read(self, upload: Upload, thumbnail: Path | None = None) -> tuple[Pixels, str]:
        """Return the transform's pixels [H, W, 3] of an upload and the sentences on it; write a small JPEG of it."""
        with decoded(upload, self.limits) as (image, notes):
            pixels = self.scorer.model.transform.pixels(image)
            if thumbnail is not None:
                image.thumbnail(THUMBNAIL)
                with explained("write its thumbnail"):
                    image.save(thumbnail, quality=85)
            return pixels, notes

    def thresholds(self, values: Any) -> dict[str, float]:
        """Return checked thresholds by name for a list in the stored order or a mapping; None keeps the stored one."""
        names = list(self.stored)
        if isinstance(values, list) and len(values) == len(names):
            values = dict(zip(names, values, strict=True))
        if not isinstance(values, dict):
            raise AimonkError(f"The thresholds must be {len(names)} numbers, or a mapping of names to numbers")
        given = {name: value for name, value in values.items() if value is not None}
        return check_thresholds(names, self.stored | given)

    def save_thresholds(self, thresholds: dict[str, float], token: Any) -> str:
        """Write the thresholds into the model's config.json and return a sentence about it; raises `AimonkError`."""
        if self.save_folder is None:
            raise AimonkError("Saving is off: start the app with --allow-save and a local model folder")
        if not secrets.compare_digest(str(token).encode(errors="replace"), self.token.encode()):
            raise AimonkError("This page is of an earlier start of the app, and nothing was saved: load it again")
        path = self.save_folder / CONFIG_FILE
        write_json(path, read_json(path) | {"thresholds": thresholds})
        self.scorer.model.config.thresholds = dict(thresholds)
        earlier = "The model's metrics were measured with the earlier ones: aimonk-hf evaluate measures anew."
        return f"Saved {len(thresholds)} thresholds. {earlier}"
