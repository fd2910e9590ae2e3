import math

import numpy as np
import pytest
import torch

from aimonk_hf.losses import masked_bce_with_logits, positive_weights

NAN = float("nan")


def test_value_by_hand() -> None:
    logits = torch.tensor([[0.0, 2.0], [-1.0, 3.0]])
    labels = torch.tensor([[1.0, NAN], [0.0, 1.0]])
    weight = torch.tensor([2.0, 5.0])
    terms = [2 * math.log(2), math.log1p(math.exp(-1)), 5 * math.log1p(math.exp(-3))]
    assert masked_bce_with_logits(logits, labels, weight).item() == pytest.approx(sum(terms) / 3, rel=1e-6)
    assert masked_bce_with_logits(logits, labels, weight, normalizer=6).item() == pytest.approx(sum(terms) / 6, rel=1e-6)


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
    labels = torch.where(torch.rand(8, 3, generator=generator) < 0.4, NAN, (torch.rand(8, 3, generator=generator) < 0.5).float())
    observed = (~torch.isnan(labels)).sum()
    shares = [masked_bce_with_logits(logits[rows], labels[rows], normalizer=observed / 2) for rows in (slice(0, 3), slice(3, 8))]
    assert (sum(shares) / 2).item() == pytest.approx(masked_bce_with_logits(logits, labels).item(), rel=1e-6)


def test_positive_weights_by_hand() -> None:
    labels = np.float32([[1, 1, 0, NAN], [0, 1, 0, NAN], [0, 1, NAN, NAN], [0, NAN, 0, NAN], [0, 1, 0, NAN]])
    np.testing.assert_allclose(positive_weights(labels, 1.0), [4, 1, 1, 1])
    np.testing.assert_allclose(positive_weights(labels, 0.5), [2, 1, 1, 1])
    np.testing.assert_allclose(positive_weights(labels, 0.0), [1, 1, 1, 1])
    np.testing.assert_allclose(positive_weights(labels, 1.0, cap=3), [3, 1, 1, 1])
