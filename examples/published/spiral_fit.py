"""The demo of torchdiffeq: a network that is fitted to a spiral."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchdiffeq import odeint

WHAT = "one spiral, as in its `ode_demo.py` (dopri5)"
PACKAGES = ("torchdiffeq",)
SIZE, BATCH_TIME, BATCH_SIZE = 1000, 10, 20
TIMES, START = torch.linspace(0.0, 25.0, SIZE), torch.tensor([[2.0, 0.0]])
MATRIX = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]])


class ODEFunc(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 2))
        for layer in (self.net[0], self.net[2]):
            nn.init.normal_(layer.weight, mean=0, std=0.1)
            nn.init.constant_(layer.bias, val=0)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y**3)


def trained() -> tuple[Any, Any, dict[str, Any]]:
    """The field, the trajectory, and the arguments of its audit."""
    with torch.no_grad():
        true = odeint(lambda t, y: y**3 @ MATRIX, START, TIMES, method="dopri5")
    func = ODEFunc()
    optimizer = torch.optim.RMSprop(func.parameters(), lr=1e-3)
    for _ in range(600):
        rows = torch.randperm(SIZE - BATCH_TIME)[:BATCH_SIZE]
        wanted = torch.stack([true[rows + k] for k in range(BATCH_TIME)])
        optimizer.zero_grad()
        found = odeint(func, true[rows], TIMES[:BATCH_TIME])
        (found - wanted).abs().mean().backward()
        optimizer.step()
    how = {
        "task": "timeseries",
        "call": lambda func, batch: odeint(func, batch[0], batch[2]).transpose(0, 1),
        "loss": nn.functional.l1_loss,
        "held_out": False,
    }
    return func, (START, true.transpose(0, 1), TIMES), how
