"""A field computed in lower precision than its weights and its state."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


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
