"""Why an attribute was found: Grad-CAM maps from the last stages of a convolutional network or a vision transformer."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from aimonk_hf.app.scoring import Scorer
from aimonk_hf.errors import AimonkError, NotFiniteError, reason_of
from aimonk_hf.modeling.backbones import REFUSALS

MIN_CELLS = 6  # maps with fewer rows or columns say too little about the place
N_STAGES = 4  # of a convolutional network: the finest shows a part of 3% of the picture in its place, the coarse ones say that it is one
N_BLOCKS = 3  # of a transformer
SHOWN_SIDE = 448

Heat = NDArray[np.float32]


def heat_map(scorer: Scorer, pixels: Tensor, attribute: str) -> Heat:
    """Return [H, W] in [0, 1]: where the uint8 pixels [3, H, W] of the transform raised the attribute's score; all 0 where nothing did.

    Activations are weighed by their own gradients (HiResCAM, Draelos and Carin 2020), a Grad-CAM that keeps places apart, at the ends of the
    last stages that have at least `MIN_CELLS` cells a side; the product of these maps is bright where the stages agree.
    Raises `AimonkError` for an unknown attribute, without the library, or where the architecture has no maps.
    """
    names = scorer.model.config.attributes
    if attribute not in names:
        raise AimonkError(f"the model has no attribute {attribute!r}")
    network = scorer.model.timm_model
    index = names.index(attribute)
    values = scorer.model.transform.normalize(pixels)[None].to(next(network.parameters()))
    agreeing_cam = _agreeing_cam()
    with scorer.network_lock, torch.enable_grad():
        try:
            layers, reshape = _layers(network, values)
            # the weights are frozen, so gradients start at the pixels
            with agreeing_cam(network, layers, reshape) as cam:
                heat: Heat = cam(values.requires_grad_(True), [lambda logits: logits[index]])[0]
        except REFUSALS as error:
            raise AimonkError(
                f"heat maps are not available for {scorer.model.config.architecture} ({reason_of(error)})"
            ) from error
    if not np.isfinite(heat).all():
        raise NotFiniteError("the network's output is not finite (infinite or NaN): it gives no heat map")
    return heat


def overlay(pixels: Tensor, heat: Heat) -> Image.Image:
    """Return the uint8 pixels [3, H, W], enlarged, with the heat [H, W] laid over them.

    Its cube root is shown: a product of several maps falls off too steeply for weaker evidence to be seen.
    """
    import matplotlib

    shown = np.cbrt(heat)
    colours = matplotlib.colormaps["inferno"](shown)[..., :3] * 255
    share = (0.8 * shown)[..., None]
    base = pixels.permute(1, 2, 0).numpy()
    grey = base.mean(axis=2, keepdims=True) * 0.75  # so that only heat has colour
    mixed = Image.fromarray((grey * (1 - share) + colours * share).clip(0, 255).astype(np.uint8))
    scale = max(1, SHOWN_SIDE // max(mixed.size))
    return mixed.resize((mixed.width * scale, mixed.height * scale), Image.Resampling.BICUBIC)


def _agreeing_cam() -> Any:
    try:
        from pytorch_grad_cam import HiResCAM
        from pytorch_grad_cam.utils.image import scale_cam_image
    except ImportError as error:
        raise AimonkError("heat maps need the package grad-cam: pip install 'aimonk_hf[app]'") from error

    class AgreeingCAM(HiResCAM):
        """HiResCAM whose maps of several layers are multiplied rather than averaged."""

        def aggregate_multi_layers(self, cam_per_target_layer: list[Heat]) -> Heat:
            return scale_cam_image(np.concatenate(cam_per_target_layer, axis=1).prod(axis=1))

    return AgreeingCAM


def _layers(network: nn.Module, values: Tensor) -> tuple[list[nn.Module], Any]:
    """Return the layers to look at, first to last, and what turns their output into [N, C, h, w] (None: nothing is needed)."""
    if hasattr(network, "blocks") and hasattr(network, "patch_embed") and hasattr(network, "num_prefix_tokens"):
        return _transformer_layers(network)
    modules = dict(network.named_modules())
    stages = [modules[info["module"]] for info in getattr(network, "feature_info", []) if info.get("module") in modules]
    to_channels_first = _channels_first if getattr(network, "output_fmt", "NCHW") == "NHWC" else None
    sides = _sides(network, stages, values, to_channels_first)
    fine = [stage for stage in stages if sides.get(stage, 0) >= MIN_CELLS]
    coarse = [stage for stage in stages if sides.get(stage, 0) > 1]
    if not coarse:
        raise ValueError("none of its stages keeps rows and columns")
    return (fine or coarse[-1:])[-N_STAGES:], to_channels_first


def _transformer_layers(network: Any) -> tuple[list[nn.Module], Any]:
    """Look before the attention of the last blocks: after the last one no gradient reaches the patches where a class token is read."""
    rows, columns = network.patch_embed.grid_size
    prefix = network.num_prefix_tokens

    def to_map(tokens: Tensor) -> Tensor:
        patches = tokens[:, prefix:]
        return patches.reshape(len(patches), rows, columns, -1).permute(0, 3, 1, 2)

    return [block.norm1 for block in network.blocks[-N_BLOCKS:]], to_map


def _channels_first(maps: Tensor) -> Tensor:
    return maps.permute(0, 3, 1, 2)


def _sides(network: nn.Module, stages: list[nn.Module], values: Tensor, reshape: Any) -> dict[nn.Module, int]:
    """Return the smaller side of each stage's map, in cells, for stages that have one."""
    sides: dict[nn.Module, int] = {}

    def note(stage: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            sides[stage] = min((reshape(output) if reshape else output).shape[-2:])

    hooks = [stage.register_forward_hook(note) for stage in stages]
    try:
        with torch.no_grad():
            network(values)
    finally:
        for hook in hooks:
            hook.remove()
    return sides
