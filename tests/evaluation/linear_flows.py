"""Linear flows whose densities and samples are known under any solver."""

from __future__ import annotations

from math import log, pi
from typing import Any

import torch
from torch import Tensor, nn

from trueode.models import NeuralODE
from trueode.solvers import FixedStep, Solver

SHRINK = torch.diag(torch.tensor([-1.0, -0.8]))
TURN = torch.tensor([[0.0, -1.5], [1.5, 0.0]])
EULER = FixedStep("euler", n_steps=2)
RK4 = FixedStep("rk4", n_steps=8)


def points(n: int, width: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


class Augmented(nn.Module):
    """The field z' = A z with the change of the log density, l' = -trace A."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = nn.Parameter(matrix.clone())

    def forward(self, t: Tensor, state: Tensor) -> Tensor:
        z = state[:, :-1] @ self.matrix.T
        return torch.cat([z, -self.matrix.trace().expand(len(z), 1)], 1)


def with_zero(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_zeros(len(x), 1)], 1)


def base(z: Tensor) -> Tensor:
    """The log density of the standard normal distribution, ``(n,)``."""
    return -(z.square() + log(2 * pi)).sum(1) / 2


def log_density(state: Tensor) -> Tensor:
    return base(state[:, :-1]) - state[:, -1]


def density(matrix: Tensor = SHRINK, solver: Solver = EULER) -> NeuralODE:
    return NeuralODE(Augmented(matrix), with_zero, log_density, solver).eval()


def euler_map(matrix: Tensor, n_steps: int) -> Tensor:
    """The matrix that Euler's method applies from time 0 to 1."""
    step = torch.eye(len(matrix), dtype=torch.float64) + matrix.double() / n_steps
    return torch.linalg.matrix_power(step, n_steps)


def change(x: Tensor, matrix: Tensor = SHRINK, n_steps: int = 2) -> Tensor:
    """Log density under Euler's method minus that under the exact flow."""
    exact = torch.linalg.matrix_exp(matrix.double())
    one, other = (base(x.double() @ m.T) for m in (euler_map(matrix, n_steps), exact))
    return one - other


class Linear(nn.Module):
    """The field z' = A z."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = nn.Parameter(matrix.clone())

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return z @ self.matrix.T


def sampler(matrix: Tensor = SHRINK, solver: Solver = EULER, **how: Any) -> NeuralODE:
    return NeuralODE(Linear(matrix), solver=solver, **how).eval()
