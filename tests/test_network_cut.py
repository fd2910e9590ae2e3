"""A network cut in two gives the same logits, or is left whole."""

import pytest
import timm
import torch
from torch import nn

from aimonk_hf.training.freezing import freeze_parameters
from aimonk_hf.training.network_cut import cut_frozen, cut_head


def network(name: str, freeze: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3).eval()
    freeze_parameters(model, freeze)
    return model, torch.randn(2, 3, 64, 64)


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_efficientnet", "test_convnext", "test_byobnet", "mobilenetv3_small_050"]
)
@pytest.mark.parametrize("freeze", ["first-0", "first-2", "except-last-1", "backbone"])
def test_both_parts_together_give_the_networks_logits(name: str, freeze: str) -> None:
    model, pixels = network(name, freeze)
    cut = cut_frozen(model, pixels)
    assert cut is not None
    others = torch.randn(3, 3, 96, 96)  # another size and number than it was tried on
    with torch.inference_mode():
        features = cut.frozen(model)(others)
        torch.testing.assert_close(cut.trained(model)(features), model(others))
    assert features.shape[1] == cut.shape[0]
    untouched = timm.create_model(name, num_classes=3)
    assert [*model.state_dict()] == [*untouched.state_dict()]


def test_gradients_of_the_second_part_are_those_of_the_whole() -> None:
    model, pixels = network("test_efficientnet", "first-2")
    cut = cut_frozen(model, pixels)
    assert cut is not None
    found = []
    for compute in (model, lambda values: cut.trained(model)(cut.frozen(model)(values))):
        model.zero_grad()
        compute(pixels).square().sum().backward()
        found.append({name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()})
    assert {name for name, gradient in found[0].items() if gradient is not None} == {
        name for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    for name, gradient in found[0].items():
        if gradient is not None:
            torch.testing.assert_close(found[1][name], gradient)


def test_a_cut_serves_a_copy_with_other_weights() -> None:
    model, pixels = network("test_resnet", "first-2")
    cut = cut_frozen(model, pixels)
    assert cut is not None
    torch.manual_seed(1)
    other = timm.create_model("test_resnet", num_classes=3).eval()
    with torch.inference_mode():
        torch.testing.assert_close(cut.trained(other)(cut.frozen(other)(pixels)), other(pixels))
        assert not torch.allclose(other(pixels), model(pixels), atol=1e-3)


@pytest.mark.parametrize(
    ("name", "freeze"),
    [
        ("test_vit", "first-2"),
        ("densenet121", "first-3"),
        ("test_resnet", "conv1+bn1+layer1+layer2.0.conv1"),
        ("test_resnet", "none"),
    ],
)
def test_what_is_no_chain_of_layers_or_not_frozen_is_not_cut(name: str, freeze: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3).eval()
    freeze_parameters(model, freeze)
    pixels = torch.randn(2, 3, *model.pretrained_cfg["input_size"][1:])
    before = model(pixels)
    assert cut_frozen(model, pixels) is None
    torch.testing.assert_close(model(pixels), before)  # nothing is left of the attempt


def test_a_head_of_more_than_a_linear_layer_is_not_cut() -> None:
    assert cut_head(*heads("test_vit")) is not None
    model, rate, pixels = heads("test_vit")
    model.head = nn.Sequential(nn.Linear(64, 3), nn.ReLU())
    assert cut_head(model, rate, pixels) is None


def heads(name: str) -> tuple[nn.Module, float, torch.Tensor]:
    model = timm.create_model(name, num_classes=3).eval()
    return model, 0.2, torch.randn(2, 3, *model.pretrained_cfg["input_size"][1:])
