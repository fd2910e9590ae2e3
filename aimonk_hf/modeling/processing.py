"""Turn an RGB image into pixel values as timm's eval transform does, with Pillow and numpy alone."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from aimonk_hf.data.image_cache import Pixels

# timm's own values where a pretrained_cfg names none
_DEFAULTS: dict[str, Any] = {
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "crop_pct": 0.875,
    "crop_mode": "center",
}


class EvalTransform:
    """timm's eval transform for a `pretrained_cfg`, in two halves: resize and crop in uint8, then normalise.

    Both together give float [3, H, W], bit for bit as `timm.data.create_transform` and transformers'
    TimmWrapperImageProcessor. The halves let workers hand over bytes and the device normalise a whole batch.
    """

    def __init__(self, pretrained_cfg: dict[str, Any]) -> None:
        self.data_config = {key: pretrained_cfg.get(key) or default for key, default in _DEFAULTS.items()}
        self._mean, self._std = (np.array(self.data_config[key], np.float32) for key in ("mean", "std"))
        self._filter = Image.Resampling[self.data_config["interpolation"].upper()]

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width of the pixels."""
        return tuple(self.data_config["input_size"][-2:])

    @property
    def fingerprint(self) -> str:
        """Return the settings that the pixels depend on."""
        keys = ("input_size", "crop_pct", "crop_mode", "interpolation")
        return "eval " + " ".join(str(self.data_config[key]) for key in keys)

    def pixels(self, image: Image.Image) -> Pixels:
        """Return uint8 [H, W, 3] of an RGB image."""
        height, width = self.size
        fill = (0, 0, 0)
        if self.data_config["crop_mode"] == "border":
            red, green, blue = (round(255 * value) for value in self.data_config["mean"])
            fill = (red, green, blue)
        if (resized := self._resized_size(image)) != image.size:
            image = image.resize(resized, self._filter)
        left, top = max(0, width - image.width), max(0, height - image.height)
        if left or top:
            border = (left // 2, top // 2, (left + 1) // 2, (top + 1) // 2)
            image = ImageOps.expand(image, border, fill)
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        return np.array(image.crop((left, top, left + width, top + height)))

    def seen_part(self, image: Image.Image) -> tuple[float, float, float, float]:
        """Return left, top, width and height of the part of an image that `pixels` shows, in shares of its sides."""
        (height, width), (whole_width, whole_height) = self.size, self._resized_size(image)
        across, down = width / whole_width, height / whole_height
        return (1 - across) / 2, (1 - down) / 2, across, down

    def normalize(self, pixels: Pixels) -> NDArray[np.float32]:
        """Turn uint8 [N, H, W, 3] into contiguous float32 [N, 3, H, W]."""
        values = np.empty((len(pixels), 3, *pixels.shape[1:3]), np.float32)
        for image, planes in zip(pixels, values, strict=True):
            for channel, plane in enumerate(planes):  # one at a time stays in the processor's cache
                np.divide(image[..., channel], np.float32(255), out=plane)
                plane -= self._mean[channel]
                plane /= self._std[channel]
        return values

    def _resized_size(self, image: Image.Image) -> tuple[int, int]:
        """Return the width and height that the image gets before the crop."""
        before_crop = [math.floor(side / self.data_config["crop_pct"]) for side in self.size]
        if self.data_config["crop_mode"] == "squash":
            return before_crop[1], before_crop[0]
        if self.data_config["crop_mode"] == "center" and before_crop[0] == before_crop[1]:
            side, shorter = before_crop[0], min(image.size)
            width, height = (int(side * long / shorter) if long > shorter else side for long in image.size)
            return width, height
        ratios = (image.height / before_crop[0], image.width / before_crop[1])
        ratio = max(ratios) if self.data_config["crop_mode"] == "border" else min(ratios)
        return max(1, round(image.width / ratio)), max(1, round(image.height / ratio))
