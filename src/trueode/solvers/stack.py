"""Evaluation of a field given as a stack of matrix layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from trueode.layers import Layer, LayerStack
from trueode.solvers.step import Field

aten = torch.ops.aten
LEAK = 0.01  # torch's default slope of leaky_relu

# One matrix for all rows beats a convolution of three taps: with no more rows than taps it has no more entries than the
# convolution has products, and up to this width (rows x out) the smaller overhead outweighs them (measured).
WIDEST_DENSE = 256


class Activation(NamedTuple):
    """An activation, its in-place or out-of-place form, and its derivative.

    Attributes:
        apply: differentiable form.
        write: ``write(x, out)``; ``x`` and ``out`` are the same tensor when ``from_output``.
        pull_back: ``pull_back(gradient, saved, out)`` writes the gradient of the input; ``saved`` is the output when
            ``from_output``, otherwise the input.
        from_output: whether the derivative is a function of the output, so that the input need not be kept.
    """

    apply: Callable[[Tensor], Tensor]
    write: Callable[[Tensor, Tensor], Any]
    pull_back: Callable[[Tensor, Tensor, Tensor], Any]
    from_output: bool


ACTIVATIONS = {
    "identity": Activation(lambda x: x, lambda x, out: x, lambda g, y, out: out.copy_(g), True),
    "relu": Activation(
        torch.relu,
        lambda x, out: x.relu_(),
        lambda g, y, out: aten.threshold_backward.grad_input(g, y, 0, grad_input=out),
        True,
    ),
    "lrelu": Activation(
        partial(F.leaky_relu, negative_slope=LEAK),
        lambda x, out: F.leaky_relu_(x, LEAK),
        lambda g, y, out: aten.leaky_relu_backward.grad_input(g, y, LEAK, True, grad_input=out),
        True,
    ),
    "sigmoid": Activation(
        torch.sigmoid,
        lambda x, out: x.sigmoid_(),
        lambda g, y, out: aten.sigmoid_backward.grad_input(g, y, grad_input=out),
        True,
    ),
    "tanh": Activation(
        torch.tanh,
        lambda x, out: x.tanh_(),
        lambda g, y, out: aten.tanh_backward.grad_input(g, y, grad_input=out),
        True,
    ),
    "silu": Activation(
        F.silu,
        lambda x, out: aten.silu.out(x, out=out),
        lambda g, x, out: aten.silu_backward.grad_input(g, x, grad_input=out),
        False,
    ),
    "softplus": Activation(
        F.softplus,
        lambda x, out: aten.softplus.out(x, out=out),
        lambda g, x, out: aten.softplus_backward.grad_input(g, x, 1, 20, grad_input=out),
        False,
    ),
    "gelu": Activation(
        F.gelu,
        lambda x, out: aten.gelu.out(x, out=out),
        lambda g, x, out: aten.gelu_backward.grad_input(g, x, grad_input=out),
        False,
    ),
}


def shift(bias: Tensor, time_weight: Tensor | None, t: Any, rows: int) -> Tensor:
    """``bias + t time_weight``; a time per sample, ``(batch, 1)``, is repeated for the rows of each sample."""
    if time_weight is None:
        return bias
    if isinstance(t, Tensor) and t.dim():
        return bias + t.view(-1, 1).repeat_interleave(rows, dim=0) * time_weight
    shifted: Tensor = bias + t * time_weight
    return shifted


def stack_field(stack: LayerStack) -> Field:
    """The field of a stack on states ``(batch, width)``, in ordinary differentiable operations."""
    layers = stack.layers

    def field(t: Tensor, z: Tensor) -> Tensor:
        x = z
        for layer in layers:
            fan_out, fan_in, *_ = layer.weight.shape
            per_sample = x.shape[1] // fan_in
            rows = x.reshape(x.shape[0] * per_sample, fan_in)
            if layer.taps > 1:
                rows = _windows(rows, per_sample, layer.taps)
            rows = torch.addmm(shift(layer.bias, layer.time_weight, t, per_sample), rows, layer.matrix)
            if layer.activation != "identity":
                rows = ACTIVATIONS[layer.activation].apply(rows)
            x = rows.view(x.shape[0], per_sample * fan_out)
        return x

    return field


def _windows(x: Tensor, per_sample: int, taps: int) -> Tensor:
    """Rows ``(batch * per_sample, in)`` with their neighbours in the same sample beside them, ``(…, taps * in)``."""
    padded = F.pad(x.view(-1, per_sample, x.shape[1]), (0, 0, taps // 2, taps // 2))
    return torch.cat([padded[:, i : i + per_sample] for i in range(taps)], dim=2).flatten(0, 1)


def dense(stack: LayerStack, width: int) -> LayerStack | None:
    """The stack for states of a width, its weights matrices, those of convolutions too; None where calling the field takes less time."""
    layers = []
    for layer in stack.layers:
        fan_out, fan_in, *_ = layer.weight.shape
        rows = width // fan_in
        if layer.taps > 1:
            if not (rows <= layer.taps or rows * fan_out <= WIDEST_DENSE):
                return None
            time_weight = None if layer.time_weight is None else layer.time_weight.repeat(rows)
            layer = Layer(dense_convolution(layer.weight, rows), layer.bias.repeat(rows), layer.activation, time_weight)
        elif layer.weight.dim() == 3:
            layer = layer._replace(weight=layer.weight.squeeze(2))
        layers.append(layer)
        width = rows * fan_out
    return stack._replace(layers=tuple(layers))


@cache
def _reach(rows: int, taps: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``(rows * rows, taps)``: 1 where row j of the input reaches row m of the output through a tap."""
    with torch.inference_mode(False):  # it is kept, also for a use with gradients
        j, m, tap = torch.meshgrid(torch.arange(rows), torch.arange(rows), torch.arange(taps), indexing="ij")
        return (tap == j - m + taps // 2).to(dtype).view(-1, taps).to(device)


def dense_convolution(weight: Tensor, rows: int) -> Tensor:
    """A convolution along the rows as one matrix on samples of so many of them.

    Args:
        weight: ``(out, in, taps)``, as in `Layer`.
        rows: of a sample.

    Returns:
        ``(rows * out, rows * in)``; block (m, j) is ``weight[..., j - m + taps // 2]``.
    """
    fan_out, fan_in, taps = weight.shape
    blocks = _reach(rows, taps, weight.dtype, weight.device) @ weight.permute(2, 0, 1).reshape(taps, -1)
    return blocks.view(rows, rows, fan_out, fan_in).permute(1, 2, 0, 3).reshape(rows * fan_out, rows * fan_in)
