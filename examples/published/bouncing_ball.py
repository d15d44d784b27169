"""The example of torchdiffeq for events: a ball that bounces."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchdiffeq import odeint, odeint_event

WHAT = "a bouncing ball with events, as in its `bouncing_ball.py` (dopri5)"
PACKAGES = ("torchdiffeq",)


class BouncingBall(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gravity = nn.Parameter(torch.tensor([9.8]))
        self.log_radius = nn.Parameter(torch.zeros(1))
        self.t0 = nn.Parameter(torch.tensor([0.0]))
        self.init_vel = nn.Parameter(torch.tensor([0.0]))
        self.absorption = nn.Parameter(torch.tensor([0.2]))

    def forward(self, t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        _, velocity, _ = state
        return velocity, -self.gravity, torch.zeros_like(state[2])

    def event_fn(self, t: Tensor, state: tuple[Tensor, ...]) -> Tensor:
        position, _, log_radius = state
        return position - log_radius.exp()

    def after(self, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        position, velocity, log_radius = state
        return position + 1e-7, -velocity * (1 - self.absorption), log_radius

    def bounce(self, height: Tensor, bounces: int) -> Tensor:
        """The times of the bounces, and the speed after each."""
        t, state, found = self.t0, (height, self.init_vel, self.log_radius), []
        for _ in range(bounces):
            t, states = odeint_event(
                self, state, t, event_fn=self.event_fn, reverse_time=False, atol=1e-8, rtol=1e-8,
                odeint_interface=odeint,
            )  # fmt: skip
            t, state = t.reshape(1), self.after(tuple(each[-1] for each in states))
            found += [t, state[1]]
        return torch.cat(found)


def trained() -> tuple[Any, Any, dict[str, Any]]:
    """The model, starting heights, and the arguments of its audit."""
    heights = torch.linspace(2.0, 12.0, 11, dtype=torch.float64)[:, None]
    how = {
        "task": "regression",
        "absolute": 0.01,
        "population": "all",
        "call": lambda model, batch: torch.stack([model.bounce(x, 3) for x in batch]),
    }
    return BouncingBall().double(), heights, how
