"""Export the network to ONNX for onnxruntime and Transformers.js, checked against torch."""

import base64
import copy
import logging
import math
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from aimonk_hf.data.sample_data import draw_garment
from aimonk_hf.errors import AimonkError, reason_of
from aimonk_hf.modeling.config import AimonkConfig
from aimonk_hf.modeling.hub import CONFIG_FILE, FINGERPRINT, PREPROCESSOR_FILE
from aimonk_hf.modeling.model import AimonkModel
from aimonk_hf.modeling.onnx_network import FEATURES, FP32_FILE, HEAD, INPUT, INT8_FILE, LOGITS, OnnxNetwork
from aimonk_hf.modeling.processing import EvalTransform
from aimonk_hf.modeling.streaming import finite
from aimonk_hf.storage import atomic_path, make_folder, read_json, write_json

COMPARISON_FILE = "onnx/comparison.json"

# Logits of torch and onnxruntime differ by about 1e-5; an export that differs by this much computes something else.
_LARGEST_DIFFERENCE = 1e-3

_logger = logging.getLogger(__name__)


def export_folder(model: AimonkModel, folder: Path, int8: bool = False) -> list[Path]:
    """Write onnx/model.onnx and preprocessor_config.json into a model folder, new or of the same model.

    `int8` adds onnx/model_quantized.onnx. Raises `AimonkError` as `write_onnx`, and for a folder of another model.
    """
    if (folder / CONFIG_FILE).exists():
        own, theirs = model.state_dict(), AimonkModel.from_pretrained(folder).state_dict()
        if own.keys() != theirs.keys() or not all(torch.equal(own[name].cpu(), theirs[name]) for name in own):
            raise AimonkError(f"{folder} holds another model: name another --output")
    else:
        model.save_pretrained(folder)
    return write_onnx(model, folder, int8)


def onnx_line(model: AimonkModel, folder: Path) -> str:
    """Write the ONNX files of a saved model, and return the line about them, also where there can be none."""
    try:
        return f"onnx:     {write_onnx(model, folder)[0]}"
    except AimonkError as error:
        return f"onnx:     none, torch computes predictions instead: {error}"


def write_onnx(model: AimonkModel, folder: Path, int8: bool = False) -> list[Path]:
    """Write the ONNX files of the model saved in `folder`, and return them.

    The ONNX input `pixel_values` is float [N, 3, H, W] of `model.transform`, the output `logits` [N, K], N free;
    `last_feature_map` [N, C, h, w] is there where the network ends in pooling and a linear layer, which is then in the
    file's metadata. Raises `AimonkError` for missing packages, for an architecture that torch cannot export, and where
    onnxruntime and torch disagree; earlier files are left as they are then.
    """
    try:
        for name in ("onnx", "onnxruntime", "onnxscript"):
            import_module(name)
    except ImportError as error:
        raise AimonkError(f"ONNX files need {name}, which is not installed: pip install {name}") from error
    make_folder(folder / "onnx")
    fingerprint = read_json(folder / CONFIG_FILE)[FINGERPRINT]
    files = [folder / FP32_FILE]
    try:
        with atomic_path(files[0]) as temporary:
            _export_network(model, temporary, fingerprint)
            _check(model, temporary, fingerprint)
    except AimonkError:
        if not any((folder / "onnx").iterdir()):
            (folder / "onnx").rmdir()
        raise
    for old in (INT8_FILE, COMPARISON_FILE, PREPROCESSOR_FILE):  # of another export
        (folder / old).unlink(missing_ok=True)
    if int8:
        files.append(folder / INT8_FILE)
        with atomic_path(files[1]) as temporary:
            _quantize(files[0], temporary)
    processor = preprocessor_config(model.config)
    if processor is None:
        _logger.warning("crop_mode border has no counterpart in Transformers.js: %s was not written", PREPROCESSOR_FILE)
    else:
        write_json(folder / PREPROCESSOR_FILE, processor | {FINGERPRINT: fingerprint})
    return files


def preprocessor_config(config: AimonkConfig) -> dict[str, Any] | None:
    """Return the eval transform in the words of Transformers.js, or None where it has none for it.

    There is no `image_processor_type`: with one, transformers would use it instead of timm's own transform.
    """
    data = EvalTransform(config.pretrained_cfg).data_config
    height, width = data["input_size"][-2:]
    before_crop = {"height": math.floor(height / data["crop_pct"]), "width": math.floor(width / data["crop_pct"])}
    if data["crop_mode"] == "squash":
        size = before_crop
    elif data["crop_mode"] == "center" and height == width:
        size = {"shortest_edge": before_crop["height"]}
    else:
        return None
    return {
        "do_resize": True,
        "size": size,
        # Lanczos for every model: in Node, Transformers.js filters with no other one when it makes images smaller
        "resample": int(Image.Resampling.LANCZOS),
        "do_center_crop": size != {"height": height, "width": width},
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(data["mean"]),
        "image_std": list(data["std"]),
    }


class _WithFeatures(nn.Module):
    """Return the logits of a network and the features [N, C, h, w] that it pools for its linear head."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return (logits, features)."""
        features = self.network.forward_features(values)
        return self.network.forward_head(features), features


def _head_on_pooled_features(network: Any, values: Tensor) -> nn.Linear | None:
    """Return the linear layer whose outputs on pooled features are the logits, or None for another kind of network."""
    head = network.get_classifier()
    if not isinstance(head, nn.Linear) or not hasattr(network, "forward_features"):
        return None
    with torch.inference_mode():
        features, logits = network.forward_features(values), network(values)
        if not isinstance(features, Tensor) or features.ndim != 4 or features.shape[1] != head.in_features:
            return None
        return head if torch.allclose(head(features.mean((2, 3))), logits, atol=1e-4) else None


def _export_network(model: AimonkModel, path: Path, fingerprint: str) -> None:
    import onnx

    network = copy.deepcopy(model.timm_model).cpu().float().eval()
    example = torch.randn(2, 3, *model.transform.size)  # two, because torch takes a batch of one for a constant
    head = _head_on_pooled_features(network, example)
    try:
        torch.onnx.export(
            network if head is None else _WithFeatures(network).eval(),
            (example,),
            path,
            dynamo=True,
            input_names=[INPUT],
            output_names=[LOGITS] if head is None else [LOGITS, FEATURES],
            dynamic_shapes=({0: "batch_size"},),
            external_data=False,
            opset_version=18,
            verbose=False,
        )
    except Exception as error:  # the exporter's errors are of every kind
        cause: BaseException = error
        while cause.__cause__ is not None:  # torch's own text is a page on how to report it
            cause = cause.__cause__
        refused = f"torch cannot export {model.config.architecture} to ONNX ({reason_of(cause)})"
        raise AimonkError(f"{refused}: nothing was exported") from error
    graph, properties = onnx.load(path), {FINGERPRINT: fingerprint}
    if head is not None:
        properties[HEAD] = base64.b64encode(head.weight.detach().numpy().tobytes()).decode()
    onnx.helper.set_model_props(graph, properties)
    onnx.save(graph, path)


def _check(model: AimonkModel, path: Path, fingerprint: str) -> None:
    """Raise `AimonkError` unless onnxruntime and torch agree on drawn images; `NotFiniteError` where neither can."""
    images = [draw_garment(np.random.default_rng(seed)).image for seed in range(3)]
    difference = largest_difference(model, OnnxNetwork(path, model.config, fingerprint), images)
    if not difference < _LARGEST_DIFFERENCE:
        found = f"disagree by {difference:.1e} on {model.config.architecture}"
        raise AimonkError(f"onnxruntime and torch {found}: nothing was exported")


def largest_difference(model: AimonkModel, network: OnnxNetwork, images: Sequence[Image.Image]) -> float:
    """Return the largest difference between the logits of torch and of an ONNX file on RGB images."""
    pixels = np.stack([model.transform.pixels(image) for image in images])
    with model.predicting():
        expected = model.logits_of_pixels(torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy()
    return float(np.abs(network.logits(pixels) - finite(expected, "a drawn image")).max())


def _quantize(source: Path, target: Path) -> None:
    """Turn weights into 8 bits, and activations at run time.

    Convolutions in groups stay float: their few weights differ too much in size for one common scale. Unsigned,
    because onnxruntime's integer convolution knows no other weights.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    graph = onnx.load(source)
    add_pre_process_metadata(graph)  # a warning advises it otherwise; torch has folded norms and constants already
    del graph.graph.value_info[:]  # shapes from before torch's optimisations, which the quantizer takes for errors
    grouped = [
        node.name
        for node in graph.graph.node
        if node.op_type == "Conv" and any(attribute.name == "group" and attribute.i > 1 for attribute in node.attribute)
    ]
    quantize_dynamic(graph, target, weight_type=QuantType.QUInt8, nodes_to_exclude=grouped)
