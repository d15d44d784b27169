"""A field computed in lower precision than its weights and its state."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Autocast(nn.Module):
    """``f(t, z)`` with the convolutions and matrix products of a field in another floating point
    type.

    The derivative is handed back in that of the state, so that solvers combine stages in it. The
    context is that of one evaluation: the weights are rounded anew at each, which takes no time
    that could be measured beside convolutions, and their gradients are summed over the evaluations
    in the weights' own type. Casts kept over a whole solve would sum them in the lower precision,
    where after some hundred evaluations nothing more can be added. Evaluations that a backward pass
    repeats are the same as those of the forward pass.

    Args:
        field: the field; a Module's parameters are those of this one.
        dtype: ``torch.bfloat16``, for instance.
    """

    def __init__(self, field: Callable[..., Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        self.field = field
        self.dtype = dtype

    def extra_repr(self) -> str:
        return f"dtype={self.dtype}"

    def forward(self, t: float | Tensor, z: Tensor) -> Tensor:
        """Compute the field at states ``z``; the derivative has their shape and type."""
        with torch.autocast(z.device.type, self.dtype, cache_enabled=False):
            value = self.field(t, z)
        return value.to(z.dtype)
