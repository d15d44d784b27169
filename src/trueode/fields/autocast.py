"""A field computed in lower precision than its weights and its state."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from trueode.layers import LayerStack


class Autocast(nn.Module):
    """A field ``f(t, z)`` whose convolutions and matrix products use another floating point type.

    The derivative is returned in the type of the state, so solvers combine stages in that type.
    The weights are rounded again at each evaluation. This takes negligible time compared with
    convolutions, and the gradients of all evaluations are summed in the weights' own type. If the
    rounded weights were kept over a whole solve, gradients would be summed in the lower precision,
    where sums stop growing after some hundred evaluations. Evaluations that a backward pass repeats
    equal those of the forward pass.

    Args:
        field: the field; if it is a Module, this one has its parameters.
        dtype: the type, for instance ``torch.bfloat16``.
        if_faster: leave a field of images in its own type where the compiled kernel solves it. It
            saves three quarters of the multiplications, bfloat16 saves half of their time.
    """

    def __init__(
        self, field: Callable[..., Tensor], dtype: torch.dtype, if_faster: bool = False
    ) -> None:
        super().__init__()
        self.field = field
        self.dtype = dtype
        self.if_faster = if_faster

    def extra_repr(self) -> str:
        return f"dtype={self.dtype}, if_faster={self.if_faster}"

    def layer_stack(self, state_shape: Sequence[int]) -> LayerStack | None:
        """The layers that the compiled kernel computes in the field's own type; None: there are
        none, the field is called.
        """
        if not self.if_faster or not hasattr(self.field, "layer_stack"):
            return None
        stack: LayerStack | None = self.field.layer_stack(state_shape)
        return stack if stack is not None and stack.image else None

    def forward(self, t: float | Tensor, z: Tensor) -> Tensor:
        """Compute the field at states ``z``; the derivative has their shape and type."""
        with torch.autocast(z.device.type, self.dtype, cache_enabled=False):
            value = self.field(t, z)
        return value.to(z.dtype)
