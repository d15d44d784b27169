"""A vector field described as a stack of matrix layers, which solvers evaluate faster than by
calling the field.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from trueode.catalog import ACTIVATIONS

if TYPE_CHECKING:
    from torch import Tensor


@cache
def activations(name: str) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """An activation of ``catalog.ACTIVATIONS`` or the cube, and a form of it that may overwrite its
    input.
    """
    if name == "cube":
        return _cube, _cube
    import torch
    from torch.nn import functional

    known = ACTIVATIONS[name]
    function, overwriting = (
        getattr(torch, each, None) or getattr(functional, each)
        for each in (known.function, known.overwriting)
    )
    return function, overwriting


def _cube(x: Tensor) -> Tensor:
    return x**3


class Layer(NamedTuple):
    """One layer ``activation(weight @ x + bias + t * time_weight)`` on rows ``x``.

    A state of ``width`` numbers is read as ``width / in`` rows of ``in`` numbers, so that a
    pointwise (kernel 1) convolution over a channels-last signal is one small matrix applied to
    every row. A wider convolution has one matrix for each tap: row ``r`` becomes the sum over taps
    of ``weight[..., tap] @ x[r + tap - taps // 2]``, with zeros for missing rows.

    Attributes:
        weight: ``(out, in)`` or ``(out, in, taps)`` with an odd number of taps, in the layout of
            `torch.nn.Linear` and `torch.nn.Conv1d`; on images ``(out, in, 1, 1)`` or
            ``(out, in, 3, 3)``, that of `torch.nn.Conv2d` with zero padding. Their parameters are
            used directly, without a view for autograd to record.
        bias: ``(out,)``.
        activation: a name of ``catalog.ACTIVATIONS``, ``"cube"`` or ``"identity"``.
        time_weight: ``(out,)``, or None if the layer does not depend on the time.
    """

    weight: Tensor
    bias: Tensor
    activation: str
    time_weight: Tensor | None = None

    @property
    def taps(self) -> int:
        """The number of input rows, or pixels, on which an output depends."""
        return prod(self.weight.shape[2:])

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors of the layer."""
        return [x for x in (self.weight, self.bias, self.time_weight) if x is not None]

    @property
    def matrix(self) -> Tensor:
        """The weights as ``(taps * in, out)``, to multiply a row and its neighbours side by side
        from the right.
        """
        return (
            self.weight.t()
            if self.weight.dim() == 2
            else self.weight.permute(2, 1, 0).flatten(0, 1)
        )


class LayerStack(NamedTuple):
    """The layers of a field, first to last.

    Attributes:
        layers: the layers; the last one has activation ``"identity"``.
        channels_last: whether the layers act on the state ``(batch, channels, length)`` laid out as
            ``(batch, length, channels)``; otherwise they act on the flattened state.
        lead: the number of leading dimensions of a state that count samples.
        image: height and width, if the layers act on images ``(batch, channels, height, width)``,
            laid out with the channels last.
        coupling: if not None, a sample ends with one more number l, and the field is that of the
            layers for the others and l' = -div f, computed with this matrix; see
            `trueode.solvers.stack.with_divergence`.
    """

    layers: tuple[Layer, ...]
    channels_last: bool = False
    lead: int = 1
    image: tuple[int, int] | None = None
    coupling: Tensor | None = None

    @property
    def tensors(self) -> list[Tensor | None]:
        """Weight, bias and time weight of each layer; the coupling counts as one more layer."""
        found = [x for each in self.layers for x in (each.weight, each.bias, each.time_weight)]
        return found if self.coupling is None else [*found, self.coupling, None, None]

    def with_tensors(self, tensors: Sequence[Any]) -> LayerStack:
        """The stack with other tensors, in the order of `tensors`."""
        triples = zip(tensors[::3], tensors[1::3], tensors[2::3], strict=True)
        layers = tuple(
            each._replace(weight=w, bias=b, time_weight=t)
            for each, (w, b, t) in zip(self.layers, triples, strict=False)
        )
        coupling = None if self.coupling is None else tensors[-3]
        return self._replace(layers=layers, coupling=coupling)

    def width(self, shape: Sequence[int]) -> int:
        """The numbers in one sample of a state of a shape."""
        return prod(shape[self.lead :])

    def widths(self, shape: Sequence[int]) -> list[int]:
        """The number of inputs of each layer, for a state of a shape."""
        widths = [self.width(shape) - (self.coupling is not None)]
        for layer in self.layers[:-1]:
            fan_out, fan_in, *_ = layer.weight.shape
            widths.append(widths[-1] // fan_in * fan_out)
        return widths
