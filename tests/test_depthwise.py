"""Depthwise convolutions in bf16: torch's values, and its gradients within what bf16 can tell apart."""

from contextlib import nullcontext
from itertools import product

import pytest
import timm
import torch
from torch import Tensor
from torch.nn import functional

from aimonk_hf.training import depthwise
from aimonk_hf.training.depthwise import DepthwiseGradients

CASES = [
    # height, width, filter, stride, padding
    (12, 12, (3, 3), 2, 1),
    (13, 10, (3, 3), 2, 1),
    (14, 11, (5, 5), 2, 2),
    (12, 12, (3, 3), 1, 1),
    (13, 13, (3, 3), 2, 0),
    (16, 15, (4, 4), 3, 1),
    (9, 12, (3, 5), (2, 1), (1, 2)),
]
FORMATS = [torch.channels_last, torch.contiguous_format]


def convolve(case: tuple, memory_format: torch.memory_format, bias: bool, faster: bool) -> tuple[Tensor, ...]:
    """Return the outputs of a convolution of 8 channels, and the gradients of its inputs."""
    height, width, size, stride, padding = case
    random = torch.Generator().manual_seed(0)
    pixels = torch.randn(3, 8, height, width, generator=random).contiguous(memory_format=memory_format)
    wanted = [pixels.requires_grad_(), torch.randn(8, 1, *size, generator=random).requires_grad_()]
    wanted += [torch.randn(8, generator=random).requires_grad_()] * bias
    with torch.autocast("cpu", torch.bfloat16), DepthwiseGradients() if faster else nullcontext():
        made = functional.conv2d(*wanted, *[None] * (not bias), stride, padding, 1, 8)
    gradients = torch.autograd.grad(made, wanted, torch.randn(made.shape, generator=random).to(made.dtype))
    return made.detach(), *gradients


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_torch(case: tuple) -> None:
    for memory_format, bias in product(FORMATS, (False, True)):
        results = [convolve(case, memory_format, bias, faster) for faster in (True, False)]
        for own, torchs in zip(*results, strict=True):
            assert (own.dtype, own.shape) == (torchs.dtype, torchs.shape)
            assert torch.allclose(own.float(), torchs.float(), rtol=0.02, atol=0.02 * float(torchs.abs().max()))


@pytest.mark.parametrize("in_bf16", [True, False])
def test_a_network_gets_the_gradients_of_torch_and_float32_is_left_alone(
    in_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, gradients, real = [], [], depthwise._input_gradient
    monkeypatch.setattr(depthwise, "_input_gradient", lambda *values: calls.append(1) or real(*values))
    pixels = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    for context in (nullcontext(), DepthwiseGradients()):
        assert not calls
        torch.manual_seed(0)
        # .eval(): batch norms that count their batch cancel most of their own weights' gradients; what is left is noise
        network = timm.create_model("mobilenetv2_035", num_classes=3).eval().to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16), context:
            logits = network(pixels)
        logits.float().square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in network.named_parameters()})
    assert len(calls) == (17 if in_bf16 else 0)
    for name, own in gradients[1].items():
        close = functional.cosine_similarity(own.flatten(), gradients[0][name].flatten(), dim=0)
        assert float(close) > 0.99 if in_bf16 else torch.equal(own, gradients[0][name]), name
