"""The exact flow: outputs of a model that no finer solver changes any more."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from trueode.data import Samples, Split
from trueode.evaluation.metrics import batches_of, evaluating
from trueode.evaluation.tasks import Task
from trueode.models import NeuralODE
from trueode.solvers import FixedStep, Solver

COARSEST, FINEST = 32, 4096
SUCCESSIVE = 2  # doublings that must leave a sample alone: one may do so by chance


@dataclass(frozen=True)
class ExactFlow:
    """Outputs of a model under the exact flow.

    Attributes:
        outputs: ``(n, …)`` in float64, of the finest solve that a sample took part in.
        settled: ``(n,)`` of bool: two successive doublings of the steps left the prediction alone.
        complete: whether unsettled samples were refined to the end, rather than until the budget was spent.
        n_steps: steps of the finest solve.
        evaluations: field evaluations spent, counted in samples.
    """

    outputs: Tensor
    settled: Tensor
    complete: bool
    n_steps: int
    evaluations: int


def first_steps(n_steps: float, order: int = 4) -> int:
    """The number of steps of rk4 that the exact flow starts with, for a training solver of ``n_steps`` steps and an order.

    It is four times as many for a solver of order 4, and as many as Euler takes: rk4 is finer than that by three orders.
    """
    return max(COARSEST, min(order, 4) * ceil(n_steps))


def least_cost(n_steps: float, order: int = 4) -> int:
    """Field evaluations for one sample that settles at the first chance."""
    return 4 * first_steps(n_steps, order) * ((2 << SUCCESSIVE) - 1)


def finer_solver(solver: Solver, n_steps: float) -> FixedStep:
    """A solver to refer to while a model trains, quick and much finer than ``solver`` with its ``n_steps`` steps.

    It is rk4 with as many steps, twice as many where the solver's order is rk4's or higher. It shows; it never decides.
    """
    return FixedStep("rk4", n_steps=max(16, ceil(n_steps) * (2 if solver.order >= 4 else 1)))


def exact_flow(
    model: NeuralODE,
    split: Samples,
    task: Task,
    *,
    n_steps: float,
    order: int = 4,
    budget: float = float("inf"),
    batch_size: int = 256,
) -> ExactFlow:
    """The outputs of a model for samples of a split under its exact flow, in double precision; see `settle`.

    Args:
        model: the model; a copy of it is made in double precision.
        split: the samples.
        task: what is learned.
        n_steps: steps of the training solver.
        order: of the training solver; see `first_steps`.
        budget: field evaluations, counted in samples, that may be spent; at least ``n * least_cost(n_steps, order)``.
        batch_size: samples solved at once.
    """
    model = deepcopy(model).double()
    model.reduce = None
    split = split.to(torch.float64)

    def run(indices: Tensor, steps: int) -> Tensor:
        chosen = Split(*split.batch(indices))
        solver = FixedStep("rk4", n_steps=steps)
        with evaluating(model):
            parts = [
                task.predict(model, batch, solver, on_failure="return")[0].cpu()
                for batch in batches_of(chosen, batch_size, model)
            ]
        return torch.cat(parts)

    return settle(run, len(split), task, first_steps(n_steps, order), budget)


def settle(
    run: Callable[[Tensor, int], Tensor], n: int, task: Task, steps: int, budget: float = float("inf")
) -> ExactFlow:
    """Solve with rk4, with twice as many steps each time, until every sample has settled.

    A sample has settled when two successive doublings left its prediction unchanged and moved its logits by less than a
    tenth of their margin (outputs without classes: by less than a tenth of the tolerance).

    Args:
        run: the outputs ``(len(indices), …)`` of some samples under rk4 with so many steps.
        n: the number of samples.
        task: what is learned.
        steps: of the first solve.
        budget: field evaluations, counted in samples, that may be spent.
    """
    finest = max(FINEST, steps << (SUCCESSIVE + 1))
    left = torch.arange(n, device="cpu")
    spent = 4 * steps * n
    outputs = run(left, steps)
    calm = torch.zeros(n, dtype=torch.int64, device="cpu")
    complete = True
    while len(left) and 2 * steps <= finest:
        if spent + 8 * steps * len(left) > budget:
            complete = False
            break
        steps *= 2
        spent += 4 * steps * len(left)
        finer = run(left, steps)
        before = outputs[left]
        outputs[left] = finer
        still = task.calm(before, finer, task.scale(outputs))
        calm[left] = torch.where(still, calm[left] + 1, 0)
        left = left[calm[left] < SUCCESSIVE]
    return ExactFlow(outputs, calm >= SUCCESSIVE, complete, steps, spent)
