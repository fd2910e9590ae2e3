"""Predict by onnxruntime on a CPU, by torch on an accelerator; torch is imported only where it computes."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from importlib.util import find_spec
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Union, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from aimonk_hf.console import warn_once
from aimonk_hf.data.images import ImageSource
from aimonk_hf.errors import AimonkError, ImageError
from aimonk_hf.modeling.config import AimonkConfig, resolve_thresholds
from aimonk_hf.modeling.devices import check_precision, is_faster_in_bf16, resolve_device
from aimonk_hf.modeling.hub import CONFIG_FILE, FINGERPRINT, METRICS_FILE, HubOptions, model_folder
from aimonk_hf.modeling.onnx_network import ONNX_FILES, NoOnnxError, OnnxNetwork
from aimonk_hf.modeling.prediction import Prediction
from aimonk_hf.modeling.processing import EvalTransform
from aimonk_hf.modeling.saved_metrics import read_metrics
from aimonk_hf.modeling.streaming import Network, Pixels, Source, as_readable, sigmoid, stream_outputs
from aimonk_hf.storage import read_json

if TYPE_CHECKING:
    from torch import Tensor

    from aimonk_hf.modeling.model import AimonkModel

BACKENDS = ("auto", "onnx", "torch")

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


class AimonkPredictor(Predicting):
    """A saved model for prediction alone, by onnxruntime (`backend` "onnx") or torch.

    predictor = AimonkPredictor.from_pretrained("folder-or-user/repo")
    predictor.predict("dress.jpg").attributes   # ["collar"]
    """

    def __init__(
        self,
        network: "OnnxNetwork | AimonkModel",
        config: AimonkConfig,
        folder: Path,
        precision: str,
        load_torch: "Callable[[], AimonkModel]",
    ) -> None:
        self._network, self.config, self.folder, self.precision = network, config, folder, precision
        self._load_torch = load_torch
        self.metrics, self.metrics_problem = read_metrics(folder / METRICS_FILE, config.attributes)
        self.transform = network.transform
        self.fingerprint: str | None = read_json(folder / CONFIG_FILE).get(FINGERPRINT)

    @classmethod
    def from_pretrained(
        cls,
        name: str | PathLike[str],
        *,
        backend: str = "auto",
        device: str = "auto",
        precision: str = "float32",
        subfolder: str | None = None,
        **options: Unpack[HubOptions],
    ) -> "AimonkPredictor":
        """Load a saved folder or a Hub repository.

        `backend` "auto" is onnx on a CPU where the model has a valid onnx/model.onnx, else torch. `precision` is
        float32, bf16, fp16, int8 (onnx/model_quantized.onnx), or auto for the device's fastest. `device` is auto (the
        accelerator that torch has, else the CPU), cpu, cuda, cuda:1 or mps. `options` are huggingface_hub's. Raises
        `AimonkError` for what the model, the machine or the installed packages do not have.
        """
        if backend not in BACKENDS:
            raise AimonkError(f"backend must be {', '.join(BACKENDS[:-1])} or {BACKENDS[-1]}, found {backend!r}")
        check_precision(precision, int8=backend != "torch")
        device = resolve_device(device)
        if backend == "onnx" and precision in ("bf16", "fp16"):
            raise AimonkError(f"backend onnx computes in float32 or int8, found precision {precision!r}")
        asked = backend == "onnx" or precision == "int8"
        slow = device != "cpu" or precision in ("bf16", "fp16") or (precision == "auto" and is_faster_in_bf16())
        if asked or (backend == "auto" and not slow):
            try:
                return cls._from_onnx(name, device, precision, subfolder, **options)
            except NoOnnxError as error:
                if asked or find_spec("torch") is None:
                    raise
                if error.tell:
                    warn_once(f"{error}; torch computes instead")
        if find_spec("torch") is None:
            raise AimonkError("torch is not installed: pip install torch, or choose --backend onnx on a CPU")
        model = _load_torch(name, device=device, subfolder=subfolder, **options)
        return cls(model, model.config, model.folder or Path(name), precision, lambda: model)

    @classmethod
    def _from_onnx(
        cls,
        name: str | PathLike[str],
        device: str,
        precision: str,
        subfolder: str | None,
        **options: Unpack[HubOptions],
    ) -> "AimonkPredictor":
        file = ONNX_FILES["int8" if precision == "int8" else "float32"]
        folder = model_folder(name, [CONFIG_FILE, METRICS_FILE, file], subfolder, **options)
        if not (folder / file).is_file():
            wanted = f"aimonk-hf export --model {name} --output {name}{' --int8' * (precision == 'int8')}"
            raise NoOnnxError(f"{name} has no {file}; write it with: {wanted}", tell=False)
        if find_spec("onnxruntime") is None:
            raise NoOnnxError(
                f"{name} has {file}, but onnxruntime is not installed: pip install onnxruntime", tell=True
            )
        config = AimonkConfig.from_pretrained(folder)
        network = OnnxNetwork(folder / file, config, config.extra.pop(FINGERPRINT, None), device)
        load_torch = cache(partial(_load_torch, name, subfolder=subfolder, **options))
        return cls(network, config, folder, "int8" if precision == "int8" else "float32", load_torch)

    def torch_model(self) -> "AimonkModel":
        """Return the model as a torch network: the one that computes, else one on the CPU, loaded at the first call."""
        return self._load_torch()

    @property
    def backend(self) -> str:
        """Return "onnx" or "torch"."""
        return "onnx" if isinstance(self._network, OnnxNetwork) else "torch"

    @property
    def device(self) -> str:
        """Return the device that computes, such as "cpu" or "cuda:0"."""
        return str(self._network.device)

    @property
    def thresholds(self) -> dict[str, float]:
        """Return the stored thresholds by attribute."""
        return self.config.thresholds

    def class_activations(self, pixels: Pixels) -> NDArray[np.float32] | None:
        """Return the parts of the logits by place [N, K, h, w] of uint8 pixels [N, H, W, 3], where there are such.

        They come from onnx/model.onnx of a network that ends in pooling and a linear layer; else None.
        """
        return self._network.class_activations(pixels) if isinstance(self._network, OnnxNetwork) else None

    def network(self, precision: str | None = None) -> Network:
        """Return the function from pixels to logits, in the precision that was loaded unless one is named."""
        return self._network.network(precision or self.precision)


def _load_torch(name: str | PathLike[str], **options: Any) -> "AimonkModel":
    from aimonk_hf.modeling.model import AimonkModel

    return AimonkModel.from_pretrained(name, **options)


def _path_of(source: Any) -> str | None:
    return fspath(source) if isinstance(source, str | PathLike) else None
