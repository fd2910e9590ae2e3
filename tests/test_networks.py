"""Networks of unusual kinds: those that train, are saved and predict, and those refused before any image is read."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from aimonk_hf import AimonkConfig, AimonkModel, TrainConfig, train, tune_thresholds
from aimonk_hf.cli.main import main
from aimonk_hf.errors import AimonkError
from aimonk_hf.storage import read_json, write_json

NAMES = ["collar", "sleeves"]


@pytest.fixture
def model() -> AimonkModel:
    return AimonkModel.from_timm("test_resnet", NAMES, pretrained=False, image_size=64).eval()


def test_both_heads_of_a_distilled_network_are_trained_calibrated_and_saved(sample: Path, tmp_path: Path) -> None:
    settings = {"architecture": "levit_128s", "image_size": 64, "freeze": "backbone", "epochs": 1, "num_workers": 0}
    model = train(TrainConfig(str(sample), str(tmp_path / "out"), recipe="demo", **settings))
    again = AimonkModel.from_pretrained(tmp_path / "out")
    by_timm = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(again(pixels).logits, model(pixels).logits)
        torch.testing.assert_close(by_timm(pixels), model(pixels).logits)
    assert not any("head of" in str(entry) for entry in model.metrics["calibration"].values())


@pytest.fixture
def without_images(tmp_path: Path) -> Path:
    """A data folder without a readable image, which a run reports when it reads them."""
    (tmp_path / "data" / "images").mkdir(parents=True)
    for number in range(24):
        (tmp_path / "data" / "images" / f"{number}.jpg").touch()
    rows = "".join(f"{number}.jpg,{number % 2},{number % 3 % 2}\n" for number in range(24))
    (tmp_path / "data" / "labels.csv").write_text("image,collar,sleeves\n" + rows)
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--architecture crossvit_9_240", "crossvit_9_240 cannot compute images of 96 x 96 pixels (The size of tensor"),
        ("--architecture crossvit_9_240", "it is made for --image-size 240"),
        ("--architecture halonet26t", "(AssertionError without a reason): it is made for --image-size 256"),
        ("--architecture halonet26t --image-size 256 --train-scale 0.5,1", "images of 128 x 128 pixels (Assertion"),
        ("--optimizer bnbadam", "--optimizer bnbadam cannot be used here (CUDA required for bitsandbytes optimizers)"),
        ("--optimizer adahessian", "--optimizer adahessian cannot be used here (element 0 of tensors does not require"),
        ("--crop-pct 0", "found 0.0"),
        ("--architecture test_vit --freeze first-9", "--freeze first-9: this network has 6 blocks"),
    ],
)
def test_networks_that_cannot_be_trained_are_refused_before_any_image_is_read(
    flags: str, message: str, without_images: Path, tmp_path: Path, capsys
) -> None:
    command = f"train --data-dir {without_images} --output-dir {tmp_path / 'out'} --recipe demo {flags}"
    assert main(command.split()) == 2
    told = capsys.readouterr().err.strip()
    assert message in told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("architecture", "arguments", "message"),
    [
        ("test_resnet", {"in_chans": 1}, "in_chans must be 3 for RGB images, found 1"),
        ("test_vit", {"global_pool": ""}, r"shape \[1, 101, 2\] for one image instead of \[1, 2\]: change model_args"),
        ("local-dir:SAVED", {"pretrained": True, "stem_width": 8}, "cannot build test_resnet .*: size mismatch"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_with_the_reason(
    architecture: str, arguments: dict, message: str, tiny_model: AimonkModel, tmp_path: Path
) -> None:
    tiny_model.save_pretrained(tmp_path)
    with pytest.raises(AimonkError, match=message):
        AimonkModel.from_timm(architecture.replace("SAVED", str(tmp_path)), NAMES, **{"pretrained": False} | arguments)


@pytest.mark.parametrize("wrap", [lambda network: torch.compile(network, backend="eager"), nn.DataParallel, "inner"])
def test_a_wrapped_network_is_saved_under_timms_names(wrap, model: AimonkModel, tmp_path: Path, picture) -> None:
    expected = model.predict(picture).scores
    if wrap == "inner":
        model.timm_model.layer1 = torch.compile(model.timm_model.layer1, backend="eager")
    else:
        model.timm_model = wrap(model.timm_model)
    model.save_pretrained(tmp_path / "m")
    assert AimonkModel.from_pretrained(tmp_path / "m").predict(picture).scores == pytest.approx(expected, abs=1e-6)


def test_weights_that_nobody_could_load_are_not_written(model: AimonkModel, tmp_path: Path) -> None:
    model.timm_model.reset_classifier(5)
    with pytest.raises(AimonkError, match=r"fc.weight holds floats of shape \[5, .*\], wanted: floats of shape \[2, "):
        model.save_pretrained(tmp_path / "m")
    nn.utils.parametrizations.weight_norm(model.timm_model.fc)
    with pytest.raises(AimonkError, match="fc.weight holds nothing"):
        model.save_pretrained(tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_prediction_follows_the_numbers_of_the_weights(kind: torch.dtype, model: AimonkModel, picture) -> None:
    expected = model.predict(picture).scores
    assert model.to(kind).predict([picture] * 10)[-1].scores == pytest.approx(expected, abs=0.02)


def test_thresholds_and_names_may_come_from_numpy(picture: Image.Image, tmp_path: Path) -> None:
    model = AimonkModel.from_timm("test_resnet", np.array(NAMES), pretrained=False, image_size=64)  # type: ignore[arg-type]
    assert model.config.attributes == NAMES
    rng = np.random.default_rng(0)
    tuned = tune_thresholds((rng.random((60, 2)) > 0.5).astype(np.float32), rng.random((60, 2)).astype(np.float32))
    assert model.predict(picture, thresholds=tuned).thresholds == dict(zip(NAMES, tuned, strict=True))
    for value in (np.float32(0.25), np.array(0.25), {"collar": np.float16(0.25), "sleeves": np.array(0.25)}):
        assert model.predict(picture, thresholds=value).thresholds == {"collar": 0.25, "sleeves": 0.25}
    for wrong, message in (
        ([0.1, 0.2, 0.3], r"needs the shape \[2\], found \[3\]"),
        ([0.1, np.nan], "must lie between"),
    ):
        with pytest.raises(AimonkError, match=message):
            model.predict(picture, thresholds=np.array(wrong))
    for given in (dict(zip(np.array(NAMES), np.float32([0.25, 0.75]), strict=True)), np.array([0.25, 0.75])):
        model.config.thresholds = given
        model.save_pretrained(tmp_path / "m")
        assert AimonkConfig.from_pretrained(tmp_path / "m").threshold_values == [0.25, 0.75]
    model.config.thresholds = {"sleeves": 0.75}
    assert model.config.threshold_values == [0.5, 0.75]
    write_json(tmp_path / "a.json", {"lr": np.float64(0.5), "seed": np.int64(3), "gammas": np.array([1.0, 4.0])})
    assert read_json(tmp_path / "a.json") == {"lr": 0.5, "seed": 3, "gammas": [1.0, 4.0]}
