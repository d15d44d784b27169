"""Adapt the number of rk4 steps in your training loop, here with torchdiffeq.

A rule proposes solvers and never touches the model. It needs a measure of how much predictions
differ under two solvers, on inputs that the model is not trained on; labels are not needed. After
training it certifies the model:

    pip install torchdiffeq
    python examples/adapt_your_loop.py
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trueode import FidelityRule, FixedStep, Measure, ModelInspection, NeuralODE, Progress, Refine
from trueode.evaluation import get_task


def points(n: int) -> tuple[Tensor, Tensor]:
    """Points of three rings, whose two classes alternate."""
    ring = torch.randint(3, (n,))
    radius = torch.tensor([0.3, 0.9, 1.5])[ring] + 0.2 * torch.rand(n)
    angle = 2 * torch.pi * torch.rand(n)
    return radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1), ring % 2


class Field(nn.Module):
    """A vector field in the plane."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2)
        )

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.layers(z)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=1000)
    args = parser.parse_args()
    from torchdiffeq import odeint

    torch.manual_seed(0)
    field, head = Field(), nn.Linear(2, 2)
    optimizer = torch.optim.Adam([*field.parameters(), *head.parameters()], lr=0.003)
    (train_x, train_y), (held_out, _) = points(2000), points(1000)
    task = get_task("classification")

    def logits(x: Tensor, solver: FixedStep) -> Tensor:
        # torchdiffeq's rk4 takes one step between two times
        times = torch.linspace(0.0, 1.0, solver.count(1.0) + 1)
        return head(odeint(field, x, times, method="rk4")[-1])

    rule, total = FidelityRule(FixedStep("rk4_38", n_steps=1), fidelity=0.01), args.iterations
    iteration = 0
    while iteration < total:
        iteration += 1
        batch = torch.randint(len(train_x), (128,))
        loss = F.cross_entropy(logits(train_x[batch], rule.solver), train_y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if iteration % 20 == 0:
            some = held_out[torch.randint(len(held_out), (64,))]
            with torch.no_grad():
                measure = Measure(
                    lambda solver, x=some: (logits(x, solver), 4 * solver.count(1.0)),
                    task.difference,
                )
                rule.propose(measure, Progress(iteration, total))
        if iteration % 100 == 0:
            assert rule.signal is not None
            error = rule.signal.value
            print(f"iteration {iteration}: loss {loss:.3f}, {rule.solver}, error {error:.2%}")
        if iteration == total:
            inspection = ModelInspection(
                NeuralODE(field, downstream=head), lambda attempt: points(1000)[0], task
            )
            answer = rule.certify(inspection)
            if isinstance(answer, Refine):  # not certified yet: continue with a finer solver
                total += answer.iterations
            else:
                print(answer.sentence)


if __name__ == "__main__":
    main()
