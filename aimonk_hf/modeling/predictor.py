"""Predict by onnxruntime on a CPU, by torch on an accelerator; torch is imported only where it computes."""

from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import NDArray

from aimonk_hf.console import warn_once
from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling.config import AimonkConfig
from aimonk_hf.modeling.devices import check_precision, is_faster_in_bf16, resolve_device
from aimonk_hf.modeling.hub import CONFIG_FILE, FINGERPRINT, METRICS_FILE, HubOptions, model_folder
from aimonk_hf.modeling.onnx_network import ONNX_FILES, NoOnnxError, OnnxNetwork
from aimonk_hf.modeling.predicting import Predicting
from aimonk_hf.modeling.saved_metrics import read_metrics
from aimonk_hf.modeling.streaming import Network, Pixels
from aimonk_hf.storage import read_json

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
        asked = backend == "onnx" or precision == "int8"
        device = "cpu" if asked and device == "auto" else resolve_device(device)
        if backend == "onnx" and precision in ("bf16", "fp16"):
            raise AimonkError(f"backend onnx computes in float32 or int8, found precision {precision!r}")
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


def _load_torch(name: str | PathLike[str], **options: Any) -> "AimonkModel":
    from aimonk_hf.modeling.model import AimonkModel

    return AimonkModel.from_pretrained(name, **options)
