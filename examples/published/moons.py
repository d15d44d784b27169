"""The quick start of torchdyn: a Neural ODE that separates two moons."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchdyn.core import NeuralODE
from torchdyn.datasets import ToyDataset

WHAT = "two moons, as in its quick start (dopri5 with its default tolerance)"
PACKAGES = ("torchdyn",)
TIMES = torch.linspace(0, 1, 5)


def moons(n: int) -> tuple[Tensor, Tensor]:
    x, y = ToyDataset().generate(n, "moons", noise=0.1)
    return torch.as_tensor(x).float(), torch.as_tensor(y).long()


def trained() -> tuple[Any, Any, dict[str, Any]]:
    """The model, data that it has not seen, and the arguments of its audit."""
    field = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
    model = NeuralODE(field, sensitivity="adjoint", solver="dopri5")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x, y = moons(512)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x, TIMES)[1][-1], y).backward()
        optimizer.step()
    return model, moons(1000), {"call": lambda model, batch: model(batch[0], TIMES)[1][-1]}
