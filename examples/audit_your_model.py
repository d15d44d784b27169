"""Audit a torchdiffeq model, trained once with coarse and once with fine Euler steps.

    python examples/audit_your_model.py                      half a minute on a CPU
    python examples/audit_your_model.py --output_dir audits  also writes audit.json and figures

The audit does not change the model. The coarse model uses the error of its solver, the fine one
does not.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torchdiffeq import odeint

from trueode import audit


class Classifier(nn.Module):
    """Classify points of the plane by a flow and a straight line."""

    def __init__(self, n_steps: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2)
        )
        self.head = nn.Linear(2, 2)
        self.step_size = 1 / n_steps

    def field(self, t: Tensor, z: Tensor) -> Tensor:
        return self.net(z)

    def forward(self, x: Tensor) -> Tensor:
        times = torch.tensor([0.0, 1.0])
        states = odeint(self.field, x, times, method="euler", options={"step_size": self.step_size})
        return self.head(states[-1])


def rings(n: int) -> tuple[Tensor, Tensor]:
    """Points of a disc and of a ring around it."""
    labels = torch.randint(0, 2, (n,))
    radius = torch.where(labels == 0, 0.5 * torch.rand(n), 1 + 0.5 * torch.rand(n))
    angle = 2 * torch.pi * torch.rand(n)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1), labels


def train(n_steps: int, iterations: int) -> Classifier:
    torch.manual_seed(0)
    model = Classifier(n_steps)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(iterations):
        x, y = rings(128)
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--iterations", type=int, default=500, help="training iterations of each model"
    )
    parser.add_argument("--output_dir", type=Path, help="folder for audit.json and the figures")
    arguments = parser.parse_args()
    for n_steps in (3, 32):
        found = audit(train(n_steps, arguments.iterations).eval(), rings(1000))
        print(f"\nEuler x {n_steps}")
        print(*found.lines(), sep="\n")
        if arguments.output_dir:
            print("results:", found.save(arguments.output_dir / f"euler-{n_steps}"))


if __name__ == "__main__":
    main()
