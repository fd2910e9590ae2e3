"""Calibration: errors by hand, known distortions undone, folded weights that every reader sees."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from scipy.special import expit
from torch import nn

from aimonk_hf import AimonkModel
from aimonk_hf.errors import AimonkError
from aimonk_hf.evaluation.calibration import calibrate, expected_calibration_error, fit_scaling, fold_into_classifier
from aimonk_hf.evaluation.metrics import to_logits

NAN = np.nan


def test_calibration_error_by_hand() -> None:
    """Bin .9: mean score .95, half positive, two of five rows; bin .2: mean .2, one of three. .4 * .45 + .6 * .1333."""
    labels = np.array([1, 0, 1, 0, 0, NAN])[:, None]
    scores = np.array([0.95, 0.95, 0.2, 0.2, 0.2, 0.99])[:, None]
    assert expected_calibration_error(labels, scores)[0] == pytest.approx(0.4 * 0.45 + 0.6 * (1 / 3 - 0.2))
    assert np.isnan(expected_calibration_error(np.full((3, 1), NAN), np.full((3, 1), 0.5))[0])
    assert expected_calibration_error(np.ones((2, 1)), np.ones((2, 1)))[0] == 0


def distorted(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from sigmoid(z), and logits that were made three times too large and moved by two."""
    rng = np.random.default_rng(seed)
    true = rng.normal(size=(n, 2)) * 1.5
    labels = (rng.random(true.shape) < expit(true)).astype(float)
    labels[rng.random(labels.shape) < 0.1] = NAN
    return labels, 3 * true + 2


def test_a_known_distortion_is_undone() -> None:
    labels, logits = distorted(4000)
    seen = ~np.isnan(labels[:, 0])
    scale, shift = fit_scaling(labels[seen, 0], logits[seen, 0])
    assert scale == pytest.approx(1 / 3, abs=0.03)
    assert shift == pytest.approx(-2 / 3, abs=0.08)


def test_calibration_helps_on_images_that_did_not_fit_it() -> None:
    labels, logits = distorted(400)
    found = calibrate(labels, logits)
    assert found.reasons == [None, None]
    fresh, fresh_logits = distorted(2000, seed=1)
    before = expected_calibration_error(fresh, expit(fresh_logits))
    after = expected_calibration_error(fresh, expit(found.scale * fresh_logits + found.shift))
    assert (after < 0.4 * before).all()
    np.testing.assert_allclose(found.before, before, atol=0.08)


def test_copies_of_an_image_are_judged_by_fits_to_other_images() -> None:
    labels, logits = distorted(80)
    found = calibrate(np.tile(labels, (3, 1)), np.tile(logits, (3, 1)), groups=np.tile(np.arange(80), 3))
    assert found.reasons == [None, None]
    copies = found.held_out.reshape(3, 80, 2)
    assert (copies == copies[0]).all()


def test_what_it_does_not_help_is_left_alone_and_said() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(300, 3)) * 2
    labels = (rng.random(logits.shape) < expit(logits)).astype(float)  # calibrated already
    labels[:, 1] = NAN
    labels[:, 2] = 0
    labels[:4, 2] = 1
    found = calibrate(labels, logits, seed=1)
    assert found.reasons[1:] == ["fewer than 10 positives or negatives"] * 2
    assert found.scale[1:].tolist() == [1, 1]
    backwards = calibrate((rng.random((300, 1)) < expit(-2 * logits[:, :1])).astype(float), logits[:, :1])
    assert backwards.scale[0] == 1
    assert backwards.reasons == ["its scores do not rise with the share of positives"]
    draws = [(rng.random((300, 1)) < expit(logits[:, :1])).astype(float) for _ in range(10)]
    assert sum(calibrate(drawn, logits[:, :1]).scale[0] == 1 for drawn in draws) >= 4


def test_separable_scores_stay_finite() -> None:
    scale, shift = fit_scaling(np.array([0.0] * 20 + [1.0] * 20), np.array([-8.0] * 20 + [8.0] * 20))
    assert np.isfinite([scale, shift]).all()
    assert np.isfinite(to_logits(np.array([0.0, 1.0, 0.5]))).all()


@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit", "deit_tiny_distilled_patch16_224"])
def test_folded_weights_scale_the_logits_for_every_reader(architecture: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AimonkModel.from_timm(architecture, ["a", "b", "c"], pretrained=False).eval()
    pixels = torch.randn(2, 3, *model.transform.size)
    scale, shift = np.array([0.5, 2.0, 1.0]), np.array([-1.0, 0.25, 0.0])
    with torch.inference_mode():
        before = model(pixels).logits.clone()
        fold_into_classifier(model.timm_model, scale, shift)
        after = model(pixels).logits
    torch.testing.assert_close(after, before * torch.tensor(scale).float() + torch.tensor(shift).float())
    model.save_pretrained(tmp_path / "m")
    reader = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True).eval()
    with torch.inference_mode():
        torch.testing.assert_close(reader(pixels), after)


def test_heads_that_cannot_take_it_are_refused() -> None:
    network = timm.create_model("test_resnet", num_classes=2).eval()
    network.fc = nn.Linear(network.num_features, 2, bias=False)
    before = network.fc.weight.clone()
    with pytest.raises(AimonkError, match="The head of ResNet is not linear layers with a bias"):
        fold_into_classifier(network, np.ones(2), np.ones(2))
    assert torch.equal(network.fc.weight, before)
