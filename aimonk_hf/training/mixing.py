"""Mixup (Zhang et al., ICLR 2018) and cutmix (Yun et al., ICCV 2019) for labels with gaps: a mixed label is observed only where both are."""

import numpy as np
import torch
from torch import Tensor


class BatchMix:
    """How one batch is mixed with itself in reverse order: by shares, or by a box; random through numpy's generator.

    `share` is what is left of each image; for cutmix `box` (top, bottom, left, right, in pixels) is what the other image fills.
    """

    def __init__(self, mixup: float, cutmix: float, height: int, width: int, random: np.random.Generator) -> None:
        use_box = bool(cutmix) and (not mixup or random.random() < 0.5)
        alpha = cutmix if use_box else mixup
        self.share = float(random.beta(alpha, alpha)) if alpha else 1.0
        self.box: tuple[int, int, int, int] | None = None
        if use_box:
            middle = random.integers(height), random.integers(width)
            sides = np.sqrt(1 - self.share) * np.array([height, width])
            (top, bottom), (left, right) = (
                np.clip([round(centre - side / 2), round(centre + side / 2)], 0, limit)
                for centre, side, limit in zip(middle, sides, (height, width), strict=True)
            )
            self.box = int(top), int(bottom), int(left), int(right)
            self.share = float(1 - (bottom - top) * (right - left) / (height * width))

    def pixels(self, values: Tensor) -> Tensor:
        """Mix normalised pixels [N, 3, H, W]."""
        if self.box is None:
            return values.mul(self.share).add_(values.flip(0), alpha=1 - self.share)
        top, bottom, left, right = self.box
        mixed = values.clone()
        mixed[:, :, top:bottom, left:right] = values.flip(0)[:, :, top:bottom, left:right]
        return mixed

    def labels(self, labels: Tensor) -> Tensor:
        """Mix labels [N, K]; NaN where either is missing, but the own label where nothing of the other image is seen."""
        if self.share == 1:
            return labels
        return torch.lerp(labels.flip(0), labels, self.share)
