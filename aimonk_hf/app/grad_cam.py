"""Show the parts of an image that raised a score: Grad-CAM of a convolutional network or a vision transformer."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_grad_cam import HiResCAM
from pytorch_grad_cam.utils.image import scale_cam_image
from torch import Tensor, nn

from aimonk_hf.errors import AimonkError, reason_of
from aimonk_hf.modeling.backbones import REFUSALS
from aimonk_hf.modeling.model import AimonkModel
from aimonk_hf.modeling.processing import Pixels

MIN_CELLS = 6  # maps with fewer rows or columns say too little about the place
N_STAGES = 4  # of a convolutional network: fine ones show small parts in their place, coarse ones recognise them
N_BLOCKS = 3  # of a transformer

Heat = NDArray[np.float32]


class AgreeingCAM(HiResCAM):
    """HiResCAM whose maps of several layers are multiplied rather than averaged."""

    def aggregate_multi_layers(self, cam_per_target_layer: list[Heat]) -> Heat:
        """Return the product [N, H, W] of the layers' maps [N, 1, H, W], scaled to [0, 1]."""
        return scale_cam_image(np.concatenate(cam_per_target_layer, axis=1).prod(axis=1))


def gradient_map(model: AimonkModel, pixels: Pixels, attribute: str) -> Heat:
    """Return the heat [H, W] in [0, 1] of the transform's uint8 pixels [H, W, 3]: high where they raised the score.

    Activations are weighed by their own gradients (HiResCAM, Draelos and Carin 2020), a Grad-CAM that keeps places
    apart, at the ends of the last stages that have at least `MIN_CELLS` cells a side; the maps' product is high where
    the stages agree. Raises `AimonkError` where the architecture has no maps.
    """
    network, index = model.timm_model, model.config.attributes.index(attribute)
    values = model.normalize(torch.from_numpy(pixels).permute(2, 0, 1).to(model.device))[None]
    values = values.to(next(network.parameters()).dtype)
    with torch.enable_grad():
        try:
            layers, reshape = _layers(network, values)
            # the weights are frozen, so gradients start at the pixels
            with AgreeingCAM(network, layers, reshape) as cam:
                heat: Heat = cam(values.requires_grad_(True), [lambda logits: logits[index]])[0]
        except REFUSALS as error:
            reason = f"{model.config.architecture} ({reason_of(error)})"
            raise AimonkError(f"Heat maps are not available for {reason}") from error
    return heat


def _layers(network: Any, values: Tensor) -> tuple[list[nn.Module], Any]:
    """Return the layers to look at, first to last, and the function that turns their output into [N, C, h, w]."""
    if hasattr(network, "blocks") and hasattr(network, "patch_embed") and hasattr(network, "num_prefix_tokens"):
        rows, columns = network.patch_embed.grid_size

        def to_map(tokens: Tensor) -> Tensor:
            return tokens[:, network.num_prefix_tokens :].unflatten(1, (rows, columns)).permute(0, 3, 1, 2)

        # before the attention: after the last one no gradient reaches the patches where a class token is read
        return [block.norm1 for block in network.blocks[-N_BLOCKS:]], to_map
    is_last = getattr(network, "output_fmt", "NCHW") == "NHWC"

    def channels_first(maps: Tensor) -> Tensor:
        if maps.ndim != 4:
            raise ValueError("its stages keep no rows and columns")
        return maps.permute(0, 3, 1, 2) if is_last else maps

    modules = dict(network.named_modules())
    cells = {
        modules[info["module"]]: min(values.shape[-2:]) // info["reduction"]
        for info in getattr(network, "feature_info", [])
        if info.get("module") in modules
    }
    fine = [stage for stage, side in cells.items() if side >= MIN_CELLS]
    coarse = [stage for stage, side in cells.items() if side > 1]
    if not coarse:
        raise ValueError("its stages keep no rows and columns")
    return (fine or coarse[-1:])[-N_STAGES:], channels_first
