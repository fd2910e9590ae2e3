"""`predict` and `stream`, and the `Prediction` of one image: scores and decisions, as text and as HTML."""

import base64
import io
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from html import escape
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Union, Unpack, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from aimonk_hf.data.images import ImageSource, read_image, shown_name
from aimonk_hf.errors import AimonkError, ImageError
from aimonk_hf.modeling.config import AimonkConfig, resolve_thresholds
from aimonk_hf.modeling.processing import EvalTransform
from aimonk_hf.modeling.streaming import Network, Source, as_readable, sigmoid, stream_outputs

if TYPE_CHECKING:
    from torch import Tensor

ImageLike = Union[ImageSource, "Tensor"]
Images = Iterable[ImageLike]
Raise = Literal["raise"]
Thresholds = float | dict[str, float] | NDArray[np.floating[Any]] | None

_IMAGE_SIZE = 240  # pixels of the longer side, so that a notebook with many predictions stays small

# Colours that are readable on the white and the black background of notebooks.
_PRESENT, _ABSENT, _TRACK = "#1f8a5b", "#8a99ad", "rgba(128, 128, 128, .25)"
_CELL, _DIGITS = "padding:2px 8px;background:none", "font-variant-numeric:tabular-nums"


@dataclass
class Prediction:
    """Scores in [0, 1] and the thresholds that decide; `image` is the file's name, if there is one.

    `source` is the caller's own image (never a copy), shown in a notebook where there is no file.
    """

    scores: dict[str, float]
    thresholds: dict[str, float]
    image: str | None = None
    source: ImageSource | None = field(default=None, repr=False, compare=False)

    @property
    def attributes(self) -> list[str]:
        """Return the present attributes, whose score reaches their threshold, in the model's order."""
        return [name for name, score in self.scores.items() if score >= self.thresholds[name]]

    def __str__(self) -> str:
        present = dict.fromkeys(self.attributes)
        width = max(len("attribute"), *map(len, self.scores))
        lines = [shown_name(self.image)] if self.image else []
        lines.append(f"  {'attribute':{width}}  {'':7}  score  threshold")
        for name, score in self.scores.items():
            state = "present" if name in present else "absent"
            lines.append(f"  {name:{width}}  {state:7}  {score:5.3f}  {self.thresholds[name]:9.3f}")
        lines.append(f"  present: {', '.join(present) or 'none'}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Return the image, a bar per attribute and its threshold, without scripts or other files."""
        present = dict.fromkeys(self.attributes)
        rows = "".join(_row(name, score, self.thresholds[name], name in present) for name, score in self.scores.items())
        name = escape(shown_name(self.image)) if self.image else ""
        caption = f'<div style="padding:0 8px 4px;opacity:.7;overflow-wrap:anywhere">{name}</div>' if name else ""
        return (
            '<div style="display:flex;gap:1.5em;align-items:flex-start;flex-wrap:wrap">'
            f"{_thumbnail(self.image if self.source is None else self.source)}<div>{caption}"
            f'<table style="border-collapse:collapse;color:inherit;font:inherit"><tbody>{rows}</tbody></table>'
            f'<div style="padding:4px 8px">present: {escape(", ".join(present)) or "none"}</div></div></div>'
        )


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
        network = self.network(precision).mirrored() if tta else self.network(precision)
        rows = stream_outputs(images, self.transform.pixels, network, batch_size, workers)

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


def _row(attribute: str, score: float, threshold: float, is_present: bool) -> str:
    colour, weight, sign = (_PRESENT, 600, "&ge;") if is_present else (_ABSENT, 400, "&lt;")
    mark = "position:absolute;top:-3px;bottom:-3px;width:2px;background:currentColor"
    bar = (
        f'<div style="position:relative;width:180px;height:11px;border-radius:5px;background:{_TRACK}">'
        f'<div style="width:{100 * score:.1f}%;height:100%;border-radius:5px;background:{colour}"></div>'
        f'<div style="{mark};left:{100 * threshold:.1f}%"></div></div>'
    )
    name = f'<td style="{_CELL};text-align:left;font-weight:{weight}">{escape(attribute)}</td>'
    return (
        f'<tr style="background:none">{name}<td style="{_CELL}" title="threshold {threshold:.3f}">{bar}</td>'
        f'<td style="{_CELL};{_DIGITS}">{score:.3f}</td>'
        f'<td style="{_CELL};opacity:.7;{_DIGITS}">{sign} {threshold:.3f}</td></tr>'
    )


def _thumbnail(source: ImageSource | None) -> str:
    """Return a small image as an img element with the bytes in it; nothing for one that cannot be read."""
    if source is None:
        return ""
    try:
        image = read_image(source)
    except ImageError:
        return ""
    image.thumbnail((_IMAGE_SIZE, _IMAGE_SIZE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
