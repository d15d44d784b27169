"""A vector field described as a stack of matrix layers: what fields tell solvers that know a faster way than calling them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Layer(NamedTuple):
    """One layer ``activation(x @ weight + bias + t * time_weight)`` on rows ``x``.

    A state of ``width`` numbers is read as ``width / in`` rows of ``in`` numbers, so that a pointwise (kernel 1)
    convolution over a channels-last signal is one small matrix applied to every position.

    Attributes:
        weight: ``(in, out)``.
        bias: ``(out,)``.
        activation: a name of ``catalog.ACTIVATIONS``, or ``"identity"``.
        time_weight: ``(out,)``, or None when the layer does not see the time.
    """

    weight: Tensor
    bias: Tensor
    activation: str
    time_weight: Tensor | None = None


class LayerStack(NamedTuple):
    """The layers of a field, first to last.

    Attributes:
        layers: the layers; the last one has activation ``"identity"``.
        channels_last: whether the layers act on the state ``(batch, channels, length)`` laid out as
            ``(batch, length, channels)``; otherwise on the state flattened as it is.
    """

    layers: tuple[Layer, ...]
    channels_last: bool = False
