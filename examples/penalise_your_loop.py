"""Keep a model an ODE by a penalty in your training loop, here with torchdiffeq.

Two models are trained with two steps of rk4, one of them with the discretisation-error penalty.
The audit then compares their predictions with those of the exact flow:

    pip install torchdiffeq
    python examples/penalise_your_loop.py
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trueode import DiscretisationPenalty, audit


def points(n: int) -> tuple[Tensor, Tensor]:
    """Points of a disc and of the ring around it."""
    label = torch.randint(2, (n,))
    radius = torch.tensor([0.2, 1.0])[label] + 0.2 * torch.rand(n)
    angle = 2 * torch.pi * torch.rand(n)
    return radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1), label


class Model(nn.Module):
    """A vector field in the plane, solved by steps of rk4, and a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))
        self.head = nn.Linear(2, 2)

    def field(self, t: Tensor, z: Tensor) -> Tensor:
        return self.layers(z)

    def forward(self, x: Tensor, n_steps: int = 2) -> Tensor:
        from torchdiffeq import odeint

        times = torch.linspace(0.0, 1.0, n_steps + 1)  # rk4 takes one step between two times
        return self.head(odeint(self.field, x, times, method="rk4")[-1])


def train(iterations: int, penalty: DiscretisationPenalty | None) -> Model:
    """Train a model; the penalty, if there is one, is a term of its loss."""
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for iteration in range(iterations):
        x, y = points(128)
        logits = model(x)
        loss = F.cross_entropy(logits, y)
        if penalty is not None and penalty.due(iteration):
            finer = model(penalty.part(x), n_steps=penalty.partner(2, iteration))
            loss = loss + penalty(penalty.part(logits), finer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=1000)
    args = parser.parse_args()
    for name, penalty in (("without", None), ("with", DiscretisationPenalty())):
        found = audit(train(args.iterations, penalty), points(1000), methods=())
        print(f"{name} the penalty: {found.sentence}\n")


if __name__ == "__main__":
    main()
