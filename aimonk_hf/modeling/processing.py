"""Turn an RGB image into pixel values by timm's own eval transform."""

from typing import Any

import timm.data
import torch
from PIL import Image
from torch import Tensor


class EvalTransform:
    """timm's eval transform for a `pretrained_cfg`, in two halves: resize and crop in uint8, then normalise.

    Calling it on an RGB image gives float [3, H, W], bit for bit as `timm.data.create_transform` and transformers'
    TimmWrapperImageProcessor. The halves let workers hand over bytes and the device normalise a whole batch.
    """

    def __init__(self, pretrained_cfg: dict[str, Any]) -> None:
        self.data_config = timm.data.resolve_data_config(pretrained_cfg=pretrained_cfg)
        self._resize_and_crop = timm.data.create_transform(**self.data_config, is_training=False, normalize=False)
        self._mean, self._std = (torch.tensor(self.data_config[key]).view(-1, 1, 1) for key in ("mean", "std"))

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width of the pixels."""
        return tuple(self.data_config["input_size"][-2:])

    @property
    def fingerprint(self) -> str:
        """Return the settings that the pixels depend on."""
        keys = ("input_size", "crop_pct", "crop_mode", "interpolation")
        return "eval " + " ".join(str(self.data_config[key]) for key in keys)

    def pixels(self, image: Image.Image) -> Tensor:
        """Return uint8 [3, H, W]."""
        return self._resize_and_crop(image)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Turn uint8 [..., 3, H, W] into float of the same shape, on the same device."""
        return pixels.float().div(255).sub_(self._mean.to(pixels.device)).div_(self._std.to(pixels.device))

    def __call__(self, image: Image.Image) -> Tensor:
        """Return float [3, H, W]."""
        return self.normalize(self.pixels(image))
