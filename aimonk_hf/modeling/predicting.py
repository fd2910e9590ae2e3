"""Give `predict` and `stream` to whatever computes logits."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Union, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from aimonk_hf.data.images import ImageSource
from aimonk_hf.errors import AimonkError, ImageError
from aimonk_hf.modeling.config import AimonkConfig, resolve_thresholds
from aimonk_hf.modeling.prediction import Prediction
from aimonk_hf.modeling.processing import EvalTransform
from aimonk_hf.modeling.streaming import Network, Source, as_readable, sigmoid, stream_outputs

if TYPE_CHECKING:
    from torch import Tensor

ImageLike = Union[ImageSource, "Tensor"]
Images = Iterable[ImageLike]
Raise = Literal["raise"]
Thresholds = float | dict[str, float] | NDArray[np.floating[Any]] | None


class Options(TypedDict, total=False):
    """Options of `stream`, and thus of `predict`."""

    batch_size: int
    tta: bool
    workers: int | None
    precision: str | None


class Predicting:
    """Give `predict` and `stream` to a class with a config, a transform and a network."""

    config: AimonkConfig
    transform: EvalTransform
    folder: Path | None

    def network(self, precision: str | None = None) -> Network:
        """Return the function from pixels to logits."""
        raise NotImplementedError

    def predicting(self) -> AbstractContextManager[None]:
        """Return the context in which a stream is computed."""
        return nullcontext()

    def stream(
        self,
        images: Iterable[Source],
        thresholds: Thresholds = None,
        batch_size: int = 32,
        tta: bool = False,
        workers: int | None = None,
        precision: str | None = None,
    ) -> Iterator[tuple[Source, Prediction | ImageError]]:
        """Yield each image with its prediction, or with the error that prevented it, in bounded memory.

        `tta` averages with the mirrored image; `precision` is float32, bf16, fp16, or auto for the device's fastest.
        """
        if batch_size < 1 or (workers is not None and workers < 1):
            raise AimonkError(f"batch_size and workers must be at least 1, found {batch_size} and {workers}")
        resolved = resolve_thresholds(self.config.attributes, self.config.thresholds, thresholds)
        network = self.network(precision)
        rows = stream_outputs(
            images, self.transform.pixels, network.mirrored() if tta else network, batch_size, workers
        )

        def predictions() -> Iterator[tuple[Source, Prediction | ImageError]]:
            with self.predicting():
                for source, logits in rows:
                    if isinstance(logits, ImageError):
                        yield source, logits
                    else:
                        scores = dict(zip(self.config.attributes, sigmoid(logits).tolist(), strict=True))
                        yield source, Prediction(scores, resolved, _path_of(source))

        return predictions()  # wrong options raise before the first image is asked for

    @overload
    def predict(  # type: ignore[overload-overlap]  # a str is an iterable of str
        self, images: ImageLike, thresholds: Thresholds = ..., *, on_error: Raise = ..., **options: Unpack[Options]
    ) -> Prediction: ...
    @overload
    def predict(  # type: ignore[overload-overlap]  # a str is an iterable of str
        self, images: ImageLike, thresholds: Thresholds = ..., *, on_error: str, **options: Unpack[Options]
    ) -> Prediction | None: ...
    @overload
    def predict(
        self, images: Images, thresholds: Thresholds = ..., *, on_error: Raise = ..., **options: Unpack[Options]
    ) -> list[Prediction]: ...
    @overload
    def predict(
        self, images: Images, thresholds: Thresholds = ..., *, on_error: str, **options: Unpack[Options]
    ) -> list[Prediction | None]: ...
    def predict(
        self, images: Any, thresholds: Thresholds = None, *, on_error: str = "raise", **options: Unpack[Options]
    ) -> Any:
        """Return the `Prediction` of one image, or a list for an iterable of images.

        An image is a path, PIL image, uint8 array [H, W, 3] or tensor [3, H, W], or the bytes of a file. `thresholds`
        replaces the stored ones, by one number, by name, or by an array [K]. A bad image raises `ImageError`;
        `on_error="skip"` puts None in its place. `options` are those of `stream`: `batch_size`, `tta`, ...
        """
        if on_error not in ("raise", "skip"):
            raise AimonkError(f"on_error must be 'raise' or 'skip', found {on_error!r}")
        is_one = isinstance(images, str | bytes) or not isinstance(images, Iterable) or getattr(images, "ndim", 4) < 4
        predictions: list[Prediction | None] = []
        for source, prediction in self.stream([images] if is_one else images, thresholds, **options):
            if isinstance(prediction, Prediction):
                # the caller's own image; a stream keeps none, so that its memory stays bounded
                prediction.source = as_readable(source)
                predictions.append(prediction)
            elif on_error == "skip":
                predictions.append(None)
            else:
                name = f"{path}: " if (path := _path_of(source)) else ""
                raise ImageError(f"{name}{prediction}") from prediction
        return predictions[0] if is_one else predictions


def _path_of(source: Any) -> str | None:
    return fspath(source) if isinstance(source, str | PathLike) else None
