"""The example of flow_matching in two dimensions: a checkerboard."""

from __future__ import annotations

from typing import Any

import torch
from flow_matching.path import AffineProbPath
from flow_matching.path.scheduler import CondOTScheduler
from flow_matching.solver import ODESolver
from flow_matching.utils import ModelWrapper
from torch import Tensor, nn

WHAT = "samples of a checkerboard, as in its example (midpoint, h = 0.05)"
PACKAGES = ("flow_matching", "torchdiffeq")


class MLP(nn.Module):
    def __init__(self, hidden: int = 128) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Linear(3, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
            nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 2),
        )  # fmt: skip

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.main(torch.cat([x, t.reshape(-1, 1).expand(len(x), 1)], dim=1))


class WrappedModel(ModelWrapper):
    def forward(self, x: Tensor, t: Tensor, **extras: Any) -> Tensor:
        return self.model(x, t)


def board(n: int) -> Tensor:
    x1 = 4 * torch.rand(n) - 2
    x2 = torch.rand(n) - 2 * torch.randint(0, 2, (n,)) + x1.floor() % 2
    return torch.stack([x1, x2], 1) / 0.45


def trained() -> tuple[Any, Any, dict[str, Any]]:
    """The sampler, noise, and the arguments of its audit."""
    vf, path = MLP(), AffineProbPath(scheduler=CondOTScheduler())
    optimizer = torch.optim.Adam(vf.parameters(), lr=1e-3)
    for _ in range(2000):
        optimizer.zero_grad()
        x_1 = board(1024)
        sample = path.sample(t=torch.rand(len(x_1)), x_0=torch.randn_like(x_1), x_1=x_1)
        (vf(sample.x_t, sample.t) - sample.dx_t).square().mean().backward()
        optimizer.step()
    solver = ODESolver(velocity_model=WrappedModel(vf))

    def call(solver: ODESolver, batch: Tensor) -> Tensor:
        return solver.sample(x_init=batch, method="midpoint", step_size=0.05)

    methods = ("euler", "midpoint", "rk4", "dopri5")
    how = {"task": "sampler", "call": call, "methods": methods}
    return solver, torch.randn(1000, 2), how
