import numpy as np
import pytest
import torch

from aimonk_hf.training.mixing import BatchMix

NAN = float("nan")


def test_mixup_blends_pixels_and_labels_by_the_same_share() -> None:
    mix = BatchMix(0.4, 0.0, 8, 8, np.random.default_rng(0))
    assert mix.box is None
    assert 0 < mix.share < 1
    pixels = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
    assert mix.pixels(pixels)[0].unique().item() == pytest.approx(1 - mix.share)
    labels = mix.labels(torch.tensor([[0.0, 1.0], [1.0, 1.0]]))
    assert labels[0].tolist() == pytest.approx([1 - mix.share, 1.0])


def test_a_mixed_label_is_observed_only_where_both_are() -> None:
    mix = BatchMix(0.4, 0.0, 8, 8, np.random.default_rng(0))
    labels = mix.labels(torch.tensor([[0.0, NAN, NAN], [1.0, 1.0, NAN]]))
    assert torch.isnan(labels).tolist() == [[False, True, True]] * 2


@pytest.mark.parametrize("seed", range(20))
def test_cutmix_counts_the_pixels_of_its_box(seed: int) -> None:
    mix = BatchMix(0.0, 1.0, 10, 14, np.random.default_rng(seed))
    assert mix.box is not None
    pixels = torch.stack([torch.zeros(3, 10, 14), torch.ones(3, 10, 14)])
    mixed = mix.pixels(pixels)
    assert 1 - mixed[0].mean().item() == pytest.approx(mix.share)
    assert mixed[1].mean().item() == pytest.approx(mix.share)
    assert pixels[0].sum() == 0


def test_both_kinds_take_turns_and_a_box_of_no_size_changes_no_label() -> None:
    kinds = {BatchMix(0.4, 1.0, 8, 8, np.random.default_rng(seed)).box is None for seed in range(20)}
    assert kinds == {True, False}
    mix = BatchMix(0.0, 1.0, 8, 8, np.random.default_rng(0))
    mix.share = 1.0
    assert mix.labels(torch.tensor([[NAN], [1.0]]))[1].item() == 1
