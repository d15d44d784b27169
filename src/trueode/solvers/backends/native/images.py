"""Convolutions of images by the compiled kernel, with a quarter of the multiplications (Winograd's
minimal filtering).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trueode.solvers.backends import generic
from trueode.solvers.backends.native import library
from trueode.solvers.backends.native.library import Convolution
from trueode.solvers.gradients.replay import must_be_recorded
from trueode.solvers.integrate import Outcome
from trueode.solvers.problem import Problem

MULTIPLE = 16  # divides the numbers of channels: whole vectors of every instruction set
# with vectors of four numbers, PyTorch's convolutions, made for the processor, are faster
NARROW = "baseline"
FLOPS_EACH = 1e6  # the least work for which it is worth waking a thread

NAME = "it is called, and the compiled kernel computes its convolutions"


def accepts(problem: Problem) -> bool:
    """Whether the kernel can compute the field's convolutions, and is likely to be faster."""
    kernel = library.kernel()
    if kernel is None or kernel.name == NARROW or not hasattr(problem.field, "with_convolution"):
        return False
    return problem.field.with_convolution(convolve) is not None


def solve(problem: Problem) -> Outcome:
    """Solve a problem; see `trueode.solvers.backends`."""
    return generic.solve(by_kernel(problem))


def by_kernel(problem: Problem) -> Problem:
    """The same problem, with its convolutions by the kernel if that is likely to be faster."""
    field: Any = problem.field
    return problem.with_field(field.with_convolution(convolve)) if accepts(problem) else problem


def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``F.conv2d(x, weight, bias, padding=1)`` with 3 x 3 weights, differentiable; by the kernel if
    it can.

    In float32 the kernel's rounding error is about 1e-6 of the values, PyTorch's 2e-7.

    Args:
        x: ``(batch, in, height, width)``, fastest in ``torch.channels_last``.
        weight: ``(out, in, 3, 3)``.
        bias: ``(out,)``.

    Returns:
        ``(batch, out, height, width)``, in ``torch.channels_last`` if the kernel computed it.
    """
    if not is_served(x, weight, bias):
        return F.conv2d(x, weight, bias, padding=1)
    y: Tensor = _Convolution.apply(x, weight, bias)
    return y


def is_served(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether the kernel gives the same result as calling PyTorch."""
    tensors = (x, weight, bias)
    return (
        library.kernel() is not None
        and x.dtype in (torch.float32, torch.float64)
        and weight.shape[2:] == (3, 3)
        and weight.shape[0] % MULTIPLE == 0
        and weight.shape[1] % MULTIPLE == 0
        and all(
            t.dtype == x.dtype and t.device.type == "cpu" and t.numel() > 0 and not t.is_neg()
            for t in tensors
        )
        and all(type(t) in (Tensor, torch.nn.Parameter) for t in tensors)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch._C._is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and torch.autograd.forward_ad._current_level < 0
    )


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _convolved(x, weight.permute(2, 3, 1, 0), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        (g,) = gradients
        if must_be_recorded(gradients):
            mask = list(ctx.needs_input_grad)
            ones, sides = [1, 1], [len(weight)]
            found: tuple[Tensor | None, ...] = torch.ops.aten.convolution_backward(
                g, x, weight, sides, ones, ones, ones, False, [0, 0], 1, mask
            )
            return found
        g = g.contiguous(memory_format=torch.channels_last)
        back = (
            _convolved(g, weight.flip(2, 3).permute(2, 3, 0, 1), None)
            if ctx.needs_input_grad[0]
            else None
        )
        if not any(ctx.needs_input_grad[1:]):
            return back, None, None
        return back, *_gradients(x, g)


def _task(x: Tensor, fan_out: int, taps: int = 9) -> Convolution:
    """A convolution of images in the layout channels last."""
    batch, fan_in, height, width = x.shape
    threads = min(library.threads(), 1 + int(2 * taps * x.numel() * fan_out / FLOPS_EACH))
    return Convolution(batch, height, width, fan_in, fan_out, threads, x.data_ptr())


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve with weights ``(3, 3, in, out)``."""
    x, weight = (
        x.detach().contiguous(memory_format=torch.channels_last),
        weight.detach().contiguous(),
    )
    bias = None if bias is None else bias.detach().contiguous()
    shape = len(x), weight.shape[3], *x.shape[2:]
    y = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last, device="cpu")
    task = _task(x, weight.shape[3])
    task.weight, task.bias, task.y = (
        weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        y.data_ptr(),
    )
    _kernel().convolve(x.dtype == torch.float64, task)
    return y


def _gradients(x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the weights ``(out, in, 3, 3)`` and the bias."""
    x = x.detach().contiguous(memory_format=torch.channels_last)
    fan_in, fan_out = x.shape[1], g.shape[1]
    weight, bias = x.new_empty(3, 3, fan_in, fan_out), x.new_empty(fan_out)
    task = _task(x, fan_out)
    task.g, task.weight_gradient, task.bias_gradient = (
        g.data_ptr(),
        weight.data_ptr(),
        bias.data_ptr(),
    )
    _kernel().convolution_gradient(x.dtype == torch.float64, task)
    return weight.permute(3, 2, 0, 1), bias


def _kernel() -> library.Kernel:
    kernel = library.kernel()
    assert kernel is not None
    return kernel
