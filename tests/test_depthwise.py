"""Depthwise convolutions in bf16: torch's values, and its gradients within what bf16 can tell apart."""

import pytest
import timm
import torch
from torch import Tensor
from torch.nn import functional

from aimonk_hf.training import depthwise
from aimonk_hf.training.depthwise import DepthwiseGradients

CASES = [
    # channels, height, width, filter, stride, padding
    (8, 12, 12, 3, 2, 1),
    (8, 13, 10, 3, 2, 1),
    (8, 14, 11, 5, 2, 2),
    (8, 12, 12, 3, 1, 1),
    (8, 13, 13, 3, 2, 0),
    (8, 16, 15, 4, 3, 1),
    (8, 9, 12, (3, 5), (2, 1), (1, 2)),
]


def convolve(case: tuple, memory_format: torch.memory_format, bias: bool, faster: bool) -> tuple[Tensor, ...]:
    channels, height, width, size, stride, padding = case
    height_width = (size, size) if isinstance(size, int) else size
    random = torch.Generator().manual_seed(0)
    pixels = (
        torch.randn(3, channels, height, width, generator=random)
        .contiguous(memory_format=memory_format)
        .requires_grad_()
    )
    weight = torch.randn(channels, 1, *height_width, generator=random).requires_grad_()
    shift = torch.randn(channels, generator=random).requires_grad_() if bias else None
    with torch.autocast("cpu", torch.bfloat16):
        if faster:
            with DepthwiseGradients():
                made = functional.conv2d(pixels, weight, shift, stride, padding, 1, channels)
        else:
            made = functional.conv2d(pixels, weight, shift, stride, padding, 1, channels)
    wanted = [pixels, weight] + [shift] * bias
    return made, *torch.autograd.grad(made, wanted, torch.randn(made.shape, generator=random).to(made.dtype))


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_torch(case: tuple, bias: bool, memory_format: torch.memory_format) -> None:
    for own, torchs in zip(
        convolve(case, memory_format, bias, True), convolve(case, memory_format, bias, False), strict=True
    ):
        assert own.dtype == torchs.dtype
        assert own.shape == torchs.shape
        assert torch.allclose(own.float(), torchs.float(), rtol=0.02, atol=0.02 * float(torchs.abs().max()))


def gradients(
    name: str, faster: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Tensor], int]:
    calls = []
    real = depthwise._input_gradient
    monkeypatch.setattr(depthwise, "_input_gradient", lambda *values: calls.append(1) or real(*values))
    torch.manual_seed(0)
    # .eval(): batch norms that count their batch cancel most of their own weights' gradients, and what is left is
    # bf16's noise
    network = timm.create_model(name, num_classes=3).eval().to(memory_format=torch.channels_last)
    pixels = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1)).contiguous(
        memory_format=torch.channels_last
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        if faster:
            with DepthwiseGradients():
                logits = network(pixels)
        else:
            logits = network(pixels)
    logits.float().square().sum().backward()
    return {key: value.grad for key, value in network.named_parameters()}, len(calls)


def test_a_network_gets_the_gradients_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    own, calls = gradients("mobilenetv2_035", True, torch.bfloat16, monkeypatch)
    torchs, none = gradients("mobilenetv2_035", False, torch.bfloat16, monkeypatch)
    assert (calls, none) == (17, 0)
    for name, gradient in own.items():
        close = functional.cosine_similarity(gradient.flatten(), torchs[name].flatten(), dim=0)
        assert float(close) > 0.99, name


def test_float32_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    own, calls = gradients("mobilenetv2_035", True, torch.float32, monkeypatch)
    torchs, _ = gradients("mobilenetv2_035", False, torch.float32, monkeypatch)
    assert calls == 0
    assert all(torch.equal(own[name], torchs[name]) for name in own)
