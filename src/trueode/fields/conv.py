"""The convolutional fields of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from trueode.errors import UsageError
from trueode.fields.plain import append_time, check_activation, is_plain
from trueode.layers import Layer, LayerStack, activations


class ConvField(nn.Module):
    """``f(t, z)`` = three convolutions, of width 1 (c → C), 3 (C → C) and 1 (C → c), with
    activations between them.

    Zero padding keeps the shape. Source: ``simple_odenet`` (signals) and ``odenet`` (images) of
    Ott, Katiyar, Hennig & Tiemann, ICLR 2021.

    Args:
        channels: c, the channels of the state.
        hidden: C, the hidden channels.
        dim: 1 for signals ``(batch, c, length)``, 2 for images ``(batch, c, height, width)``.
        act: a name of ``catalog.ACTIVATIONS``.
        time_dependent: whether the time enters the first layer as one more channel.
    """

    def __init__(
        self, channels: int, hidden: int, dim: int, act: str = "relu", time_dependent: bool = False
    ) -> None:
        super().__init__()
        if dim not in (1, 2):
            raise UsageError(f"A ConvField has dim = 1 (signals) or 2 (images), not {dim!r}.")
        conv = nn.Conv1d if dim == 1 else nn.Conv2d
        self.channels = channels
        self.dim = dim
        self.act = check_activation(act)
        self.time_dependent = time_dependent
        self.conv1 = conv(channels + time_dependent, hidden, 1)
        self.conv2 = conv(hidden, hidden, 3, padding=1)
        self.conv3 = conv(hidden, channels, 1)
        self._built = self._geometry()
        if dim == 2:
            # CPUs (oneDNN) convolve fastest in this layout; others copy the weights at every call
            self.to(memory_format=torch.channels_last)

    def extra_repr(self) -> str:
        return f"act={self.act}, time_dependent={self.time_dependent}"

    def _geometry(self) -> list[object]:
        """The settings of the convolutions, which change if one of them is replaced."""
        return [
            (m.kernel_size, m.stride, m.padding, m.dilation, m.groups, m.padding_mode)
            for m in self.children()
        ]

    def _is_plain(self) -> bool:
        return is_plain(self, ConvField, nn.Conv1d if self.dim == 1 else nn.Conv2d)

    def forward(self, t: float | Tensor, z: Tensor) -> Tensor:
        """Compute the field.

        Args:
            t: the time: a number, or one for each sample, ``(batch, 1, …)``; ignored by an
                autonomous field.
            z: states ``(batch, c, length)`` or ``(batch, c, height, width)``; images are fastest in
                ``torch.channels_last``, and keep that layout.

        Returns:
            dz/dt, of the shape of ``z``.
        """
        act = activations(self.act)[self._is_plain()]
        x = append_time(t, z) if self.time_dependent else z
        if self.dim == 2 and x.shape[1] == 1:
            # With one channel both layouts have the same memory; these strides name channels_last.
            x = x.reshape(x.shape[0], *x.shape[2:], 1).permute(0, 3, 1, 2)
        x = act(self.conv1(x))
        x = act(self.conv2(x))
        return self.conv3(x)  # type: ignore[no-any-return]

    def flops(self, sample_shape: Sequence[int]) -> int:
        """Floating point operations of one evaluation on one sample ``(c, …)``: two per weight and
        position.
        """
        return (
            2
            * prod(sample_shape[1:])
            * sum(m.weight.numel() for m in (self.conv1, self.conv2, self.conv3))
        )

    def layer_stack(self, state_shape: Sequence[int]) -> LayerStack | None:
        """The field as layers for states ``(batch, c, length)`` or ``(batch, c, height, width)``;
        None if calling the field does more than this class defines.
        """
        if (
            len(state_shape) != 2 + self.dim
            or not self._is_plain()
            or self._built != self._geometry()
        ):
            return None
        (w1, b1), (w2, b2), (w3, b3) = (
            (conv.weight, conv.bias) for conv in (self.conv1, self.conv2, self.conv3)
        )
        if (
            state_shape[1] != self.channels
            or 0 in state_shape[2:]
            or b1 is None
            or b2 is None
            or b3 is None
        ):
            return None
        time_weight = None
        if self.time_dependent:
            w1, time_weight = w1[:, :-1], w1[:, -1].flatten()
        layers = (
            Layer(w1, b1, self.act, time_weight),
            Layer(w2, b2, self.act),
            Layer(w3, b3, "identity"),
        )
        image = (state_shape[2], state_shape[3]) if self.dim == 2 else None
        return LayerStack(layers, channels_last=True, image=image)
