"""Initial value problems with exact solutions, shared by the tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Problem:
    """``dz/dt = field(t, z)`` from ``start`` on the interval ``t``, with the exact solution ``exact(t)``."""

    name: str
    field: Callable[[Tensor, Tensor], Tensor]
    start: Tensor
    t: tuple[float, float]
    exact: Callable[[float], Tensor]


def _linear() -> Problem:
    matrix = torch.tensor([[-0.5, 2.0], [-2.0, -0.1]], dtype=torch.float64)
    start = torch.tensor([[1.0, 0.3], [-0.7, 0.2], [0.1, 1.5]], dtype=torch.float64)
    return Problem(
        "linear",
        lambda t, z: z @ matrix.T,
        start,
        (0.0, 1.5),
        lambda t: start @ torch.linalg.matrix_exp(matrix * t).T,
    )


def _logistic() -> Problem:
    start = torch.tensor([[0.1], [0.5], [0.9]], dtype=torch.float64)
    return Problem(
        "logistic",
        lambda t, z: 3 * z * (1 - z),
        start,
        (0.0, 1.0),
        lambda t: 1 / (1 + (1 / start - 1) * torch.exp(torch.tensor(-3.0 * t, dtype=torch.float64))),
    )


def _driven() -> Problem:
    # z' = cos(pi t) z: depends on time
    start = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    return Problem(
        "driven",
        lambda t, z: torch.cos(pi * t) * z,
        start,
        (0.25, 1.4),
        lambda t: start * torch.exp((torch.sin(torch.tensor(pi * t, dtype=torch.float64)) - 0.5**0.5) / pi),
    )


PROBLEMS = (_linear(), _logistic(), _driven())


class TanhField(nn.Module):
    """A small smooth time-dependent network on states ``(batch, 2)``, in float64."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.inner = nn.Parameter(torch.randn(3, 5, generator=generator, dtype=torch.float64) * 0.7)
        self.outer = nn.Parameter(torch.randn(5, 2, generator=generator, dtype=torch.float64) * 0.7)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        time = (z[:, :1] * 0 + 1) * t
        return torch.tanh(torch.cat([z, time], dim=1) @ self.inner) @ self.outer


def states(batch: int = 4, width: int = 2, seed: int = 1) -> Tensor:
    """Random float64 states ``(batch, width)``."""
    return torch.randn(batch, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
