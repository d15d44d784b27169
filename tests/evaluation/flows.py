"""Models with known exact flows, and models with given outputs, for tests of the verdict."""

from __future__ import annotations

from collections.abc import Callable
from math import pi
from typing import Any

import torch
from torch import Tensor, nn

from trueode.data import Split
from trueode.evaluation import (
    Evaluation,
    Flips,
    ModelOnSamples,
    Runnable,
    Task,
    count_flips,
    get_task,
)
from trueode.evaluation.flow import ExactFlow, exact_flow
from trueode.evaluation.runnable import ALL, Part
from trueode.models import NeuralODE
from trueode.solvers import FixedStep, Solver

CLASSES, NUMBERS, SERIES = (
    get_task("classification"),
    get_task("regression"),
    get_task("timeseries"),
)
EULER, RK4 = FixedStep("euler", step_size=1.0), FixedStep("rk4", step_size=0.125)
ANGLE = 2.0
Field = Callable[[Tensor, Tensor], Tensor]


class Turn(nn.Module):
    """The field that turns the plane by an angle per unit of time."""

    def __init__(self, angle: float = ANGLE) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor([[0.0, -angle], [angle, 0.0]]))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return z @ self.matrix.T


def sides() -> nn.Linear:
    """Classify by the sign of the first component."""
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    return layer


def turned(x: Tensor, angle: float = ANGLE) -> Tensor:
    """The exact solution of `Turn` at time 1."""
    matrix = torch.linalg.matrix_exp(
        torch.tensor([[0.0, -angle], [angle, 0.0]], dtype=torch.float64)
    )
    return (x.double() @ matrix.T).to(x.dtype)


def circle(n: int) -> Tensor:
    """Random points of the unit circle whose images under `Turn` are off the class boundary."""
    phi = torch.linspace(0.05, pi - 0.05, (n + 1) // 2)
    phi = torch.cat([phi, phi + pi])[:n] - pi / 2 - ANGLE
    phi = phi[torch.randperm(n, generator=torch.Generator().manual_seed(0))]
    return torch.stack([phi.cos(), phi.sin()], 1)


def on(
    field: Field,
    x: Tensor,
    y: Tensor | None = None,
    t: Tensor | None = None,
    *,
    task: Task = CLASSES,
    solver: Solver = EULER,
    downstream: Any = None,
    end: float = 1.0,
    **how: Any,
) -> ModelOnSamples:
    """A field as a model on samples; targets are zeros by default."""
    if y is None:
        y = (
            torch.zeros(len(x), dtype=torch.int64)
            if task.name == "classification"
            else torch.zeros_like(x)
        )
    model = NeuralODE(field, downstream=downstream, solver=solver, t=(0.0, end))
    return ModelOnSamples(model, Split(x, y, t, dtype=x.dtype), task, solver, **how)


def turn(n: int, solver: Solver = EULER, **how: Any) -> ModelOnSamples:
    """`Turn` on a circle, classes labelled by the exact flow."""
    x = circle(n)
    return on(Turn(), x, sides()(turned(x)).argmax(1), solver=solver, downstream=sides(), **how)


def counted(runnable: Runnable, **how: Any) -> tuple[Evaluation, ExactFlow, Flips]:
    """A model's run under its training solver, its exact flow, and the counted changes."""
    own = runnable.run()
    exact = exact_flow(runnable, own, **how)
    return own, exact, count_flips(runnable, None, own, exact)


class Given(Runnable):
    """A model with given outputs.

    Args:
        own: outputs under the training solver.
        exact: outputs under rk4 and Radau.
        other: outputs under all other solvers (default: ``exact``).
    """

    growth: float | Tensor = 1.0

    def __init__(
        self,
        own: Tensor,
        exact: Tensor,
        other: Tensor | None = None,
        task: Task = CLASSES,
        *,
        in_double: Tensor | None = None,
        **fields: Any,
    ) -> None:
        self.own, self.exact, self.other = own, exact, exact if other is None else other
        self.own_in_double = own if in_double is None else in_double
        self.task, self.n, self.solver = task, len(own), EULER
        for name, value in fields.items():
            setattr(self, name, value)

    def run(self, solver: Solver | None = None, part: Part = ALL) -> Evaluation:
        solver = solver or self.solver
        own = self.own_in_double if part.double else self.own
        first = solver.name == "rk4" or getattr(part.solving, "method", "") == "Radau"
        outputs = own if solver == self.solver else self.exact if first else self.other
        outputs = (outputs.double() if part.double else outputs) * (
            1 + getattr(part.solving, "nudge", 0.0) * self.growth
        )
        outputs = outputs if part.indices is None else outputs[part.indices]
        found = Evaluation(len(outputs), nfe=10.0, n_steps=8.0, solver=solver, outputs=outputs)
        return self.scored(found) if part.indices is None else found


def logits(classes: Tensor) -> Tensor:
    """Large float64 logits of two classes: ``(n, …)`` to ``(n, 2, …)``."""
    return torch.stack([1.0 - classes.double(), classes.double()], 1)
