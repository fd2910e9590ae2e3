"""From an RGB image to pixel values: one eval transform, timm's own, and the training augmentations by name."""

from collections.abc import Callable
from typing import Any

import timm.data
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from aimonk_hf.errors import AimonkError

# Training crops the picture out of one this much larger: 224 of 256.
CROP_SHARE = 0.875


class EvalTransform:
    """timm's eval transform for a `pretrained_cfg`, cut in two: resizing and cropping in uint8, then normalising.

    Calling it on an RGB image gives float [3, H, W], bit for bit what `timm.data.create_transform` and transformers'
    TimmWrapperImageProcessor give. The halves let workers hand over bytes and the device normalise a whole batch.
    """

    def __init__(self, pretrained_cfg: dict[str, Any]) -> None:
        self.data_config = timm.data.resolve_data_config(pretrained_cfg=pretrained_cfg)
        self._resize_and_crop = timm.data.create_transform(**self.data_config, is_training=False, normalize=False)
        self._mean = torch.tensor(self.data_config["mean"]).view(-1, 1, 1)
        self._std = torch.tensor(self.data_config["std"]).view(-1, 1, 1)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pixels that the model sees."""
        return tuple(self.data_config["input_size"][-2:])

    def pixels(self, image: Image.Image) -> Tensor:
        """Return uint8 [3, H, W]."""
        return self._resize_and_crop(image)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Turn uint8 [..., 3, H, W] into float of the same shape, on the device where it lies."""
        return pixels.float().div(255).sub_(self._mean.to(pixels.device)).div_(self._std.to(pixels.device))

    def __call__(self, image: Image.Image) -> Tensor:
        """Return float [3, H, W]."""
        return self.normalize(self.pixels(image))


def _none(transform: EvalTransform) -> Callable[[Image.Image], Tensor]:
    return transform.pixels


def _light(transform: EvalTransform) -> Callable[[Image.Image], Tensor]:
    """Squash to 8/7 of the size, crop, flip, mild colour and affine.

    Hue stays as it is: colours are attributes, and turning it takes longer than all the rest. Pillow's affine and colour are faster than
    those on tensors.
    """
    size = transform.size
    before_crop = [round(side / CROP_SHARE) for side in size]
    mode = v2.InterpolationMode(transform.data_config["interpolation"])
    return v2.Compose(
        [
            v2.Resize(before_crop, interpolation=mode),
            v2.RandomAffine(degrees=8, translate=(0.04, 0.04), scale=(0.92, 1.08), interpolation=v2.InterpolationMode.BILINEAR, fill=128),
            v2.RandomCrop(size),
            v2.RandomHorizontalFlip(0.5),
            v2.ColorJitter(brightness=0.15, contrast=0.15, saturation=0.15),
            v2.PILToTensor(),
        ]
    )


def _flip(transform: EvalTransform) -> Callable[[Image.Image], Tensor]:
    """The eval pixels, mirrored half the time."""
    return v2.Compose([transform.pixels, v2.RandomHorizontalFlip(0.5)])


_AUGMENTATIONS: dict[str, Callable[[EvalTransform], Callable[[Image.Image], Tensor]]] = {
    "none": _none,
    "flip": _flip,
    "light": _light,
}
AUGMENTATIONS = tuple(_AUGMENTATIONS)


def train_transform(augmentation: str, transform: EvalTransform) -> Callable[[Image.Image], Tensor]:
    """Return the augmentation of that name: RGB image to uint8 [3, H, W] of the eval transform's size, random through torch's generator."""
    if augmentation not in _AUGMENTATIONS:
        raise AimonkError(f"unknown augmentation {augmentation!r}: use {', '.join(AUGMENTATIONS)}")
    return _AUGMENTATIONS[augmentation](transform)
