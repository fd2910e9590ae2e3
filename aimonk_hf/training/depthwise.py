"""Faster gradients of depthwise convolutions in bf16 on a CPU, where oneDNN has no fast kernels (docs/SPEED.md)."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_weight
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode

Pair = tuple[int, int]


class DepthwiseGradients(TorchFunctionMode):
    """Compute depthwise convolutions in bf16 on the CPU with the same values and faster gradients, while entered."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Let everything pass but `conv2d` of one filter per channel."""
        if func is not functional.conv2d or kwargs or not _is_depthwise(*args):
            return func(*args, **(kwargs or {}))
        pixels, weight, bias, stride, padding, *_ = args
        convolved: Tensor = _Depthwise.apply(pixels.bfloat16(), weight.bfloat16(), _pair(stride), _pair(padding))
        return convolved if bias is None else convolved + bias.bfloat16()[:, None, None]


def _is_depthwise(
    pixels: Tensor,
    weight: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> bool:
    runs_in_bf16 = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    if not runs_in_bf16 or pixels.device.type != "cpu" or isinstance(padding, str):
        return False
    one_each = groups == weight.shape[0] == pixels.shape[1] and groups > 1
    fits = all(pad < size for pad, size in zip(_pair(padding), weight.shape[2:], strict=True))
    return one_each and fits and _pair(dilation) == (1, 1)


class _Depthwise(torch.autograd.Function):
    """conv2d with as many groups as channels, of pixels [N, C, H, W] and weights [C, 1, h, w], both bf16."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
        ctx.save_for_backward(pixels, weight)
        ctx.stride, ctx.padding = stride, padding
        return functional.conv2d(pixels, weight, None, stride, padding, 1, len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        given = (gradients[0], *ctx.saved_tensors, ctx.stride, ctx.padding)
        wanted = zip((_input_gradient, _weight_gradient), ctx.needs_input_grad, strict=False)
        return *(compute(*given) if needed else None for compute, needed in wanted), None, None


def _input_gradient(gradient: Tensor, pixels: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    """Spread the gradient with zeros between, so that the convolution that is left has stride 1."""
    around = [size - 1 - pad for size, pad in zip(weight.shape[2:], padding, strict=True)]
    if stride != (1, 1):
        sides = zip(pixels.shape[2:], weight.shape[2:], around, strict=True)
        size = [have + side - 1 - 2 * pad for have, side, pad in sides]
        channels_last = gradient.is_contiguous(memory_format=torch.channels_last)
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        spread = torch.empty((*pixels.shape[:2], *size), dtype=gradient.dtype, memory_format=memory_format).zero_()
        spread[:, :, :: stride[0], :: stride[1]] = gradient
        gradient = spread
    return functional.conv2d(gradient, weight.flip(2, 3), None, 1, around, 1, len(weight))


def _weight_gradient(gradient: Tensor, pixels: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    kind = torch.float32 if max(weight.shape[2:]) > 3 else torch.bfloat16  # small filters have a fast kernel
    shape, groups = list(weight.shape), len(weight)
    found: Tensor = conv2d_weight(pixels.to(kind), shape, gradient.to(kind), stride, padding, groups=groups)
    return found.to(weight.dtype)
