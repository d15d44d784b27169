"""Evaluation of a field given as a stack of matrix layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from math import pi, sqrt
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trueode.layers import Layer, LayerStack, activations
from trueode.solvers.step import Field

# One matrix for all rows is faster than a convolution of three taps in two cases: with no more rows
# than taps it has no more entries than the convolution has products, and up to this width (rows x
# out) its smaller overhead outweighs the additional entries (measured).
WIDEST_DENSE = 256


def shift(bias: Tensor, time_weight: Tensor | None, t: Any, rows: int) -> Tensor:
    """``bias + t time_weight``; times per sample, ``(batch, 1)``, are repeated for the rows of a
    sample.
    """
    if time_weight is None:
        return bias
    if isinstance(t, Tensor) and t.dim():
        return bias + t.view(-1, 1).repeat_interleave(rows, dim=0) * time_weight
    shifted: Tensor = bias + t * time_weight
    return shifted


def stack_field(stack: LayerStack) -> Field:
    """The field of a stack on states ``(batch, width)``, by ordinary differentiable operations."""
    layers = stack.layers
    if stack.image is not None:
        return partial(_on_images, stack)
    if stack.coupling is not None:
        return partial(_diverging, stack, stack.coupling)

    def field(t: Tensor, z: Tensor) -> Tensor:
        x = z
        for layer in layers:
            fan_out, fan_in, *_ = layer.weight.shape
            per_sample = x.shape[1] // fan_in
            rows = x.reshape(x.shape[0] * per_sample, fan_in)
            if layer.taps > 1:
                rows = _windows(rows, per_sample, layer.taps)
            rows = torch.addmm(
                shift(layer.bias, layer.time_weight, t, per_sample), rows, layer.matrix
            )
            if layer.activation != "identity":
                rows = activations(layer.activation)[0](rows)
            x = rows.view(x.shape[0], per_sample * fan_out)
        return x

    return field


_SLOPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "identity": lambda a, y: torch.ones_like(a),
    "relu": lambda a, y: (a > 0).to(a.dtype),
    "lrelu": lambda a, y: 0.01 + 0.99 * (a > 0).to(a.dtype),
    "sigmoid": lambda a, y: y * (1 - y),
    "tanh": lambda a, y: 1 - y * y,
    "silu": lambda a, y: a.sigmoid() * (1 + a - y),
    "softplus": lambda a, y: torch.where(a > 20, 1.0, a.sigmoid()),
    "gelu": lambda a, y: torch.special.ndtr(a) + a * (-a * a / 2).exp() / sqrt(2 * pi),
    "cube": lambda a, y: 3 * a * a,
}
"""The derivatives of the activations y at their inputs a, differentiable once more."""


def with_divergence(stack: LayerStack, width: int) -> LayerStack | None:
    """The stack of f with its divergence, for states ``(batch, width + 1)``: (z, l)' = (f, -div f).

    With weights W1, W2, … and slopes s = act'(a) of the hidden units, the divergence is the trace
    of W1 without a hidden layer; c s1, c_j = (W1 W2)_jj, with one; s2ᵀ C s1, Cᵀ = W2ᵀ ∘ W1 W3, with
    two, by the cyclic property of the trace. The coupling of the stack is C, or c as a row.

    Args:
        stack: the layers of f on states ``(batch, width)``.
        width: the numbers in one of these states.

    Returns:
        The stack; None if there are more hidden layers, or layers that do not act on a whole sample
        as one matrix.
    """
    weights = [layer.weight.flatten(1) for layer in stack.layers]
    fitting = [width, *(weight.shape[0] for weight in weights[:-1])]
    if len(weights) > 3 or any(layer.taps > 1 for layer in stack.layers):
        return None
    if [weight.shape[1] for weight in weights] != fitting:
        return None
    if len(weights) == 1:
        coupling = weights[0].diagonal()[None]
    elif len(weights) == 2:
        coupling = (weights[1] * weights[0].t()).sum(0, keepdim=True)
    else:
        coupling = weights[1] * (weights[0] @ weights[2]).t()
    layers = zip(stack.layers, weights, strict=True)
    return LayerStack(tuple(x._replace(weight=w) for x, w in layers), coupling=coupling)


def _diverging(stack: LayerStack, coupling: Tensor, t: Tensor, state: Tensor) -> Tensor:
    """The field of a stack with its divergence."""
    x, slopes = state[:, :-1], []
    for layer in stack.layers:
        a = torch.addmm(shift(layer.bias, layer.time_weight, t, 1), x, layer.matrix)
        x = a if layer.activation == "identity" else activations(layer.activation)[0](a)
        slopes.append(_SLOPES[layer.activation](a, x))
    coupled = slopes[0] @ coupling.t()
    if len(slopes) == 3:
        coupled = coupled * slopes[1]
    return torch.cat([x, -coupled.sum(1, keepdim=True)], dim=1)


def _on_images(stack: LayerStack, t: Tensor, z: Tensor) -> Tensor:
    assert stack.image is not None
    # contiguous pixels, which is how convolutions with the channels last are fastest
    x = z.view(len(z), *stack.image, -1).permute(0, 3, 1, 2)
    for layer in stack.layers:
        bias = layer.bias
        if layer.time_weight is not None and t.dim():  # a time for each sample
            times = t.view(-1, 1, 1, 1) * layer.time_weight.view(-1, 1, 1)
            x = F.conv2d(x, layer.weight, bias, padding="same") + times
        else:
            x = F.conv2d(x, layer.weight, shift(bias, layer.time_weight, t, 1), padding="same")
        if layer.activation != "identity":
            x = activations(layer.activation)[0](x)
    return x.permute(0, 2, 3, 1).reshape(z.shape)


def _windows(x: Tensor, per_sample: int, taps: int) -> Tensor:
    """Rows ``(batch * per_sample, in)`` joined with their neighbours in the same sample,
    ``(…, taps * in)``.
    """
    padded = F.pad(x.view(-1, per_sample, x.shape[1]), (0, 0, taps // 2, taps // 2))
    return torch.cat([padded[:, i : i + per_sample] for i in range(taps)], dim=2).flatten(0, 1)


def is_short(stack: LayerStack, width: int) -> bool:
    """Whether the convolutions of a stack are faster as one matrix each, on states of a width."""
    for layer in stack.layers:
        fan_out, fan_in, *_ = layer.weight.shape
        rows = width // fan_in
        if layer.taps > 1 and not (rows <= layer.taps or rows * fan_out <= WIDEST_DENSE):
            return False
        width = rows * fan_out
    return True


def dense(stack: LayerStack, width: int, *, pointwise: bool = False) -> LayerStack:
    """The stack for states of a width with all weights as matrices, also those of convolutions;
    ``pointwise``: one matrix for all rows of a sample, also in pointwise layers.
    """
    layers = []
    for layer in stack.layers:
        fan_out, fan_in, *_ = layer.weight.shape
        rows = width // fan_in
        if layer.taps > 1 or (pointwise and rows > 1):
            time_weight = None if layer.time_weight is None else layer.time_weight.repeat(rows)
            layer = Layer(
                dense_convolution(layer.weight.reshape(fan_out, fan_in, -1), rows),
                layer.bias.repeat(rows),
                layer.activation,
                time_weight,
            )
        elif layer.weight.dim() == 3:
            layer = layer._replace(weight=layer.weight.squeeze(2))
        layers.append(layer)
        width = rows * fan_out
    return stack._replace(layers=tuple(layers))


@cache
def _reach(rows: int, taps: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``(rows * rows, taps)``: 1 where row j of the input reaches row m of the output through a
    tap.
    """
    with torch.inference_mode(False):  # later uses of the cached result may need gradients
        places = (torch.arange(n, device="cpu") for n in (rows, rows, taps))
        j, m, tap = torch.meshgrid(*places, indexing="ij")
        return (tap == j - m + taps // 2).to(dtype).view(-1, taps).to(device)


def dense_convolution(weight: Tensor, rows: int) -> Tensor:
    """A convolution along the rows of a sample, as one matrix.

    Args:
        weight: ``(out, in, taps)``, as in `Layer`.
        rows: the number of rows of a sample.

    Returns:
        ``(rows * out, rows * in)``; block (m, j) is ``weight[..., j - m + taps // 2]``.
    """
    fan_out, fan_in, taps = weight.shape
    blocks = _reach(rows, taps, weight.dtype, weight.device) @ weight.permute(2, 0, 1).reshape(
        taps, -1
    )
    return (
        blocks.view(rows, rows, fan_out, fan_in)
        .permute(1, 2, 0, 3)
        .reshape(rows * fan_out, rows * fan_in)
    )
