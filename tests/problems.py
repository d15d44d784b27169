"""Initial value problems with exact solutions, shared by the tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import pi
from typing import Any

import torch
from torch import Tensor, nn

from trueode.fields import SequentialField


@dataclass(frozen=True)
class Problem:
    """``dz/dt = field(t, z)`` from ``start`` on the interval ``t``, with the exact solution
    ``exact(t)``.
    """

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
        lambda t: (
            1 / (1 + (1 / start - 1) * torch.exp(torch.tensor(-3.0 * t, dtype=torch.float64)))
        ),
    )


def _driven() -> Problem:
    # z' = cos(pi t) z: depends on time
    start = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    return Problem(
        "driven",
        lambda t, z: torch.cos(pi * t) * z,
        start,
        (0.25, 1.4),
        lambda t: (
            start
            * torch.exp((torch.sin(torch.tensor(pi * t, dtype=torch.float64)) - 0.5**0.5) / pi)
        ),
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
    return torch.randn(
        batch, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


class Hamiltonian(nn.Module):
    """A rotation along the level lines of an energy, which the field differentiates."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[0.4, -0.3], [0.2, 0.5]], dtype=torch.float64))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        z = z if z.requires_grad else z.requires_grad_()
        energy = (z @ self.w).tanh().square().sum() + 0.5 * z.square().sum()
        (slope,) = torch.autograd.grad(energy, z, create_graph=True)
        return torch.stack([slope[:, 1], -slope[:, 0]], 1)


class Coupled(nn.Module):
    """Two states of different shapes, driven by each other and by time."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.3, -0.6, 0.2], dtype=torch.float64))

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, y = state
        total = x.sum(1, keepdim=True)
        return torch.sin(y @ self.w)[:, None] * x + 0.1 * t.reshape(
            -1, *[1] * (x.dim() - 1)
        ), self.w * total - y


class Gated(nn.Module):
    """A field that is no stack of layers and does not depend on time."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[0.5, -0.8], [0.3, 0.7]], dtype=torch.float64))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.sigmoid(z @ self.w) * torch.sin(z)


def _layers() -> SequentialField:
    torch.manual_seed(0)
    return SequentialField(
        nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), time_dependent=True
    ).double()


KINDS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "plain": lambda: (Gated(), states(3)),
    "layers": lambda: (_layers(), states(3)),
    "tuple": lambda: (Coupled(), (states(3), states(3, 3, seed=5))),
    "timed": lambda: (TanhField(), states(3)),
    "hamiltonian": lambda: (Hamiltonian(), states(3)),
}
"""Fields in float64 with an initial state of three samples, by what makes them special."""


def parts_of(state: Any) -> tuple[Tensor, ...]:
    """The tensors of a state."""
    return state if isinstance(state, tuple) else (state,)
