"""Losses by hand, against timm's, on missing labels and at the ends of the numbers; weights of positives."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from timm.loss import AsymmetricLossMultiLabel

from aimonk_hf.modeling.losses import (
    Loss,
    masked_asymmetric_loss,
    masked_bce_with_logits,
    positive_weights,
    smooth_labels,
)

NAN = float("nan")
FOCAL = {"gamma_positive": 2.0, "gamma_negative": 2.0, "clip": 0.0}
LOSSES = [masked_bce_with_logits, partial(masked_asymmetric_loss, **FOCAL), masked_asymmetric_loss]


def drawn(seed: int, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, k, generator=generator) * 2, torch.randint(0, 2, (n, k), generator=generator).float()


def test_cross_entropy_by_hand() -> None:
    logits, weight = torch.tensor([[0.0, 2.0], [-1.0, 3.0]]), torch.tensor([2.0, 5.0])
    labels = torch.tensor([[1.0, NAN], [0.0, 1.0]])
    total = 2 * math.log(2) + math.log1p(math.exp(-1)) + 5 * math.log1p(math.exp(-3))
    assert masked_bce_with_logits(logits, labels, weight).item() == pytest.approx(total / 3, rel=1e-6)
    assert masked_bce_with_logits(logits, labels, weight, normalizer=6).item() == pytest.approx(total / 6, rel=1e-6)
    logits = torch.zeros(2, 2, requires_grad=True)
    masked_bce_with_logits(logits, torch.tensor([[1.0, NAN], [NAN, 0.0]])).backward()
    assert logits.grad.tolist() == [[-0.25, 0.0], [0.0, 0.25]]


def test_focal_loss_by_hand_and_without_focus() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [math.log(3), 5.0]])
    labels = torch.tensor([[1.0, 0.0], [1.0, NAN]])
    terms = [3 * 0.25 * math.log(2), 0.75**2 * -math.log(0.25), 3 * 0.25**2 * -math.log(0.75)]
    loss = masked_asymmetric_loss(logits, labels, torch.tensor([3.0, 1.0]), **FOCAL)
    assert loss.item() == pytest.approx(sum(terms) / 3, rel=1e-6)
    (logits, labels), weight = drawn(1, 6, 3), torch.tensor([1.0, 2.0, 0.5])
    labels[2, 1] = NAN
    expected = masked_bce_with_logits(logits, labels, weight).item()
    without = dict.fromkeys(FOCAL, 0.0)
    assert masked_asymmetric_loss(logits, labels, weight, **without).item() == pytest.approx(expected, rel=1e-6)


def test_asymmetric_loss_by_hand_and_by_timm() -> None:
    logits = torch.tensor([[math.log(3), math.log(3), -4.0]])  # scores 0.75, 0.75 and 0.018, which the clip forgives
    focus = {"gamma_positive": 1.0, "gamma_negative": 4.0, "clip": 0.05}
    loss = masked_asymmetric_loss(logits, torch.tensor([[1.0, 0.0, 0.0]]), **focus)
    assert loss.item() == pytest.approx((0.25 * -math.log(0.75) + 0.7**4 * -math.log(0.3)) / 3, rel=1e-5)
    logits, labels = drawn(2, 1, 32)  # one row, because timm divides by the rows since 1.0.31
    theirs = AsymmetricLossMultiLabel(gamma_neg=4, gamma_pos=1, clip=0.05)(logits, labels)
    assert masked_asymmetric_loss(logits, labels, normalizer=1.0).item() == pytest.approx(theirs.item(), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_every_loss_skips_missing_labels_and_stays_finite(loss: Loss, kind: torch.dtype) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.3], [-1e4, 1e4, 0.1]], dtype=kind, requires_grad=True)
    value = loss(logits, torch.tensor([[0.0, 1.0, NAN], [1.0, NAN, NAN]]), torch.tensor([1e4, 1e4, 1.0]), None)
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[:, 2].tolist() == [0.0, 0.0]
    logits.grad = None
    nothing = loss(logits, torch.full((2, 3), NAN), None, None)
    nothing.backward()
    assert nothing.item() == 0
    assert logits.grad.tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("loss", LOSSES)
def test_soft_labels_split_the_loss(loss: Loss) -> None:
    values = [loss(torch.tensor([[0.7]]), torch.tensor([[label]]), torch.tensor([3.0]), None) for label in (1, 0, 0.25)]
    assert values[2].item() == pytest.approx((0.25 * values[0] + 0.75 * values[1]).item(), rel=1e-6)
    smoothed = smooth_labels(torch.tensor([1.0, 0.0, NAN]), 0.2).tolist()
    assert smoothed == pytest.approx([0.9, 0.1, NAN], nan_ok=True)


def test_shares_of_two_processes_add_up_to_the_loss_of_one() -> None:
    logits, labels = drawn(0, 8, 3)
    labels[::3, 1] = NAN
    half = (~labels.isnan()).sum() / 2
    shares = [masked_bce_with_logits(logits[rows], labels[rows], None, half) for rows in (slice(3), slice(3, 8))]
    assert (sum(shares) / 2).item() == pytest.approx(masked_bce_with_logits(logits, labels).item(), rel=1e-6)


def test_positive_weights_by_hand() -> None:
    labels = np.float32([[1, 1, 0, NAN], [0, 1, 0, NAN], [0, 1, NAN, NAN], [0, NAN, 0, NAN], [0, 1, 0, NAN]])
    for options, expected in (((1.0,), [4, 1, 1, 1]), ((0.5,), [2, 1, 1, 1]), ((1.0, 3), [3, 1, 1, 1])):
        np.testing.assert_allclose(positive_weights(labels, *options), expected)
    labels = np.float32([[1, 1], [0, NAN], [NAN, 0], [NAN, 0]])
    np.testing.assert_allclose(positive_weights(labels), [1, 2])
    np.testing.assert_allclose(positive_weights(labels, negatives="all-rows"), [3, 3])
    np.testing.assert_allclose(positive_weights(labels, image_weights=np.array([2.0, 1, 1, 0])), [0.5, 0.5])
