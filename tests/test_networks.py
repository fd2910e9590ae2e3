"""Networks of unusual kinds: what trains, is saved and predicts, and what is refused in one sentence before any image is read."""

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


def test_both_heads_of_a_distilled_network_are_trained_calibrated_and_saved(sample: Path, tmp_path: Path) -> None:
    settings = {
        "recipe": "demo",
        "architecture": "levit_128s",
        "image_size": 64,
        "freeze": "backbone",
        "epochs": 1,
        "num_workers": 0,
    }
    model = train(TrainConfig(str(sample), str(tmp_path / "out"), **settings))
    again = AimonkModel.from_pretrained(tmp_path / "out")
    by_timm = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(again(pixels).logits, model(pixels).logits)
        torch.testing.assert_close(by_timm(pixels), model(pixels).logits)
    calibration = model.metrics["calibration"]
    assert not any("head of" in str(entry) for entry in calibration.values())


@pytest.fixture
def without_images(tmp_path: Path) -> Path:
    """A data folder of whose images none can be read, which a run says when it reads them."""
    (tmp_path / "data" / "images").mkdir(parents=True)
    rows = "".join(f"{number}.jpg,{number % 2},{number % 3 % 2}\n" for number in range(24))
    (tmp_path / "data" / "labels.csv").write_text("image,collar,sleeves\n" + rows)
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--architecture", "crossvit_9_240"],
            "crossvit_9_240 cannot compute images of 96 x 96 pixels (The size of tensor a",
        ),
        (["--architecture", "crossvit_9_240"], "it is made for --image-size 240"),
        (["--architecture", "efficientformer_l1"], "it is made for --image-size 224"),
        (["--architecture", "halonet26t"], "(AssertionError without a reason): it is made for --image-size 256"),
        (
            ["--architecture", "halonet26t", "--image-size", "256", "--train-scale", "0.5,1"],
            "training images of 128 x 128 pixels (Assertion",
        ),
        (
            ["--optimizer", "bnbadam"],
            "--optimizer bnbadam cannot be used here (CUDA required for bitsandbytes optimizers): choose another",
        ),
        (
            ["--optimizer", "adahessian"],
            "--optimizer adahessian cannot be used here (element 0 of tensors does not require grad",
        ),
        (["--architecture", "test_vit", "--freeze", "first-9"], "--freeze first-9: this network has 6 blocks"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_any_image_is_read(
    flags: list[str], message: str, without_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "train",
        "--data-dir",
        str(without_images),
        "--output-dir",
        str(tmp_path / "out"),
        "--recipe",
        "demo",
        *flags,
    ]
    assert main(command) == 2
    told = capsys.readouterr().err.strip()
    assert message in told
    assert "\n" not in told


def test_arguments_of_timm_that_give_no_logits_are_refused(tiny_model: AimonkModel, tmp_path: Path) -> None:
    with pytest.raises(AimonkError, match="in_chans must be 3, because images are read as RGB, found 1"):
        AimonkModel.from_timm("test_resnet", NAMES, pretrained=False, in_chans=1)
    with pytest.raises(
        AimonkError, match=r"gives outputs of shape \[1, 101, 2\] for one image instead of \[1, 2\]: change model_args"
    ):
        AimonkModel.from_timm("test_vit", NAMES, pretrained=False, global_pool="")


def test_the_reason_why_weights_do_not_fit_is_said(tiny_model: AimonkModel, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path / "m")
    with pytest.raises(
        AimonkError, match=r"timm cannot build test_resnet .*: size mismatch for \S+weight: copying a param"
    ):
        AimonkModel.from_timm(f"local-dir:{tmp_path / 'm'}", NAMES, stem_width=8)


@pytest.mark.parametrize("wrap", [lambda network: torch.compile(network, backend="eager"), nn.DataParallel, "inner"])
def test_a_wrapped_network_is_saved_under_timms_names(wrap, tmp_path: Path, picture: Image.Image) -> None:
    model = AimonkModel.from_timm("test_resnet", NAMES, pretrained=False, image_size=64).eval()
    expected = model.predict(picture).scores
    if wrap == "inner":
        model.timm_model.layer1 = torch.compile(model.timm_model.layer1, backend="eager")
    else:
        model.timm_model = wrap(model.timm_model)
    model.save_pretrained(tmp_path / "m")
    assert AimonkModel.from_pretrained(tmp_path / "m").predict(picture).scores == pytest.approx(expected, abs=1e-6)


def test_weights_that_nobody_could_load_are_not_written(tmp_path: Path) -> None:
    model = AimonkModel.from_timm("test_resnet", NAMES, pretrained=False, image_size=64)
    model.timm_model.reset_classifier(5)
    with pytest.raises(AimonkError, match=r"fc.weight has shape \[5, .*\], the architecture wants \[2, "):
        model.save_pretrained(tmp_path / "m")
    nn.utils.parametrizations.weight_norm(model.timm_model.fc)
    with pytest.raises(AimonkError, match=r"lacks 1 tensor\(s\) of the architecture, first fc.weight"):
        model.save_pretrained(tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_prediction_follows_the_numbers_of_the_weights(kind: torch.dtype, picture: Image.Image) -> None:
    model = AimonkModel.from_timm("test_resnet", NAMES, pretrained=False, image_size=64).eval()
    expected = model.predict(picture).scores
    assert model.to(kind).predict([picture] * 70)[-1].scores == pytest.approx(expected, abs=0.02)


def test_thresholds_and_names_may_come_from_numpy(picture: Image.Image, tmp_path: Path) -> None:
    model = AimonkModel.from_timm("test_resnet", np.array(NAMES), pretrained=False, image_size=64)  # type: ignore[arg-type]
    assert model.config.attributes == NAMES
    rng = np.random.default_rng(0)
    tuned = tune_thresholds((rng.random((60, 2)) > 0.5).astype(np.float32), rng.random((60, 2)).astype(np.float32))
    assert model.predict(picture, thresholds=tuned).thresholds == dict(zip(NAMES, tuned, strict=True))
    for value in (np.float32(0.25), np.array(0.25), {"collar": np.float16(0.25), "sleeves": np.array(0.25)}):
        assert model.predict(picture, thresholds=value).thresholds == {"collar": 0.25, "sleeves": 0.25}
    with pytest.raises(AimonkError, match=r"needs the shape \[2\], found \[3\]"):
        model.predict(picture, thresholds=np.array([0.1, 0.2, 0.3]))
    with pytest.raises(AimonkError, match="must lie between 0 and 1"):
        model.predict(picture, thresholds=np.array([0.1, np.nan]))
    model.config.thresholds = dict(zip(np.array(NAMES), np.float32([0.25, 0.75]), strict=True))
    model.save_pretrained(tmp_path / "m")
    assert AimonkModel.from_pretrained(tmp_path / "m").config.thresholds == {"collar": 0.25, "sleeves": 0.75}
    model.config.thresholds = np.array([0.25, 0.75])  # type: ignore[assignment]
    assert model.config.threshold_values == [0.25, 0.75]
    model.save_pretrained(tmp_path / "m")
    assert AimonkModel.from_pretrained(tmp_path / "m").config.thresholds == {"collar": 0.25, "sleeves": 0.75}
    model.config.thresholds = {"sleeves": 0.75}
    assert model.config.threshold_values == [0.5, 0.75]
    assert AimonkConfig("test_resnet", NAMES, thresholds=np.array([0.5, 1])).thresholds == {
        "collar": 0.5,
        "sleeves": 1.0,
    }  # type: ignore[arg-type]


def test_json_files_take_numpy_values(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"lr": np.float64(0.5), "seed": np.int64(3), "gammas": np.array([1.0, 4.0])})
    assert read_json(tmp_path / "a.json") == {"lr": 0.5, "seed": 3, "gammas": [1.0, 4.0]}


def test_no_model_is_made_without_weights(tiny_model: AimonkModel, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path / "m")
    with (
        torch.device("meta"),
        pytest.raises(AimonkError, match="torch's default device is meta, which holds no weights"),
    ):
        AimonkModel.from_pretrained(tmp_path / "m")
