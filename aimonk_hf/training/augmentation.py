"""Training augmentations by name: a fixed preparation of each picture, which can be kept, and random changes to what it gives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling.model import AimonkModel
from aimonk_hf.modeling.processing import EvalTransform
from aimonk_hf.training.settings import TrainConfig

# Training crops the picture out of one this much larger: 224 of 256.
CROP_SHARE = 0.875
_GREY = 128
Size = tuple[int, int]


@dataclass
class Augmentation:
    """`prepare` turns an RGB image into a smaller one, always the same; `change` turns that into uint8 [3, H, W], random through torch.

    `fingerprint` names the preparation: equal ones give equal pixels. Calling it does both.
    """

    prepare: Callable[[Image.Image], Image.Image]
    change: Callable[[Image.Image], Tensor]
    fingerprint: str

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the augmented pixels uint8 [3, H, W]."""
        return self.change(self.prepare(image))


def train_augmentation(name: str, transform: EvalTransform, size: Size | None = None) -> Augmentation:
    """Return the augmentation of that name, whose pixels have `size` (height, width), by default the eval transform's."""
    if name not in _CHANGES:
        raise AimonkError(f"unknown augmentation {name!r}: use {', '.join(_CHANGES)}")
    size = size or transform.size
    changes = [*_CHANGES[name](transform.size, size), v2.PILToTensor(), *_NOISE.get(name, [])]
    if name in ("none", "flip"):
        return Augmentation(_EvalPicture(transform), v2.Compose(changes), transform.fingerprint)
    height, width = (round(side / CROP_SHARE) for side in transform.size)
    mode = v2.InterpolationMode(transform.data_config["interpolation"])
    return Augmentation(
        v2.Resize([height, width], interpolation=mode), v2.Compose(changes), f"squash {height}x{width} {mode.value}"
    )


def sizes_by_epoch(config: TrainConfig, model: AimonkModel) -> list[Size]:
    """Return height and width of the training images of each epoch; networks that take images of one size only get that size."""
    full = model.transform.size
    fixed = bool(model.timm_model.pretrained_cfg.get("fixed_input_size"))
    return [full if fixed else size for size in config.train_sizes(full)]


def augmentations_by_epoch(config: TrainConfig, model: AimonkModel) -> list[Augmentation]:
    """Return one augmentation for each epoch, all with one preparation."""
    sizes = sizes_by_epoch(config, model)
    augment_to = {size: train_augmentation(config.augmentation, model.transform, size) for size in sizes}
    return [augment_to[size] for size in sizes]


class _EvalPicture:
    """The eval transform's pixels as a picture."""

    def __init__(self, transform: EvalTransform) -> None:
        self.transform = transform

    def __call__(self, image: Image.Image) -> Image.Image:
        return Image.fromarray(self.transform.pixels(image).permute(1, 2, 0).numpy())


def _shrink(full: Size, size: Size) -> list[Any]:
    """What brings a picture of the eval transform's size to another one."""
    return [] if size == full else [v2.Resize(list(size), interpolation=v2.InterpolationMode.BILINEAR)]


def _crop(full: Size, size: Size) -> list[Any]:
    """A place in the prepared picture, as large as the eval transform's, brought to the size."""
    return [v2.RandomCrop(full), *_shrink(full, size)]


def _flip(full: Size, size: Size) -> list[Any]:
    """The eval pixels, mirrored half the time."""
    return [*_shrink(full, size), v2.RandomHorizontalFlip(0.5)]


def _light(full: Size, size: Size) -> list[Any]:
    """Crop, flip, mild colour and affine.

    Hue stays as it is: colours are attributes, and turning it takes longer than all the rest. Pillow's affine and colour are faster than
    those on tensors.
    """
    return [
        v2.RandomAffine(
            degrees=8,
            translate=(0.04, 0.04),
            scale=(0.92, 1.08),
            interpolation=v2.InterpolationMode.BILINEAR,
            fill=_GREY,
        ),
        *_crop(full, size),
        v2.RandomHorizontalFlip(0.5),
        v2.ColorJitter(brightness=0.15, contrast=0.15, saturation=0.15),
    ]


def _strong(full: Size, size: Size) -> list[Any]:
    """A crop of half to all of the picture, flip, colour; a box is erased in a fifth of the pictures."""
    return [
        v2.RandomResizedCrop(size, scale=(0.5, 1.0), ratio=(0.8, 1.25), interpolation=v2.InterpolationMode.BILINEAR),
        v2.RandomHorizontalFlip(0.5),
        v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
    ]


def _trivial(full: Size, size: Size) -> list[Any]:
    """One operation of random kind and strength (TrivialAugment, Mueller and Hutter, ICCV 2021), then crop and flip."""
    return [
        v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR, fill=[_GREY] * 3),
        *_crop(full, size),
        v2.RandomHorizontalFlip(0.5),
    ]


def _two_stage(full: Size, size: Size) -> list[Any]:
    """What the EfficientNet-B0 system does: crop, both flips, colour, rotation, translation; erasing."""
    return [
        *_crop(full, size),
        v2.RandomHorizontalFlip(0.5),
        v2.RandomVerticalFlip(0.2),
        v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
        v2.RandomAffine(degrees=20, translate=(0.1, 0.1), interpolation=v2.InterpolationMode.BILINEAR),
    ]


def _partial(full: Size, size: Size) -> list[Any]:
    """What the ResNet-34 system lists: flips, shift-scale-rotate, colour, blur; noise and coarse dropout."""
    affine = v2.RandomAffine(
        degrees=15, translate=(0.06, 0.06), scale=(0.9, 1.1), interpolation=v2.InterpolationMode.BILINEAR
    )
    return [
        *_crop(full, size),
        v2.RandomHorizontalFlip(0.5),
        v2.RandomVerticalFlip(0.1),
        v2.RandomApply([affine], 0.5),
        v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
        v2.RandomApply([v2.GaussianBlur(3)], 0.2),
    ]


class _PixelNoise:
    """Gaussian noise of a standard deviation of 3% on uint8 pixels [3, H, W], in a fifth of the pictures."""

    def __call__(self, pixels: Tensor) -> Tensor:
        if torch.rand(()) >= 0.2:
            return pixels
        return (pixels.float() + torch.randn(pixels.shape) * (0.03 * 255)).round_().clamp_(0, 255).byte()


_CHANGES: dict[str, Callable[[Size, Size], list[Any]]] = {
    "none": _shrink,
    "flip": _flip,
    "light": _light,
    "strong": _strong,
    "trivial-augment": _trivial,
    "two-stage": _two_stage,
    "partial": _partial,
}
_ERASE = v2.RandomErasing(p=0.2, scale=(0.02, 0.2))
_HOLE = v2.RandomErasing(p=0.3, scale=(0.005, 0.02), ratio=(0.8, 1.25))
_NOISE: dict[str, list[Any]] = {"strong": [_ERASE], "two-stage": [_ERASE], "partial": [_PixelNoise(), *[_HOLE] * 4]}
