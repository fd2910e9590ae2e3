"""Export the network to ONNX for onnxruntime and Transformers.js, checked against torch."""

import copy
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from aimonk_hf.data.images import ImageSource
from aimonk_hf.data.sample_data import draw_garment
from aimonk_hf.errors import AimonkError, ImageError, reason_of
from aimonk_hf.modeling.backbones import REFUSALS
from aimonk_hf.modeling.config import AimonkConfig
from aimonk_hf.modeling.hub import CONFIG_FILE, FINGERPRINT, PREPROCESSOR_FILE
from aimonk_hf.modeling.inference import stream_logits
from aimonk_hf.modeling.model import AimonkModel
from aimonk_hf.modeling.processing import EvalTransform
from aimonk_hf.storage import atomic_path, make_folder, read_json, write_json

# Transformers.js finds these by its dtypes "fp32" and "q8"
FP32_FILE, INT8_FILE = "onnx/model.onnx", "onnx/model_quantized.onnx"
COMPARISON_FILE = "onnx/comparison.json"

# Logits of torch and onnxruntime differ by about 1e-5; an export that differs by this much computes something else.
_LARGEST_DIFFERENCE = 1e-3

_logger = logging.getLogger(__name__)


def export_folder(model: AimonkModel, folder: Path, int8: bool = False) -> list[Path]:
    """Write onnx/model.onnx and preprocessor_config.json into a model folder, new or of the same model.

    `int8` adds onnx/model_quantized.onnx. The ONNX input `pixel_values` is float [N, 3, H, W] of `model.transform`, the
    output `logits` [N, K], N free. Returns the ONNX files. Raises `AimonkError` for a folder of another model, and
    where onnxruntime and torch disagree.
    """
    try:
        for name in ("onnx", "onnxruntime", "onnxscript"):
            import_module(name)
    except ImportError as error:
        raise AimonkError(f"export needs {name}: pip install 'aimonk_hf[onnx]'") from error
    _save_model(model, folder)
    make_folder(folder / "onnx")
    for old in (INT8_FILE, COMPARISON_FILE, PREPROCESSOR_FILE):
        (folder / old).unlink(missing_ok=True)
    files = [folder / FP32_FILE]
    with atomic_path(files[0]) as temporary:
        _export_network(model, temporary)
        images = [draw_garment(np.random.default_rng(seed)).image for seed in range(3)]
        difference = largest_difference(model, temporary, images)
        if not difference < _LARGEST_DIFFERENCE:
            found = f"disagree by {difference:.1e} on {model.config.architecture}"
            raise AimonkError(f"onnxruntime and torch {found}: nothing was exported")
    if int8:
        files.append(folder / INT8_FILE)
        with atomic_path(files[1]) as temporary:
            _quantize(files[0], temporary)
    processor = preprocessor_config(model.config)
    if processor is None:
        _logger.warning("crop_mode border has no counterpart in Transformers.js: %s was not written", PREPROCESSOR_FILE)
    else:
        write_json(folder / PREPROCESSOR_FILE, processor | {FINGERPRINT: read_json(folder / CONFIG_FILE)[FINGERPRINT]})
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


def onnx_network(path: Path, transform: EvalTransform) -> Callable[[Tensor], Tensor]:
    """Return the function from uint8 pixels [N, 3, H, W] to logits [N, K] that onnxruntime computes on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def network(pixels: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"pixel_values": transform.normalize(pixels).numpy()})[0])

    return network


def largest_difference(model: AimonkModel, path: Path, images: Sequence[ImageSource]) -> float:
    """Return the largest difference between the logits of torch and of an ONNX file on images."""
    found = logits_of(images, model.transform, onnx_network(path, model.transform))
    return float(np.nanmax(np.abs(torch_logits(images, model) - found)))


def torch_logits(sources: Iterable[ImageSource], model: AimonkModel) -> NDArray[np.float64]:
    """Return the model's logits [N, K] in eval mode, NaN rows for images that cannot be read."""
    was_training = model.training
    try:
        return logits_of(sources, model.eval().transform, model.logits_of_pixels)
    finally:
        model.train(was_training)


def logits_of(
    sources: Iterable[ImageSource], transform: EvalTransform, network: Callable[[Tensor], Tensor]
) -> NDArray[np.float64]:
    """Return a network's logits [N, K], NaN rows for images that cannot be read."""
    rows = [logits for _, logits in stream_logits(sources, transform.pixels, network)]
    width = next((len(row) for row in rows if not isinstance(row, ImageError)), 1)
    return np.array([[np.nan] * width if isinstance(row, ImageError) else row.tolist() for row in rows])


def _save_model(model: AimonkModel, folder: Path) -> None:
    """Save into a new folder; refuse one that holds another model, and leave the files of the same one."""
    if not (folder / CONFIG_FILE).exists():
        model.save_pretrained(folder)
        return
    own, theirs = model.state_dict(), AimonkModel.from_pretrained(folder).state_dict()
    if own.keys() != theirs.keys() or not all(torch.equal(own[name].cpu(), theirs[name]) for name in own):
        raise AimonkError(f"{folder} holds another model: name another --output")


def _export_network(model: AimonkModel, path: Path) -> None:
    network = copy.deepcopy(model.timm_model).cpu().float().eval()
    example = torch.zeros(2, 3, *model.transform.size)  # two, because torch takes a batch of one for a constant
    try:
        torch.onnx.export(
            network,
            (example,),
            path,
            dynamo=True,
            input_names=["pixel_values"],
            output_names=["logits"],
            dynamic_shapes=({0: "batch_size"},),
            external_data=False,
            opset_version=18,
            verbose=False,
        )
    except REFUSALS as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # torch's own text is a page on how to report it
            cause = cause.__cause__
        refused = f"torch cannot export {model.config.architecture} to ONNX ({reason_of(cause)})"
        raise AimonkError(f"{refused}: nothing was exported") from error


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
