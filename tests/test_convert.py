"""Old checkpoints against the torchvision networks that they came from, and files that must not be run."""

import argparse
from pathlib import Path

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


def command(path: Path, *flags: str) -> list[str]:
    return ["convert", str(path), "--architecture", "resnet18", "--output", str(path.parent / "new"), *flags]


@pytest.mark.parametrize(
    ("name", "head", "pack"),
    [
        ("resnet18", "linear", lambda state: state),
        ("resnet34", "sequential", lambda state: {"state_dict": {f"module.model.{key}": state[key] for key in state}}),
        ("resnet50", "sequential", lambda state: {"model": state}),
        (
            "efficientnet_b0",
            "linear",
            lambda state: {"epoch": 7, "model_state_dict": {f"module.{key}": state[key] for key in state}, "loss": 0.3},
        ),
        ("timm", "", lambda state: state),
    ],
)
def test_a_checkpoint_gives_the_logits_of_its_network(name: str, head: str, pack, tmp_path: Path):
    architecture = "test_efficientnet" if name == "timm" else name
    network = timm.create_model(architecture, num_classes=2).eval() if name == "timm" else published(name, head)
    model = convert_checkpoint(save(pack(network.state_dict()), tmp_path), architecture)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(model(pixels).logits, network(pixels), atol=1e-4, rtol=1e-5)


def test_the_command_makes_a_folder_that_sees_the_published_systems_pixels(
    tmp_path: Path, capsys, picture: Image.Image
):
    network = published("resnet18", "sequential")
    path = save(network.state_dict(), tmp_path)
    assert main(command(path)) == 0
    assert "Attr1, Attr2, Attr3, Attr4; thresholds 0.5" in capsys.readouterr().out
    model = AimonkModel.from_pretrained(tmp_path / "new")
    transforms = torchvision.transforms
    normalize = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    pixels = transforms.Compose([transforms.Resize((224, 224)), transforms.ToTensor(), normalize])(picture)
    assert torch.allclose(model.transform(picture), pixels, atol=1e-6)
    with torch.no_grad():
        scores = network(pixels[None]).sigmoid()[0]
    assert list(model.predict(picture).scores.values()) == pytest.approx(scores.tolist(), abs=1e-5)
    assert main(command(path)) == 2
    assert "holds a model already: name another --output" in capsys.readouterr().err


def test_names_and_preprocessing_are_kept(tmp_path: Path):
    path = save(published("resnet18", outputs=2).state_dict(), tmp_path)
    flags = "--image-size 96 --mean 0.5,0.5,0.5 --std .25,.25,.25 --crop-mode center --crop-pct 0.875"
    assert main(command(path, "--attributes", "collar, belt", *flags.split())) == 0
    config = AimonkModel.from_pretrained(tmp_path / "new").config
    wanted = {"input_size": [3, 96, 96], "mean": [0.5] * 3, "std": [0.25] * 3, "crop_mode": "center", "crop_pct": 0.875}
    assert (config.attributes, config.pretrained_cfg) == (["collar", "belt"], config.pretrained_cfg | wanted)


RESNET = published("resnet18").state_dict()


@pytest.mark.parametrize(
    ("content", "architecture", "message"),
    [
        (RESNET, "resnet34", "layer1.2.conv1.weight holds nothing, wanted: floats of shape"),
        (RESNET, "resnet50", r"layer1.0.conv1.weight holds floats of shape \[64, 64, 3, 3\], wanted"),
        (RESNET, "resnet_18", "timm .* has no architecture 'resnet_18'"),
        ({"conv1.weight": torch.zeros(1)}, "resnet18", "has no linear head"),
        ({"epoch": 3}, "resnet18", "holds no state dict .found a dict with epoch"),
        ({f"fc.{layer}.weight": torch.zeros(2) for layer in (0, 3)}, "resnet18", "The head fc has several linear lay"),
        (
            {"args": argparse.Namespace(lr=1)},
            "resnet18",
            r"more than tensors: .* run code .* save model.state_dict\(\)",
        ),
    ],
)
def test_checkpoints_that_do_not_fit_are_named(content: object, architecture: str, message: str, tmp_path: Path):
    with pytest.raises(AimonkError, match=message):
        convert_checkpoint(save(content, tmp_path), architecture)


def test_another_number_of_attributes_is_refused_and_a_damaged_file_named(tmp_path: Path, capsys):
    path = save(RESNET, tmp_path)
    with pytest.raises(AimonkError, match="has 4 outputs but 2 attributes were named: a, b"):
        convert_checkpoint(path, "resnet18", ["a", "b"])
    path.write_bytes(path.read_bytes()[:20_000])
    assert main(command(path)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"aimonk-hf: {path} is no PyTorch checkpoint, or damaged")
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()
