"""What more images or another backbone would bring, by the probe: known curves, simulated features, the command."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aimonk_hf.audit import forecast
from aimonk_hf.audit.checks import audit
from aimonk_hf.audit.forecast import compare_backbones, learning_curve, power_law
from aimonk_hf.audit.report import learning_curve_line, summary
from aimonk_hf.cli.main import main
from aimonk_hf.data.dataset import AttributeDataset
from aimonk_hf.data.sample_data import write_sample_data
from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling.backbones import find_backbone as find

NUMBERS = np.array([100, 200, 400, 800])


@pytest.mark.parametrize("curve", [(0.8, 0.3, 0.5), (0.9, 0.1, 1.0), (0.6, 0.2, 0.3)])
def test_a_power_law_is_found_again(curve: tuple[float, float, float]) -> None:
    values = power_law(NUMBERS, *curve)
    [found] = forecast._fit(NUMBERS, values[None])
    assert power_law(NUMBERS, *found) == pytest.approx(values, abs=1e-3)
    assert power_law([1300], *found) == pytest.approx(power_law([1300], *curve), abs=3e-3)


@pytest.mark.parametrize("values", [[0.5, 0.5, 0.5, 0.5], [0.6, 0.55, 0.5, 0.45]])
def test_a_curve_that_does_not_rise_is_flat(values: list[float]) -> None:
    [found] = forecast._fit(NUMBERS, np.array([values]))
    assert power_law([2000], *found) == pytest.approx(np.mean(values), abs=0.03)


def simulated(n_images: int = 800) -> tuple[np.ndarray, np.ndarray]:
    """One attribute in forty weak directions, one that few images teach, and one without negatives."""
    random = np.random.default_rng(0)
    features = random.normal(size=(n_images, 60)).astype(np.float32)
    many = features[:, :40].sum(axis=1) + 2 * random.normal(size=n_images) > 4
    easy = random.random(n_images) < 0.4
    features[:, 41:] += 2 * easy[:, None]
    return features, np.stack([many, easy, np.ones(n_images)], axis=1).astype(np.float32)


def test_an_attribute_that_needs_images_is_told_from_one_that_does_not() -> None:
    features, labels = simulated()
    found = learning_curve(features, labels, ["many", "easy", "constant"], np.arange(len(labels)))
    rows = found["per_attribute"]
    assert rows["many"]["limited_by"] == "number"
    assert rows["many"]["gain"] > 0.01
    assert rows["many"]["gain_ci95"][0] > 0
    assert rows["easy"]["limited_by"] == "flat"
    assert rows["constant"] == {"limited_by": "unknown"}
    assert found["numbers"] == [80, 160, 320, 640]
    means = rows["many"]["average_precision"]
    assert means == sorted(means)
    assert "640 images; 500 more would bring +0." in learning_curve_line(found)


def test_noise_seldom_seems_to_need_more_images() -> None:
    random = np.random.default_rng(1)
    features = random.normal(size=(400, 30)).astype(np.float32)
    labels = (random.random((400, 60)) < 0.3).astype(np.float32)
    names = [str(number) for number in range(60)]
    found = learning_curve(features, labels, names, np.arange(400))
    limits = [own["limited_by"] for own in found["per_attribute"].values()]
    assert limits.count("number") <= 6  # of 60, at 5% each


def test_the_forecast_comes_true() -> None:
    """The gain from 640 to 1,140 images, forecast from 800, against the same probe on more of the same images."""
    features, labels = simulated(1425)
    names = ["many", "easy", "constant"]
    few = learning_curve(features[:800], labels[:800], names, np.arange(800))["per_attribute"]["many"]
    more = learning_curve(features, labels, names, np.arange(1425))["per_attribute"]["many"]
    assert more["average_precision"][-1] - few["average_precision"][-1] == pytest.approx(few["gain"], abs=0.04)


def test_copies_count_once_and_too_few_images_are_refused() -> None:
    features, labels = simulated(400)
    assert learning_curve(features, labels, ["a", "b", "c"], np.arange(400) // 2)["n_images"] == 200
    with pytest.raises(AimonkError, match="40 usable images are too few for a learning curve: 50 are needed"):
        learning_curve(features[:40], labels[:40], ["a", "b", "c"], np.arange(40))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_sample_data(tmp_path / "data", n_images=120, seed=4)


def test_a_better_backbone_is_told_from_one_that_sees_nothing(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audited = audit(AttributeDataset.from_folder(data))
    labels = np.nan_to_num(audited.dataset.labels.values)
    random = np.random.default_rng(0)
    seen = {"blind": random.normal(size=(len(labels), 8)), "seeing": labels + 0.5 * random.normal(size=labels.shape)}
    monkeypatch.setattr(forecast, "_features", lambda audited, name, device: (seen[name].astype(np.float32), 3_000_000))
    found = compare_backbones(audited, ["blind", "seeing"])
    first, second = found["rows"]
    assert "difference" not in first
    assert second["difference"]["ci95"][0] > 0.1
    assert (found["best"], found["is_clear"], second["millions"]) == ("seeing", True, 3.0)
    assert audited.findings["backbones"] == found
    assert summary(audited.findings)[-1] == "best of 2 backbones by the probe: seeing"
    seen["same"] = seen["seeing"]
    assert not compare_backbones(audited, ["seeing", "same"])["is_clear"]
    assert "no evidence" in summary(audited.findings)[-1]
    assert compare_backbones(audited, ["seeing", "blind"])["is_clear"]


@pytest.mark.usefixtures("real_plots")
def test_the_command_writes_curve_and_table(data: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(120, 8)).astype(np.float32)
    monkeypatch.setattr(forecast, "backbone_features", lambda *_, **__: features)
    monkeypatch.setattr(forecast, "find_backbone", lambda name, pretrained: find(name, False))
    flags = ["--architecture", "test_resnet", "--learning-curve", "--backbones", "test_resnet,test_efficientnet"]
    assert main(["audit", "--data-dir", str(data), *flags, "--output", str(tmp_path / "audit")]) == 0
    told = capsys.readouterr().out
    assert "learning curve: mAP 0." in told
    assert "best of 2 backbones by the probe: test_" in told
    assert "mAP against the first" in told
    assert json.loads((tmp_path / "audit" / "audit.json").read_text())["learning_curve"]["backbone"] == "test_resnet"
    with Image.open(tmp_path / "audit" / "learning_curve.png") as plot:
        assert min(plot.size) > 300
