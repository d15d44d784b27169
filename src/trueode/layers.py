"""A vector field described as a stack of matrix layers: what fields tell solvers that know a faster
way than calling them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from trueode.catalog import ACTIVATIONS

if TYPE_CHECKING:
    from torch import Tensor


@cache
def activations(name: str) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """An activation of ``catalog.ACTIVATIONS``, and a form of it that may overwrite its input."""
    import torch
    from torch.nn import functional

    known = ACTIVATIONS[name]
    function, overwriting = (
        getattr(torch, each, None) or getattr(functional, each)
        for each in (known.function, known.overwriting)
    )
    return function, overwriting


class Layer(NamedTuple):
    """One layer ``activation(weight @ x + bias + t * time_weight)`` on rows ``x``.

    A state of ``width`` numbers is read as ``width / in`` rows of ``in`` numbers, so that a
    pointwise (kernel 1) convolution over a channels-last signal is one small matrix applied to
    every row. A wider convolution has a matrix for each of its taps: row ``r`` becomes the sum over
    them of ``weight[..., tap] @ x[r + tap - taps // 2]``, without those rows that there are not.

    Attributes:
        weight: ``(out, in)`` or ``(out, in, taps)`` with an odd number of taps, as
            `torch.nn.Linear` and `torch.nn.Conv1d` hold it: their parameters are taken as they are,
            without a view that autograd would have to record.
        bias: ``(out,)``.
        activation: a name of ``catalog.ACTIVATIONS``, or ``"identity"``.
        time_weight: ``(out,)``, or None when the layer does not see the time.
    """

    weight: Tensor
    bias: Tensor
    activation: str
    time_weight: Tensor | None = None

    @property
    def taps(self) -> int:
        """How many rows a row of the output sees."""
        return self.weight.shape[2] if self.weight.dim() == 3 else 1

    @property
    def matrix(self) -> Tensor:
        """``(taps * in, out)``, by which a row and its neighbours side by side are multiplied from
        the right.
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
            ``(batch, length, channels)``; otherwise on the state flattened as it is.
    """

    layers: tuple[Layer, ...]
    channels_last: bool = False

    def widths(self, width: int) -> list[int]:
        """How many numbers enter each of the layers for a state of ``width`` numbers."""
        widths = [width]
        for layer in self.layers[:-1]:
            fan_out, fan_in, *_ = layer.weight.shape
            widths.append(widths[-1] // fan_in * fan_out)
        return widths
