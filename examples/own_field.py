"""Learn your own vector field from trajectories.

Any callable ``f(t, z)`` is a field. This one is the physics of a damped pendulum with two unknown
parameters, which are fitted to noisy observations of a few trajectories at irregular times:

    python examples/own_field.py
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from trueode import Adaptive, FixedStep, NeuralODE


class Pendulum(nn.Module):
    """``x'' = -stiffness · sin x - damping · x'`` for states ``(batch, 2)`` of angle and speed."""

    def __init__(self, stiffness: float, damping: float) -> None:
        super().__init__()
        self.stiffness = nn.Parameter(torch.tensor(stiffness))
        self.damping = nn.Parameter(torch.tensor(damping))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        angle, speed = z.unbind(-1)
        return torch.stack([speed, -self.stiffness * angle.sin() - self.damping * speed], dim=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=300)
    args = parser.parse_args()

    torch.manual_seed(0)
    start = torch.randn(16, 2)
    times = (10 * torch.rand(20)).sort().values
    span = (0.0, 10.0)
    with torch.no_grad():
        truth = NeuralODE(
            Pendulum(1.0, 0.1), solver=Adaptive("tsit5", rtol=1e-6, atol=1e-6), t=span
        )
        observed = truth(start, save_at=times)
        observed = observed + 0.02 * torch.randn_like(observed)

    model = NeuralODE(Pendulum(0.5, 0.5), solver=FixedStep("rk4", n_steps=40), t=span)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for iteration in range(args.iterations):
        optimizer.zero_grad()
        loss = (model(start, save_at=times) - observed).square().mean()
        loss.backward()
        optimizer.step()
        if iteration % 50 == 0:
            print(f"iteration {iteration:3d}: mean squared error {loss.item():.5f}")
    fitted = model.field
    print(
        f"stiffness {fitted.stiffness.item():.3f} (true 1.000), "
        f"damping {fitted.damping.item():.3f} (true 0.100)"
    )


if __name__ == "__main__":
    main()
