import numpy as np
import pytest
import torch

from aimonk_hf.training.augmentation import mix_batch

NAN = float("nan")
PIXELS = torch.stack([torch.zeros(3, 10, 14), torch.ones(3, 10, 14)])


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("seed", range(5))
def test_pixels_and_labels_are_mixed_by_the_same_share(mixup: float, cutmix: float, seed: int) -> None:
    torch.manual_seed(seed)
    pixels, labels = mix_batch(PIXELS, torch.tensor([[0.0, 1.0], [1.0, 1.0]]), mixup, cutmix)
    share = pixels[0].mean().item()
    assert 0 < share < 1
    assert labels[0].tolist() == pytest.approx([share, 1.0])
    assert labels[1].tolist() == pytest.approx([pixels[1].mean().item(), 1.0])
    assert (len(pixels[0].unique()) == 1) == bool(mixup)  # blended everywhere, or a box
    assert PIXELS[0].sum() == 0


def test_a_mixed_label_is_observed_only_where_both_are() -> None:
    torch.manual_seed(0)
    _, labels = mix_batch(PIXELS, torch.tensor([[0.0, NAN, NAN], [1.0, 1.0, NAN]]), 0.4, 0.0)
    assert torch.isnan(labels).tolist() == [[False, True, True]] * 2


def test_both_kinds_take_turns() -> None:
    torch.manual_seed(0)
    kinds = {len(mix_batch(PIXELS, torch.ones(2, 1), 0.4, 1.0)[0][0].unique()) for _ in range(20)}
    assert kinds == {1, 2}
    assert np.isfinite(mix_batch(PIXELS, torch.ones(2, 1), 0.4, 1.0)[1].numpy()).all()
