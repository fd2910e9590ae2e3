import math

import numpy as np
import pytest
import torch
from timm.loss import AsymmetricLossMultiLabel

from aimonk_hf.modeling.losses import (
    Loss,
    masked_asymmetric_loss,
    masked_bce_with_logits,
    masked_focal_loss,
    positive_weights,
    smooth_labels,
)

NAN = float("nan")


def test_value_by_hand() -> None:
    logits = torch.tensor([[0.0, 2.0], [-1.0, 3.0]])
    labels = torch.tensor([[1.0, NAN], [0.0, 1.0]])
    weight = torch.tensor([2.0, 5.0])
    terms = [2 * math.log(2), math.log1p(math.exp(-1)), 5 * math.log1p(math.exp(-3))]
    assert masked_bce_with_logits(logits, labels, weight).item() == pytest.approx(sum(terms) / 3, rel=1e-6)
    assert masked_bce_with_logits(logits, labels, weight, normalizer=6).item() == pytest.approx(
        sum(terms) / 6, rel=1e-6
    )


def test_missing_labels_get_no_gradient_and_poison_none() -> None:
    logits = torch.zeros(2, 2, requires_grad=True)
    masked_bce_with_logits(logits, torch.tensor([[1.0, NAN], [NAN, 0.0]])).backward()
    assert logits.grad.tolist() == [[-0.25, 0.0], [0.0, 0.25]]


def test_without_any_label_loss_and_gradient_are_zero() -> None:
    logits = torch.randn(3, 2, requires_grad=True)
    loss = masked_bce_with_logits(logits, torch.full((3, 2), NAN))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.tolist() == [[0.0, 0.0]] * 3


def test_extreme_logits_weights_and_bf16_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4]], dtype=torch.bfloat16, requires_grad=True)
    loss = masked_bce_with_logits(logits, torch.tensor([[0.0, 1.0]]), torch.tensor([1e4, 1e4]))
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_shares_of_two_processes_add_up_to_the_loss_of_one() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 3, generator=generator)
    labels = torch.where(
        torch.rand(8, 3, generator=generator) < 0.4, NAN, (torch.rand(8, 3, generator=generator) < 0.5).float()
    )
    observed = (~torch.isnan(labels)).sum()
    shares = [
        masked_bce_with_logits(logits[rows], labels[rows], normalizer=observed / 2)
        for rows in (slice(0, 3), slice(3, 8))
    ]
    assert (sum(shares) / 2).item() == pytest.approx(masked_bce_with_logits(logits, labels).item(), rel=1e-6)


def test_positive_weights_by_hand() -> None:
    labels = np.float32([[1, 1, 0, NAN], [0, 1, 0, NAN], [0, 1, NAN, NAN], [0, NAN, 0, NAN], [0, 1, 0, NAN]])
    np.testing.assert_allclose(positive_weights(labels, 1.0), [4, 1, 1, 1])
    np.testing.assert_allclose(positive_weights(labels, 0.5), [2, 1, 1, 1])
    np.testing.assert_allclose(positive_weights(labels, 0.0), [1, 1, 1, 1])
    np.testing.assert_allclose(positive_weights(labels, 1.0, cap=3), [3, 1, 1, 1])


def test_focal_loss_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [math.log(3), 5.0]])
    labels = torch.tensor([[1.0, 0.0], [1.0, NAN]])
    terms = [3 * 0.25 * math.log(2), 0.75**2 * -math.log(0.25), 3 * 0.25**2 * -math.log(0.75)]
    loss = masked_focal_loss(logits, labels, torch.tensor([3.0, 1.0]), gamma=2.0)
    assert loss.item() == pytest.approx(sum(terms) / 3, rel=1e-6)


def test_focal_loss_without_focus_is_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(1)
    logits, labels = (
        torch.randn(6, 3, generator=generator) * 3,
        torch.randint(0, 2, (6, 3), generator=generator).float(),
    )
    labels[2, 1] = NAN
    weight = torch.tensor([1.0, 2.0, 0.5])
    expected = masked_bce_with_logits(logits, labels, weight)
    assert masked_focal_loss(logits, labels, weight, gamma=0.0).item() == pytest.approx(expected.item(), rel=1e-6)


def test_asymmetric_loss_by_hand() -> None:
    logits = torch.tensor([[math.log(3), math.log(3), -4.0]])  # scores 0.75, 0.75 and 0.018, which the clip forgives
    loss = masked_asymmetric_loss(
        logits, torch.tensor([[1.0, 0.0, 0.0]]), gamma_positive=1.0, gamma_negative=4.0, clip=0.05
    )
    assert loss.item() == pytest.approx((0.25 * -math.log(0.75) + 0.7**4 * -math.log(0.3)) / 3, rel=1e-5)


def test_asymmetric_loss_is_timms_where_nothing_is_missing() -> None:
    generator = torch.Generator().manual_seed(2)
    logits, labels = (
        torch.randn(8, 4, generator=generator) * 2,
        torch.randint(0, 2, (8, 4), generator=generator).float(),
    )
    theirs = AsymmetricLossMultiLabel(gamma_neg=4, gamma_pos=1, clip=0.05)(logits, labels)
    assert masked_asymmetric_loss(logits, labels, normalizer=8.0).item() == pytest.approx(theirs.item(), rel=1e-5)


@pytest.mark.parametrize("loss", [masked_focal_loss, masked_asymmetric_loss])
def test_other_losses_skip_missing_labels_and_stay_finite(loss: Loss) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.3], [-1e4, 1e4, 0.1]], requires_grad=True)
    value = loss(logits, torch.tensor([[0.0, 1.0, NAN], [1.0, NAN, NAN]]), torch.tensor([1e4, 1e4, 1.0]), None)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[:, 2].tolist() == [0.0, 0.0]
    nothing = loss(logits, torch.full((2, 3), NAN), None, None)
    nothing.backward()
    assert nothing.item() == 0


def test_label_smoothing_leaves_missing_labels_missing() -> None:
    smoothed = smooth_labels(torch.tensor([1.0, 0.0, NAN]), 0.2)
    assert smoothed[:2].tolist() == pytest.approx([0.9, 0.1])
    assert torch.isnan(smoothed[2])


def test_soft_labels_split_the_loss() -> None:
    logits = torch.tensor([[0.7]])
    for loss in (masked_bce_with_logits, masked_focal_loss, masked_asymmetric_loss):
        both = [loss(logits, torch.tensor([[value]]), torch.tensor([3.0])).item() for value in (1.0, 0.0)]
        assert loss(logits, torch.tensor([[0.25]]), torch.tensor([3.0])).item() == pytest.approx(
            0.25 * both[0] + 0.75 * both[1], rel=1e-6
        )


def test_positive_weights_over_all_rows_and_drawn_images() -> None:
    labels = np.float32([[1, 1], [0, NAN], [NAN, 0], [NAN, 0]])
    np.testing.assert_allclose(positive_weights(labels), [1, 2])
    np.testing.assert_allclose(positive_weights(labels, negatives="all-rows"), [3, 3])
    np.testing.assert_allclose(positive_weights(labels, image_weights=np.array([2.0, 1, 1, 0])), [0.5, 0.5])
