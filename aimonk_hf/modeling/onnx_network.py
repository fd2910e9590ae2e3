"""Compute an exported network with onnxruntime, without torch."""

import base64
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aimonk_hf.console import warn_once
from aimonk_hf.data.images import shown_name
from aimonk_hf.errors import AimonkError, reason_of
from aimonk_hf.modeling.config import AimonkConfig
from aimonk_hf.modeling.hub import FINGERPRINT, PREPROCESSOR_FILE, made_from
from aimonk_hf.modeling.processing import EvalTransform
from aimonk_hf.modeling.streaming import Network, Pixels, default_workers
from aimonk_hf.storage import atomic_path, make_folder

# Transformers.js finds these by its dtypes "fp32" and "q8"
FP32_FILE, INT8_FILE = "onnx/model.onnx", "onnx/model_quantized.onnx"
ONNX_FILES = {"float32": FP32_FILE, "int8": INT8_FILE}
INPUT, LOGITS, FEATURES = "pixel_values", "logits", "last_feature_map"
HEAD = "head_weight"  # key of the file's metadata: float32 [K, C], in base64, of the linear layer after the pooling
_THREAD_BATCH = 2  # images; larger ones leave the processor's cache
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def keep_in_step(folder: Path, fingerprint: str, source: Path | None) -> None:
    """Remove the ONNX files of other weights from a model folder, and copy those of its own weights from `source`."""
    files = (FP32_FILE, INT8_FILE)
    stale = [file for file in files if (folder / file).is_file() and not made_from(folder / file, fingerprint)]
    if stale:
        shutil.rmtree(folder / "onnx")
        (folder / PREPROCESSOR_FILE).unlink(missing_ok=True)
        warn_once(f"{folder}: {stale[0]} is of other weights and was removed; aimonk-hf export writes a new one")
    if source is None or source.resolve() == folder.resolve():
        return
    valid = [file for file in files if (source / file).is_file() and made_from(source / file, fingerprint)]
    for file in [*valid, *([PREPROCESSOR_FILE] if valid and (source / PREPROCESSOR_FILE).is_file() else [])]:
        make_folder((folder / file).parent)
        with atomic_path(folder / file) as temporary:
            shutil.copyfile(source / file, temporary)


class NoOnnxError(AimonkError):
    """An ONNX file that is missing or cannot be used; `tell` where the user should know although torch can compute."""

    def __init__(self, text: str, tell: bool = True) -> None:
        super().__init__(text)
        self.tell = tell


class OnnxNetwork:
    """An ONNX file of a model's weights.

    Raises `NoOnnxError` for a file that is damaged, of other weights than `fingerprint`, or of other attributes, and
    for a device that this onnxruntime cannot use.
    """

    def __init__(self, path: Path, config: AimonkConfig, fingerprint: str | None, device: str = "cpu") -> None:
        self.path, self.config, self.transform = path, config, EvalTransform(config.pretrained_cfg)
        self.device, self._provider = device, _provider(device)
        self._whole = self._session(0)
        self._shared: Any = None
        self._properties: dict[str, str] = self._whole.get_modelmeta().custom_metadata_map
        if fingerprint is not None and self._properties.get(FINGERPRINT) != fingerprint:
            raise NoOnnxError(f"{path} was exported from other weights; write it again with: aimonk-hf export")
        width = {output.name: output.shape for output in self._whole.get_outputs()}.get(LOGITS, [0, 0])[-1]
        size = self._whole.get_inputs()[0].shape[-2:]
        if width != len(config.attributes) or tuple(size) != self.transform.size:
            wanted = f"{len(config.attributes)} attributes and images of {list(self.transform.size)}"
            raise NoOnnxError(f"{path} computes {width} outputs from images of {size}; config.json has {wanted}")

    def network(self, precision: str) -> Network:
        """Return the function for streams: each of some threads computes small batches on a core of its own."""
        if self._provider != _PROVIDERS["cpu"]:
            return Network(self.logits)
        return Network(self.logits, default_workers(), _THREAD_BATCH, self._logits_in_a_thread)

    def logits(self, pixels: Pixels) -> NDArray[np.float32]:
        """Return the logits [N, K] of uint8 pixels [N, H, W, 3], computed by all cores."""
        return self._run(self._whole, LOGITS, pixels)

    def class_activations(self, pixels: Pixels) -> NDArray[np.float32] | None:
        """Return the parts of the logits by place [N, K, h, w], or None where the network does not end in pooling.

        Class activation maps (Zhou et al., CVPR 2016): the head's weights times the features that are pooled for it.
        """
        head = self._properties.get(HEAD)
        if head is None:
            return None
        features = self._run(self._whole, FEATURES, pixels)
        weight = np.frombuffer(base64.b64decode(head), np.float32).reshape(-1, features.shape[1])
        return np.einsum("nchw,kc->nkhw", features, weight)

    def _logits_in_a_thread(self, pixels: Pixels) -> NDArray[np.float32]:
        if self._shared is None:
            self._shared = self._session(1)
        return self._run(self._shared, LOGITS, pixels)

    def _run(self, session: Any, output: str, pixels: Pixels) -> NDArray[np.float32]:
        from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException

        try:
            return session.run([output], {INPUT: self.transform.normalize(pixels)})[0]
        except RuntimeException as error:
            raise AimonkError(f"{self.path} cannot be computed: {reason_of(error)}") from error

    def _session(self, threads: int) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            return onnxruntime.InferenceSession(os.fspath(self.path), options, providers=[self._provider])
        except Exception as error:  # onnxruntime's errors share no base class
            raise NoOnnxError(f"{shown_name(self.path)} cannot be read: {reason_of(error)}") from error


def _provider(device: str) -> str:
    import onnxruntime

    kind = device.partition(":")[0]
    provider = _PROVIDERS.get(kind, kind)
    if provider not in onnxruntime.get_available_providers():
        raise NoOnnxError(f"onnxruntime here has no provider for {device}: use --backend torch, or --device cpu")
    return provider
