"""Training augmentations by name: a fixed preparation of each image, which can be cached, then random changes.

To add one, enter its list of torchvision transforms in `_changes`, and its name in `settings.AUGMENTATIONS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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
    changes = v2.Compose(_changes(name, transform.size, size or transform.size))
    if name in ("none", "flip"):
        return Augmentation(partial(_eval_image, transform), changes, transform.fingerprint)
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


def _eval_image(transform: EvalTransform, image: Image.Image) -> Image.Image:
    """Return the eval transform's pixels as an image."""
    return Image.fromarray(transform.pixels(image))


def _changes(name: str, full: Size, size: Size) -> list[Any]:
    """Return the random changes of that name: from a prepared image of `full` size to uint8 [3, H, W] of `size`."""
    shrink = [] if size == full else [v2.Resize(list(size), interpolation=_BILINEAR)]
    crop, mirror, flip = [v2.RandomCrop(full), *shrink], v2.RandomHorizontalFlip(0.5), v2.RandomVerticalFlip
    colour, to_tensor = v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2), v2.PILToTensor()
    affine = partial(v2.RandomAffine, interpolation=_BILINEAR)
    erase = v2.RandomErasing(p=0.2, scale=(0.02, 0.2))
    hole = v2.RandomErasing(p=0.3, scale=(0.005, 0.02), ratio=(0.8, 1.25))
    lists: dict[str, list[Any]] = {
        "none": [*shrink, to_tensor],
        "flip": [*shrink, mirror, to_tensor],
        # hue stays, because colours are attributes
        "light": [
            affine(8, translate=(0.04, 0.04), scale=(0.92, 1.08), fill=_GREY),
            *crop,
            mirror,
            v2.ColorJitter(brightness=0.15, contrast=0.15, saturation=0.15),
            to_tensor,
        ],
        "strong": [
            v2.RandomResizedCrop(size, scale=(0.5, 1.0), ratio=(0.8, 1.25), interpolation=_BILINEAR),
            mirror,
            colour,
            to_tensor,
            erase,
        ],
        # one operation of random kind and strength (Mueller and Hutter, ICCV 2021)
        "trivial-augment": [
            v2.TrivialAugmentWide(interpolation=_BILINEAR, fill=[_GREY] * 3),
            *crop,
            mirror,
            to_tensor,
        ],
        # the EfficientNet-B0 system's list
        "two-stage": [*crop, mirror, flip(0.2), colour, affine(20, translate=(0.1, 0.1)), to_tensor, erase],
        # the ResNet-34 system's list: after flips shift-scale-rotate, colour and blur; then noise and coarse dropout
        "partial": [
            *crop,
            mirror,
            flip(0.1),
            v2.RandomApply([affine(15, translate=(0.06, 0.06), scale=(0.9, 1.1))], 0.5),
            colour,
            v2.RandomApply([v2.GaussianBlur(3)], 0.2),
            to_tensor,
            _PixelNoise(),
            *[hole] * 4,
        ],
    }
    return lists[name]


class _PixelNoise:
    """Add Gaussian noise of 3% to uint8 pixels [3, H, W], in a fifth of the images."""

    def __call__(self, pixels: Tensor) -> Tensor:
        if torch.rand(()) >= 0.2:
            return pixels
        return (pixels.float() + torch.randn(pixels.shape) * (0.03 * 255)).round_().clamp_(0, 255).byte()


def mix_batch(pixels: Tensor, labels: Tensor, mixup: float, cutmix: float) -> tuple[Tensor, Tensor]:
    """Mix normalised pixels [N, 3, H, W] and labels [N, K] within a batch; a label is NaN where either one is missing.

    With both alphas above 0 each serves half the batches (mixup: Zhang et al., ICLR 2018; cutmix: Yun et al., ICCV
    2019).
    """
    use_cutmix = bool(cutmix) and (not mixup or bool(torch.rand(()) < 0.5))
    mix = v2.CutMix(alpha=cutmix) if use_cutmix else v2.MixUp(alpha=mixup)
    mixed: tuple[Tensor, Tensor] = mix(pixels, labels)
    return mixed
