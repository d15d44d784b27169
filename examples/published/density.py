"""A continuous normalizing flow of zuko, trained as its tutorial trains flows."""

from __future__ import annotations

from math import pi
from typing import Any

import torch
import zuko
from torch import Tensor

WHAT = "the density of two moons by its flow CNF (its own dopri5, its default tolerances)"
PACKAGES = ("zuko",)


def moons(n: int) -> Tensor:
    angle, upper = pi * torch.rand(n), torch.rand(n) < 0.5
    x = torch.where(upper, angle.cos() - 0.5, -angle.cos() + 0.5)
    y = torch.where(upper, angle.sin() - 0.25, 0.25 - angle.sin())
    return torch.stack([x, y], 1) + 0.05 * torch.randn(n, 2)


def trained() -> tuple[Any, Any, dict[str, Any]]:
    """The flow, points, and the arguments of its audit."""
    flow = zuko.flows.CNF(features=2, hidden_features=(64, 64))
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)
    for _ in range(300):
        loss = -flow().log_prob(moons(128)).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return flow, moons(400), {"task": "density", "call": lambda flow, x: flow().log_prob(x)}
