"""Training augmentations by name: a fixed preparation of each image, which can be cached, then random changes.

To add one, write its list of torchvision transforms below, enter it in `_CHANGES`, and its name in
`settings.AUGMENTATIONS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from aimonk_hf.modeling.model import AimonkModel
from aimonk_hf.modeling.processing import EvalTransform
from aimonk_hf.training.settings import TrainConfig

# Training crops the image out of one this much larger: 224 of 256.
CROP_SHARE = 0.875
_GREY = 128
_BILINEAR = v2.InterpolationMode.BILINEAR
Size = tuple[int, int]


@dataclass
class Augmentation:
    """Prepare an RGB image the same way each time (`prepare`), then change it at random to uint8 [3, H, W] (`change`).

    `fingerprint` names the preparation: equal ones give equal pixels.
    """

    prepare: Callable[[Image.Image], Image.Image]
    change: Callable[[Image.Image], Tensor]
    fingerprint: str

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the augmented pixels uint8 [3, H, W]."""
        return self.change(self.prepare(image))


def train_augmentation(name: str, transform: EvalTransform, size: Size | None = None) -> Augmentation:
    """Return the augmentation of that name for images of `size` (height, width), by default the eval transform's."""
    size = size or transform.size
    changes = v2.Compose([*_CHANGES[name](transform.size, size), v2.PILToTensor(), *_NOISE.get(name, [])])
    if name in ("none", "flip"):
        return Augmentation(_EvalImage(transform), changes, transform.fingerprint)
    height, width = (round(side / CROP_SHARE) for side in transform.size)
    mode = v2.InterpolationMode(transform.data_config["interpolation"])
    resize = v2.Resize([height, width], interpolation=mode)
    return Augmentation(resize, changes, f"squash {height}x{width} {mode.value}")


def sizes_by_epoch(config: TrainConfig, model: AimonkModel) -> list[Size]:
    """Return height and width of each epoch's training images; networks of a fixed input size get that size."""
    full, (first, last) = model.transform.size, config.train_scale or (1.0, 1.0)
    if model.timm_model.pretrained_cfg.get("fixed_input_size"):
        return [full] * config.n_epochs
    steps = [epoch / max(stage.epochs - 1, 1) for stage in config.stages for epoch in range(stage.epochs)]
    return [(_scaled(full[0], share), _scaled(full[1], share)) for share in (first + (last - first) * n for n in steps)]


def _scaled(side: int, share: float) -> int:
    """Return a side of an image as a multiple of 32; the whole one as it is."""
    return side if share == 1 else max(32, 32 * round(side * share / 32))


def augmentations_by_epoch(config: TrainConfig, model: AimonkModel) -> list[Augmentation]:
    """Return one augmentation for each epoch, all with one preparation."""
    sizes = sizes_by_epoch(config, model)
    of_size = {size: train_augmentation(config.augmentation, model.transform, size) for size in sizes}
    return [of_size[size] for size in sizes]


class _EvalImage:
    """Turn an image into the eval transform's pixels, as an image."""

    def __init__(self, transform: EvalTransform) -> None:
        self.transform = transform

    def __call__(self, image: Image.Image) -> Image.Image:
        return Image.fromarray(self.transform.pixels(image).permute(1, 2, 0).numpy())


def _shrink(full: Size, size: Size) -> list[Any]:
    return [] if size == full else [v2.Resize(list(size), interpolation=_BILINEAR)]


def _crop(full: Size, size: Size) -> list[Any]:
    return [v2.RandomCrop(full), *_shrink(full, size)]


def _flip(full: Size, size: Size) -> list[Any]:
    return [*_shrink(full, size), v2.RandomHorizontalFlip(0.5)]


def _light(full: Size, size: Size) -> list[Any]:
    """Crop, flip, mild affine and colour; hue stays, because colours are attributes."""
    return [
        v2.RandomAffine(8, translate=(0.04, 0.04), scale=(0.92, 1.08), interpolation=_BILINEAR, fill=_GREY),
        *_crop(full, size),
        v2.RandomHorizontalFlip(0.5),
        v2.ColorJitter(brightness=0.15, contrast=0.15, saturation=0.15),
    ]


def _strong(full: Size, size: Size) -> list[Any]:
    """A crop of half to all of the image, flip, colour; a box is erased in a fifth of the images."""
    return [
        v2.RandomResizedCrop(size, scale=(0.5, 1.0), ratio=(0.8, 1.25), interpolation=_BILINEAR),
        v2.RandomHorizontalFlip(0.5),
        v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
    ]


def _trivial(full: Size, size: Size) -> list[Any]:
    """TrivialAugment (Mueller and Hutter, ICCV 2021): one operation of random kind and strength; then crop and flip."""
    return [
        v2.TrivialAugmentWide(interpolation=_BILINEAR, fill=[_GREY] * 3),
        *_crop(full, size),
        v2.RandomHorizontalFlip(0.5),
    ]


def _two_stage(full: Size, size: Size) -> list[Any]:
    """The EfficientNet-B0 system's list: crop, both flips, colour, rotation, translation; erasing."""
    return [
        *_crop(full, size),
        v2.RandomHorizontalFlip(0.5),
        v2.RandomVerticalFlip(0.2),
        v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
        v2.RandomAffine(20, translate=(0.1, 0.1), interpolation=_BILINEAR),
    ]


def _partial(full: Size, size: Size) -> list[Any]:
    """The ResNet-34 system's list: flips, shift-scale-rotate, colour, blur; noise and coarse dropout."""
    affine = v2.RandomAffine(15, translate=(0.06, 0.06), scale=(0.9, 1.1), interpolation=_BILINEAR)
    return [
        *_crop(full, size),
        v2.RandomHorizontalFlip(0.5),
        v2.RandomVerticalFlip(0.1),
        v2.RandomApply([affine], 0.5),
        v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
        v2.RandomApply([v2.GaussianBlur(3)], 0.2),
    ]


class _PixelNoise:
    """Add Gaussian noise of 3% to uint8 pixels [3, H, W], in a fifth of the images."""

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
# Changes of the pixels after those of the image.
_NOISE: dict[str, list[Any]] = {"strong": [_ERASE], "two-stage": [_ERASE], "partial": [_PixelNoise(), *[_HOLE] * 4]}


def mix_batch(pixels: Tensor, labels: Tensor, mixup: float, cutmix: float) -> tuple[Tensor, Tensor]:
    """Mix normalised pixels [N, 3, H, W] and labels [N, K] within a batch; a label is NaN where either one is missing.

    With both alphas above 0 each serves half the batches (mixup: Zhang et al., ICLR 2018; cutmix: Yun et al., ICCV
    2019).
    """
    use_cutmix = bool(cutmix) and (not mixup or bool(torch.rand(()) < 0.5))
    mix = v2.CutMix(alpha=cutmix) if use_cutmix else v2.MixUp(alpha=mixup)
    mixed: tuple[Tensor, Tensor] = mix(pixels, labels)
    return mixed
