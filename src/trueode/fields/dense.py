"""The fully connected field of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from trueode.fields.plain import append_time, check_activation, is_plain
from trueode.layers import Layer, LayerStack, activations


class DenseField(nn.Module):
    """``f(t, z)`` = Linear (d → C), act, Linear (C → C), act, Linear (C → d) on each flattened
    sample.

    Source: ``linear_odenet`` of Ott, Katiyar, Hennig & Tiemann, ICLR 2021.

    Args:
        features: d, the numbers in one sample.
        hidden: C, the hidden units.
        act: a name of ``catalog.ACTIVATIONS``.
        time_dependent: whether the time enters the first layer as one more input.
    """

    def __init__(
        self, features: int, hidden: int, act: str = "relu", time_dependent: bool = False
    ) -> None:
        super().__init__()
        self.features = features
        self.act = check_activation(act)
        self.time_dependent = time_dependent
        self.linear1 = nn.Linear(features + time_dependent, hidden)
        self.linear2 = nn.Linear(hidden, hidden)
        self.linear3 = nn.Linear(hidden, features)

    def extra_repr(self) -> str:
        return f"act={self.act}, time_dependent={self.time_dependent}"

    def forward(self, t: float | Tensor, z: Tensor) -> Tensor:
        """Compute the field.

        Args:
            t: the time: a number, or one for each sample, ``(batch, 1, …)``; ignored by an
                autonomous field.
            z: states ``(batch, …)`` of d numbers each.

        Returns:
            dz/dt, of the shape of ``z``.
        """
        act = activations(self.act)[is_plain(self, DenseField, nn.Linear)]
        x = z.flatten(1)
        if self.time_dependent:
            x = append_time(t.flatten(1) if isinstance(t, Tensor) and t.dim() > 1 else t, x)
        x = act(self.linear1(x))
        x = act(self.linear2(x))
        return self.linear3(x).view(z.shape)  # type: ignore[no-any-return]

    def flops(self, sample_shape: Sequence[int]) -> int:
        """Floating point operations of one evaluation on one sample: two for each weight."""
        return 2 * sum(m.weight.numel() for m in (self.linear1, self.linear2, self.linear3))

    def layer_stack(self, state_shape: Sequence[int]) -> LayerStack | None:
        """The field's layers as matrices for states ``(batch, …)``; None if calling the field does
        more than this class defines.
        """
        if not is_plain(self, DenseField, nn.Linear) or prod(state_shape[1:]) != self.features:
            return None
        if any(layer.bias is None for layer in (self.linear1, self.linear2, self.linear3)):
            return None
        first, time_weight = self.linear1.weight, None
        if self.time_dependent:
            first, time_weight = first[:, :-1], first[:, -1]
        return LayerStack(
            (
                Layer(first, self.linear1.bias, self.act, time_weight),
                Layer(self.linear2.weight, self.linear2.bias, self.act),
                Layer(self.linear3.weight, self.linear3.bias, "identity"),
            )
        )
