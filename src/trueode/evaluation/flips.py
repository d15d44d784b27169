"""Flips: predictions that are other ones under the exact flow."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trueode.data import Batch, Samples
from trueode.errors import SolveError
from trueode.evaluation.metrics import Evaluation, evaluate
from trueode.evaluation.reference import exact_flow
from trueode.evaluation.tasks import Task
from trueode.models import NeuralODE
from trueode.solvers import Solver


@dataclass(frozen=True)
class Flips:
    """Predictions of a model under a solver, compared with those under its exact flow.

    Attributes:
        solver: the solver.
        n: samples.
        flips: those whose prediction is another one, or that no refinement settles, or all where the solver fails.
        unknown: those that had not settled when the budget was spent.
        constant: whether the output is constant in a component, so that there is nothing to compare.
        metric: under the exact flow, mean over the samples.
        n_steps_exact: steps of the finest solve of the exact flow.
        evaluations: field evaluations spent, counted in samples.
    """

    solver: Solver
    n: int
    flips: int
    unknown: int = 0
    constant: bool = False
    metric: float = float("nan")
    n_steps_exact: int = 0
    evaluations: int = 0


def count_flips(model: NeuralODE, split: Samples, task: Task, solver: Solver, *, batch_size: int = 256) -> Flips:
    """Count the samples whose prediction under a solver is another one than under the exact flow.

    Args:
        model: the model.
        split: the samples.
        task: what is learned.
        solver: the solver to judge.
        batch_size: samples solved at once.
    """
    try:
        own = evaluate(model, split, task, solver, batch_size=batch_size, keep_outputs=True)
    except SolveError:
        return Flips(solver, len(split), len(split))
    found = compare_with_exact_flow(model, split, task, solver, own, batch_size=batch_size)
    return replace(found, evaluations=found.evaluations + round(own.nfe * own.n))


def compare_with_exact_flow(
    model: NeuralODE,
    split: Samples,
    task: Task,
    solver: Solver,
    own: Evaluation,
    *,
    budget: float = float("inf"),
    batch_size: int = 256,
) -> Flips:
    """The same for outputs under the solver that are there already, within a budget of field evaluations."""
    assert own.outputs is not None
    exact = exact_flow(
        model, split, task, n_steps=own.n_steps, order=solver.order, budget=budget, batch_size=batch_size
    )
    scale = task.scale(exact.outputs)
    flipped = task.flipped(own.outputs.double(), exact.outputs, scale)
    # Samples that no refinement settles count as flips; those for which the budget was not enough are unknown.
    unsettled = int((~exact.settled).sum())
    unknown = 0 if exact.complete else unsettled
    return Flips(
        solver,
        own.n,
        int((flipped & exact.settled).sum()) + unsettled - unknown,
        unknown,
        scale is not None and bool((scale == 0).any()),
        _metric(task, exact.outputs, split),
        exact.n_steps,
        exact.evaluations,
    )


def _metric(task: Task, outputs: Tensor, split: Samples) -> float:
    x, y, t = split.batch(torch.arange(len(split), device="cpu"))
    return float(task.metric_sum(outputs, Batch(x, y.cpu(), t))) / len(split)
