"""Predict by onnxruntime on a CPU, by torch on an accelerator; torch is imported only where it computes."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import NDArray

from aimonk_hf.console import warn_once
from aimonk_hf.errors import AimonkError, ImageError
from aimonk_hf.modeling.config import AimonkConfig
from aimonk_hf.modeling.devices import check_precision, is_faster_in_bf16, resolve_device
from aimonk_hf.modeling.hub import CONFIG_FILE, FINGERPRINT, METRICS_FILE, HubOptions, model_folder
from aimonk_hf.modeling.onnx_network import ONNX_FILES, NoOnnxError, OnnxNetwork
from aimonk_hf.modeling.prediction import Predicting, Thresholds
from aimonk_hf.modeling.saved_metrics import read_metrics
from aimonk_hf.modeling.streaming import Network, Pixels
from aimonk_hf.storage import StrPath, read_json, score_columns

if TYPE_CHECKING:
    from aimonk_hf.modeling.model import AimonkModel

BACKENDS = ("auto", "onnx", "torch")


class AimonkPredictor(Predicting):
    """A saved model for prediction alone, by onnxruntime (`backend` "onnx") or torch.

    predictor = AimonkPredictor.from_pretrained("folder-or-user/repo")
    predictor.predict("dress.jpg").attributes   # ["collar"]
    """

    def __init__(
        self,
        network: "OnnxNetwork | AimonkModel",
        folder: Path,
        precision: str,
        load_torch: "Callable[[], AimonkModel]",
    ) -> None:
        self._network, self.folder, self.precision, self._load_torch = network, folder, precision, load_torch
        self.config, self.transform = network.config, network.transform
        self.metrics, self.metrics_problem = read_metrics(folder / METRICS_FILE, self.config.attributes)
        self.fingerprint: str | None = read_json(folder / CONFIG_FILE).get(FINGERPRINT)

    @classmethod
    def from_pretrained(
        cls,
        name: StrPath,
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
        asked = backend == "onnx" or precision == "int8"
        device = "cpu" if asked and device == "auto" else resolve_device(device)
        if backend == "onnx" and precision in ("bf16", "fp16"):
            raise AimonkError(f"backend onnx computes in float32 or int8, found precision {precision!r}")
        slow = device != "cpu" or precision in ("bf16", "fp16") or (precision == "auto" and is_faster_in_bf16())
        if asked or (backend == "auto" and not slow):
            try:
                return cls._from_onnx(name, device, precision, subfolder=subfolder, **options)
            except NoOnnxError as error:
                if asked or find_spec("torch") is None:
                    raise
                if error.tell:
                    warn_once(f"{error}; torch computes instead")
        if find_spec("torch") is None:
            raise AimonkError("torch is not installed: pip install torch, or choose --backend onnx on a CPU")
        model = _load_torch(name, device=device, subfolder=subfolder, **options)
        return cls(model, model.folder or Path(name), precision, lambda: model)

    @classmethod
    def _from_onnx(cls, name: StrPath, device: str, precision: str, **options: Any) -> "AimonkPredictor":
        file = ONNX_FILES["int8" if precision == "int8" else "float32"]
        folder = model_folder(name, [CONFIG_FILE, METRICS_FILE, file], **options)
        if not (folder / file).is_file():
            wanted = f"aimonk-hf export --model {name} --output {name}{' --int8' * (precision == 'int8')}"
            raise NoOnnxError(f"{name} has no {file}; write it with: {wanted}", tell=False)
        if find_spec("onnxruntime") is None:
            raise NoOnnxError(f"{name} has {file}, but onnxruntime is not installed: pip install onnxruntime")
        config = AimonkConfig.from_pretrained(folder)
        network = OnnxNetwork(folder / file, config, config.extra.pop(FINGERPRINT, None), device)
        load_torch = cache(partial(_load_torch, name, **options))
        return cls(network, folder, "int8" if precision == "int8" else "float32", load_torch)

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
    def computing_line(self) -> str:
        """Return the sentence that names device, backend and precision."""
        library = "onnxruntime" if self.backend == "onnx" else "torch"
        return f"Computing on {self.device} by {library} in {self.precision}."

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


class BatchPredictor:
    """A function from a dict of columns to a dict of columns that can be sent to other processes.

    The model is loaded at the first call in each process; only its name and `options` (those of
    `AimonkPredictor.from_pretrained`) travel.

        dataset.map_batches(BatchPredictor("user/repo", column="path"), batch_size=64)   # Ray Data
        dataset.map(BatchPredictor("user/repo"), batched=True)                           # datasets
    """

    def __init__(
        self,
        model: StrPath,
        column: str = "image",
        thresholds: Thresholds = None,
        batch_size: int = 32,
        workers: int | None = None,
        **options: Any,
    ) -> None:
        self.model, self.column, self.thresholds = model, column, thresholds
        self.batch_size, self.workers, self.options = batch_size, workers, options
        self._predictor: AimonkPredictor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_predictor": None}

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """Return the other columns of the batch and, for each row, one score per attribute, `attributes` and `error`.

        Images are paths, bytes, arrays [H, W, 3] uint8, PIL images, or dicts with `bytes` or `path`; paths stay in the
        result. A row whose image cannot be read has NaN scores, no attributes and the reason in `error`. An attribute
        named as another column gets the column `score:NAME`. Raises `AimonkError` for a batch without the column.
        """
        if self.column not in batch:
            raise AimonkError(f"The batch has no column {self.column!r}; it has {', '.join(map(str, batch))}")
        if self._predictor is None:
            self._predictor = AimonkPredictor.from_pretrained(self.model, **self.options)
        images = [_source(value) for value in batch[self.column]]
        kept = {name: values for name, values in batch.items() if name != self.column}
        if images and all(isinstance(image, str) for image in images):
            kept[self.column] = batch[self.column]
        names = self._predictor.config.attributes
        scores = np.full((len(images), len(names)), np.nan)
        attributes: list[list[str]] = [[] for _ in images]
        errors = [""] * len(images)
        stream = self._predictor.stream(images, self.thresholds, self.batch_size, workers=self.workers)
        for row, (_, found) in enumerate(stream):
            if isinstance(found, ImageError):
                errors[row] = str(found)
            else:
                scores[row], attributes[row] = list(found.scores.values()), found.attributes
        columns = (f"score:{name}" if name in kept else name for name in score_columns(names))
        return kept | dict(zip(columns, scores.T, strict=True)) | {"attributes": attributes, "error": errors}


def _source(value: Any) -> Any:
    """Return the image of a cell; `datasets` without decoding gives a dict, numpy its own strings."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path") or b""
    return str(value) if isinstance(value, str) else value


def _load_torch(name: StrPath, **options: Any) -> "AimonkModel":
    from aimonk_hf.modeling.model import AimonkModel

    return AimonkModel.from_pretrained(name, **options)
