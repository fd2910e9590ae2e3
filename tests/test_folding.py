"""Batch norms folded into convolutions: equal logits, an untouched original, and networks that cannot be folded."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from aimonk_hf import AimonkModel
from aimonk_hf.model import folding
from aimonk_hf.model.folding import LazilyFolded, fold_batch_norms


def lived_in(network: nn.Module) -> nn.Module:
    """The network in eval mode, its norms as if it had been trained: those of a fresh network change nothing."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    return network.eval()


def n_norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize(("architecture", "left"), [("mobilenetv2_035", 0), ("resnet18", 0), ("efficientnet_b0", 0), ("densenet121", 62)])
def test_folded_networks_have_equal_logits_and_the_original_is_untouched(architecture: str, left: int) -> None:
    network = lived_in(timm.create_model(architecture, num_classes=3, pretrained=False))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    pixels = torch.randn(2, 3, 64, 64)
    folded = fold_batch_norms(network, pixels)
    assert n_norms(folded) == left < n_norms(network)
    others = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(folded(others), network(others), rtol=1e-4, atol=1e-4)
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in [*network.modules(), *folded.modules()])


class Shared(nn.Module):
    """A convolution whose output goes into a norm and past it."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, pixels: Tensor) -> Tensor:
        found = self.convolution(pixels)
        return (self.norm(found) + found).mean((2, 3))


def test_a_convolution_that_others_use_too_is_left_alone() -> None:
    network = lived_in(Shared())
    assert fold_batch_norms(network, torch.randn(2, 3, 8, 8)) is network


@pytest.mark.parametrize("architecture", ["test_vit", "test_convnext"])
def test_networks_without_batch_norms_are_not_copied(architecture: str) -> None:
    network = timm.create_model(architecture, num_classes=3, pretrained=False).eval()
    assert fold_batch_norms(network, torch.randn(2, 3, 160, 160)) is network


def test_a_network_that_is_watched_computes_itself() -> None:
    network = lived_in(timm.create_model("test_resnet", num_classes=3, pretrained=False))
    hook = network.conv1.register_forward_hook(lambda *_: None)
    assert fold_batch_norms(network, torch.randn(2, 3, 64, 64)) is network
    hook.remove()
    assert fold_batch_norms(network, torch.randn(2, 3, 64, 64)) is not network


def test_the_copy_takes_over_when_enough_pictures_have_passed() -> None:
    network = lived_in(timm.create_model("test_resnet", num_classes=3, pretrained=False))
    lazily = LazilyFolded(network)
    pixels = torch.randn(folding.WORTHWHILE // 4, 3, 64, 64)
    used: list[nn.Module] = []
    with torch.inference_mode():
        wanted = network(pixels)
        for _ in range(6):
            torch.testing.assert_close(lazily(pixels), wanted, rtol=1e-4, atol=1e-4)
            used.append(lazily._network)
    assert used[:3] == [network] * 3
    assert used[3] is not network
    assert used[3:] == [used[3]] * 3, "one copy is made"


def test_a_folder_is_scored_by_the_copy_and_the_model_stays_as_it_is(
    tiny_model: AimonkModel, sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lived_in(tiny_model)
    paths = sorted((sample / "images").iterdir())[:24]
    before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    settings: list[dict[str, Any]] = [{}, {"tta": True}, {"workers": 1}]
    wanted = [[prediction.scores for _, prediction in tiny_model.stream(paths, **each)] for each in settings]
    folds: list[Any] = []
    monkeypatch.setattr(folding, "WORTHWHILE", 4)
    monkeypatch.setattr(folding, "fold_batch_norms", lambda *given: folds.append(fold_batch_norms(*given)) or folds[-1])
    for each, scores in zip(settings, wanted, strict=True):
        found = [prediction.scores for _, prediction in tiny_model.stream(paths, **each)]
        assert all(one == pytest.approx(other, abs=1e-5) for one, other in zip(found, scores, strict=True))
    assert len(folds) == 3
    assert all(n_norms(folded) == 0 for folded in folds)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_model.state_dict().items())
