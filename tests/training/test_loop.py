"""The training loop: comparisons of solvers on a batch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from trueode.adaptation import PaperStepRule, Progress
from trueode.data import Batch
from trueode.distributed import Ranks
from trueode.evaluation import get_task
from trueode.models import NeuralODE
from trueode.solvers import FixedStep
from trueode.training.loop import _measure

ALONE = Ranks(0, 1, torch.device("cpu"))


def measure(model: NeuralODE, x: torch.Tensor, task: str, solver: FixedStep) -> Any:
    state: Any = SimpleNamespace(model=model, solver=solver)
    output, solution = model(x, solver, return_solution=True)
    batch = Batch(x, torch.zeros(len(x), dtype=torch.int64) if task == "classification" else x)
    return _measure(state, get_task(task), batch, len(x), output, solution.nfe, ALONE)


def test_a_solver_that_fails_is_refused_and_training_goes_on() -> None:
    """At the limit of stability, the step that is a tenth larger overflows."""
    model = NeuralODE(lambda t, z: -(z**3), downstream=lambda z: torch.cat([z, -z], 1), t=(0.0, 39.0))
    x = torch.tensor([[1.0], [0.9]])
    rule = PaperStepRule("euler", 39.0, 1.95)
    larger = FixedStep("euler", step_size=2.145)
    compared = measure(model, x, "classification", rule.solver)
    assert compared(larger, rule.solver).difference == 1.0
    before = rule.solver
    assert rule.propose(compared, Progress(50, 100)).step_size <= before.step_size


def test_equal_outputs_are_no_evidence() -> None:
    """A single sample has no scale to measure a difference of numbers by."""
    model = NeuralODE(lambda t, z: -z)
    coarse, fine = (FixedStep("euler", n_steps=n) for n in (1, 8))
    assert measure(model, torch.ones(1, 2), "regression", coarse)(coarse, fine).difference == 0.0
    assert measure(model, torch.randn(4, 2), "regression", coarse)(coarse, fine).difference == 1.0
