"""Old checkpoints against the torchvision networks that they came from, and files that must not be run."""

import argparse
import os
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import nn

from aimonk_hf import AimonkModel
from aimonk_hf.cli.main import main
from aimonk_hf.errors import AimonkError
from aimonk_hf.modeling.convert import convert_checkpoint


def published(name: str, head: str = "linear", outputs: int = 4) -> nn.Module:
    """A torchvision network with random weights and the head of the published systems; statistics as after training."""
    torch.manual_seed(0)
    network = getattr(torchvision.models, name)(weights=None)
    if name == "efficientnet_b0":
        network.classifier[1] = nn.Linear(1280, outputs)
    else:
        linear = nn.Linear(network.fc.in_features, outputs)
        network.fc = linear if head == "linear" else nn.Sequential(nn.Dropout(0.5), linear)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.2)
    return network.eval()


def save(content: object, folder: Path) -> Path:
    torch.save(content, folder / "model.pth")
    return folder / "model.pth"


def same_logits(network: nn.Module, model: AimonkModel) -> bool:
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        return torch.allclose(model(pixels).logits, network(pixels), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "head"), [("resnet18", "linear"), ("resnet34", "sequential"), ("resnet50", "sequential")]
)
def test_resnets(name: str, head: str, tmp_path: Path):
    network = published(name, head)
    assert same_logits(network, convert_checkpoint(save(network.state_dict(), tmp_path), name, ["a", "b", "c", "d"]))


def test_efficientnet_in_a_checkpoint_of_a_parallel_run(tmp_path: Path):
    network = published("efficientnet_b0")
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    optimizer = torch.optim.Adam(network.parameters()).state_dict()
    path = save({"epoch": 7, "model_state_dict": state, "optimizer_state_dict": optimizer, "loss": 0.3}, tmp_path)
    assert same_logits(network, convert_checkpoint(path, "efficientnet_b0"))


@pytest.mark.parametrize("container", ["state_dict", "model_state_dict", "model"])
def test_wrappers_and_containers(container: str, tmp_path: Path):
    network = published("resnet18", "sequential")
    state = {f"module.model.{key}": value for key, value in network.state_dict().items()}
    assert same_logits(network, convert_checkpoint(save({container: state}, tmp_path), "resnet18"))


def test_timm_s_own_names(tmp_path: Path):
    network = timm.create_model("test_efficientnet", num_classes=2).eval()
    assert same_logits(network, convert_checkpoint(save(network.state_dict(), tmp_path), "test_efficientnet"))


def test_the_command_makes_a_folder_that_sees_the_published_systems_pixels(
    tmp_path: Path, capsys, picture: Image.Image
):
    network = published("resnet18", "sequential")
    path = save(network.state_dict(), tmp_path)
    assert main(["convert", str(path), "--architecture", "resnet18", "--output", str(tmp_path / "new")]) == 0
    assert "Attr1, Attr2, Attr3, Attr4; thresholds 0.5" in capsys.readouterr().out
    model = AimonkModel.from_pretrained(tmp_path / "new")
    transforms = torchvision.transforms
    theirs = transforms.Compose(
        [
            transforms.Resize((224, 224)),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    pixels = theirs(picture)
    assert torch.allclose(model.transform(picture), pixels, atol=1e-6)
    with torch.no_grad():
        scores = network(pixels[None]).sigmoid()[0]
    assert list(model.predict(picture).scores.values()) == pytest.approx(scores.tolist(), abs=1e-5)
    assert main(["convert", str(path), "--architecture", "resnet18", "--output", str(tmp_path / "new")]) == 2
    assert "holds a model already: name another --output" in capsys.readouterr().err


def test_names_and_preprocessing_are_kept(tmp_path: Path):
    path = save(published("resnet18", outputs=2).state_dict(), tmp_path)
    flags = [
        "--attributes",
        "collar, belt",
        "--image-size",
        "96",
        "--mean",
        "0.5,0.5,0.5",
        "--std",
        ".25,.25,.25",
        "--crop-mode",
        "center",
    ]
    assert (
        main(
            [
                "convert",
                str(path),
                "--architecture",
                "resnet18",
                "--output",
                str(tmp_path / "new"),
                *flags,
                "--crop-pct",
                "0.875",
            ]
        )
        == 0
    )
    config = AimonkModel.from_pretrained(tmp_path / "new").config
    assert config.attributes == ["collar", "belt"]
    wanted = {"input_size": [3, 96, 96], "mean": [0.5] * 3, "std": [0.25] * 3, "crop_mode": "center", "crop_pct": 0.875}
    assert {key: config.pretrained_cfg[key] for key in wanted} == wanted
    assert config.pretrained_cfg["interpolation"] == "bilinear"


def test_checkpoints_that_do_not_fit_are_named(tmp_path: Path):
    state = published("resnet18").state_dict()
    path = save(state, tmp_path)
    with pytest.raises(AimonkError, match="has 4 outputs but 2 attributes were named: a, b"):
        convert_checkpoint(path, "resnet18", ["a", "b"])
    with pytest.raises(
        AimonkError, match=r"does not fit resnet34: it lacks layer1.2.conv1.weight .*name its --architecture"
    ):
        convert_checkpoint(path, "resnet34")
    with pytest.raises(AimonkError, match="does not fit resnet50: size mismatch"):
        convert_checkpoint(path, "resnet50")
    with pytest.raises(AimonkError, match="timm .* has no architecture 'resnet_18'"):
        convert_checkpoint(path, "resnet_18")
    with pytest.raises(AimonkError, match="has no linear head"):
        convert_checkpoint(save({"conv1.weight": torch.zeros(1)}, tmp_path), "resnet18")
    with pytest.raises(AimonkError, match="holds no state dict .found a dict with epoch"):
        convert_checkpoint(save({"epoch": 3}, tmp_path), "resnet18")
    with pytest.raises(AimonkError, match="the head fc has several linear layers"):
        convert_checkpoint(save({f"fc.{layer}.weight": torch.zeros(2) for layer in (0, 3)}, tmp_path), "resnet18")


def test_files_that_are_no_checkpoint_are_named(tmp_path: Path, capsys):
    with pytest.raises(AimonkError, match=r"there is no checkpoint .*none.pth"):
        convert_checkpoint(tmp_path / "none.pth", "resnet18")
    whole = save(published("resnet18").state_dict(), tmp_path).read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2]):
        (tmp_path / "bad.pth").write_bytes(content)
        assert (
            main(
                ["convert", str(tmp_path / "bad.pth"), "--architecture", "resnet18", "--output", str(tmp_path / "new")]
            )
            == 2
        )
        error = capsys.readouterr().err
        assert error.startswith(f"aimonk-hf: {tmp_path / 'bad.pth'} ")
        assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()


class Hostile:
    """Creates a file as soon as it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_refused_and_never_run(zipped: bool, tmp_path: Path, capsys):
    trace = tmp_path / "was-run"
    state = published("resnet18").state_dict() | {"extra": Hostile(trace)}
    torch.save(state, tmp_path / "hostile.pth", _use_new_zipfile_serialization=zipped)
    assert (
        main(
            ["convert", str(tmp_path / "hostile.pth"), "--architecture", "resnet18", "--output", str(tmp_path / "new")]
        )
        == 2
    )
    error = capsys.readouterr().err
    assert (
        "holds more than tensors (posix.mkdir): it was not loaded, because that would run code from the file" in error
    )
    assert error.count("\n") == 1
    assert not trace.exists()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "content", [published("resnet18"), {"args": argparse.Namespace(lr=1)}, {"best": np.float64(0.5)}]
)
def test_pickled_objects_are_refused(content: object, tmp_path: Path):
    with pytest.raises(AimonkError, match=r"holds more than tensors \([\w.]+\): .* save model.state_dict\(\)"):
        convert_checkpoint(save(content, tmp_path), "resnet18")
