"""The exact flow: outputs of a model on which two independent methods agree, in double precision."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil, nan

import torch
from torch import Tensor

from trueode.evaluation.metrics import Evaluation
from trueode.evaluation.runnable import Part, Runnable
from trueode.solvers import Adaptive, FixedStep, Solver

COARSEST, FINEST = 17, 4700  # steps of rk4, the number of which is doubled and one added
LOOSEST, TIGHTER, TIGHTEST = 1e-4, 1e-2, {True: 1e-12, False: 1e-6}  # tolerances of dopri5, in double precision or not
AT_FIRST, LATER = 0.05, 0.1  # share of what could change a prediction by which the two may differ
TOGETHER, ALONE = 8, 3  # so few rows are solved again together; from this level on those that rk4 keeps finite are not
PRECISE = 2  # from this level on, errors of solvers can be measured against the exact flow
ENDED = ("non_finite", "step_underflow")  # how a solution that ends early ends a solve
LEAST_STEPS, PATIENT = 1000, 4  # most steps of dopri5: so many, and so many times those of rk4
DOPRI5 = 150.0  # field evaluations of dopri5 for a sample on which the two agree at once, at most about


@dataclass(frozen=True)
class ExactFlow:
    """Outputs of a model under the exact flow.

    Attributes:
        outputs: ``(n, …)`` by rk4, each row of the finest solve that it took part in.
        states: final states of the last ODE block ``(n, d)``, likewise; None where they are not known.
        settled: ``(n, predictions)`` of bool: rk4 and dopri5 agree on the prediction.
        blown_up: ``(n,)`` of bool: the solution ceases to exist before the end, for both methods.
        allowed: by how much numbers may move, for each component; see `Task.allowed`.
        complete: whether unsettled rows were refined to the end, rather than until the budget was spent.
        n_steps: steps of rk4 in the finest solve.
        tolerance: of dopri5 in the finest solve.
        floor: RMS difference of the two methods, relative to the outputs' deviation from their mean.
        double: whether it was computed in double precision.
        evaluations: field evaluations spent, counted in samples.
    """

    outputs: Tensor
    states: Tensor | None
    settled: Tensor
    blown_up: Tensor
    allowed: Tensor | None
    complete: bool
    n_steps: int
    tolerance: float
    floor: float
    double: bool
    evaluations: int

    @property
    def disagreeing(self) -> int:
        """Rows for which there is no exact flow, those that blow up left out."""
        return int((~self.settled.all(1) & ~self.blown_up).sum())

    @property
    def converged(self) -> bool:
        """Whether there is an exact flow for all rows that do not blow up."""
        return not self.disagreeing

    def __str__(self) -> str:
        precision = "double" if self.double else "the model's own"
        return f"rk4 with up to {self.n_steps} steps and dopri5 with a tolerance down to {self.tolerance:.3g}, in {precision} precision"


def finer_solver(solver: Solver, n_steps: float) -> FixedStep:
    """A solver to refer to while a model trains, quick and much finer than ``solver`` with its ``n_steps`` steps.

    It is rk4 with as many steps, twice as many where the solver's order is rk4's or higher. It shows; it never decides.
    """
    return FixedStep("rk4", n_steps=max(16, ceil(n_steps) * (2 if solver.order >= 4 else 1)))


def least_cost(n_steps: float, order: int) -> float:
    """Field evaluations for a sample on which the two methods agree at once, about."""
    return 4 * next(levels(n_steps, order))[0] + DOPRI5


def levels(n_steps: float, order: int, double: bool = True, level: int = 0) -> Iterator[tuple[int, float]]:
    """Steps of rk4 and tolerances of dopri5, finer each time, for a training solver of ``n_steps`` steps and an order.

    Steps are at least four times as many where the order is four or more, and no multiples: equal nodes hide equal errors.
    """
    training = ceil(n_steps) if n_steps == n_steps else 1
    steps = max(COARSEST, 4 * training + 1 if order >= 4 else 0)
    most = max(FINEST, 8 * steps)
    for number in range(64):
        steps += training > 1 and steps % training == 0
        if number >= level:
            yield steps, max(LOOSEST * TIGHTER**number, TIGHTEST[double])
        steps = 2 * steps + 1
        if steps > most:
            return


def _each(runnable: Runnable, solver: Adaptive, rows: Tensor, size: Tensor, least: int) -> tuple[Tensor, Tensor, float]:
    """Outputs of a solver, which rows have a solution that ends early, and the evaluations spent.

    Rows that a solve lost are solved again, each by itself or in halves by their ``size`` down to the ``least`` number: those that
    blow up are large, and are not to take others along.
    """
    ran = runnable.run(solver, Part(rows, runnable.double))
    outputs, spent = ran.outputs, ran.nfe * len(rows)
    lost = ~outputs.isfinite().flatten(1).all(1) & (ran.status != "success")
    again = lost.nonzero()[:, 0] if ran.status in ENDED and runnable.separable else lost.nonzero()[:0, 0]
    if ran.statuses or not len(again) or (len(rows) <= least and not runnable.per_sample):
        statuses = ran.statuses or [ran.status] * len(rows)
        return outputs, lost & torch.tensor([status in ENDED for status in statuses], device="cpu"), spent
    for half in again[size[again].argsort()].chunk(1 if runnable.per_sample else 2):
        part = half.sort().values
        single = replace(solver, per_sample=True)
        outputs[part], lost[part], cost = _each(runnable, single, rows[part], size[part], least)
        spent += cost
    return outputs, lost, spent


def exact_flow(runnable: Runnable, own: Evaluation, *, level: int = 0, budget: float = float("inf")) -> ExactFlow:
    """Solve by rk4 and by dopri5, finer each time, the rows on which they do not agree yet.

    They agree on a prediction where it is the same, and the outputs differ by less than a twentieth (in later solves: a tenth) of
    what decides: of the margin between the two largest logits, or of the tolerance. A row is refined until the
    predictions that are drawn of it have settled.

    Args:
        runnable: the model and its samples.
        own: the model under its training solver; its first rows are those of ``runnable``.
        level: begin so many refinements later: `PRECISE` where errors are to be measured.
        budget: field evaluations, counted in samples, that may be spent.
    """
    n, task, double = runnable.n, runnable.task, runnable.double
    dtype = torch.float64 if double else own.outputs.dtype
    outputs = torch.full_like(own.outputs[:n], nan, dtype=dtype)
    states = None if own.states is None else torch.full_like(own.states[:n], nan, dtype=dtype)
    settled = torch.zeros_like(task.flipped(own.outputs[:n], own.outputs[:n]))
    needed = settled.flatten().index_fill(0, runnable.drawn(*settled.shape), True).view(settled.shape)
    blown_up, apart = settled.any(1), torch.full((n,), nan, dtype=torch.float64, device="cpu")
    residual, allowed = runnable.residual(own.outputs[:n]), None
    left, complete, spent, each, done = torch.arange(n, device="cpu"), True, 0.0, 0.0, (0, nan)
    steps = levels(own.n_steps, getattr(own.solver, "order", 4) or 4, double, level)
    for number, (count, tolerance) in enumerate(steps):
        complete = not number or spent + (4 * count + 2 * each) * len(left) <= budget
        if not complete:
            break
        done, dopri5 = (
            (count, tolerance),
            Adaptive("dopri5", tolerance, tolerance, max_steps=max(LEAST_STEPS, PATIENT * count)),
        )
        first = runnable.run(FixedStep("rk4", n_steps=count), Part(left, double))
        spent += first.nfe * len(left)
        outputs[left] = first.outputs
        if states is not None and first.states is not None:
            states[left] = first.states
        finite, second = runnable.finite(outputs)[left], torch.full_like(first.outputs, nan)
        size = first.outputs.double().abs().nan_to_num(torch.inf).flatten(1).amax(1)
        for rows in (finite, ~finite):
            if bool(rows.any()) and (number or rows is finite):
                second[rows], ended, cost = _each(
                    runnable, dopri5, left[rows], size[rows], 1 if number >= ALONE and rows is finite else TOGETHER
                )
                spent += cost
                if rows is finite:
                    each = cost / int(rows.sum())
                else:
                    blown_up[left[rows]] = ended
        allowed = task.allowed(outputs, residual)
        agree = task.settled(second, first.outputs, allowed, LATER if number else AT_FIRST) & finite[:, None]
        settled[left] = agree
        apart[left] = (second - first.outputs).double().flatten(1).square().nanmean(1).sqrt()
        left = left[(needed[left] & ~agree).any(1) & ~blown_up[left]]
        if not len(left):
            break
    good = settled.any(1)
    floor = _relative(apart[good], outputs[good])
    return ExactFlow(outputs, states, settled, blown_up, allowed, complete, *done, floor, double, round(spent))


def _relative(apart: Tensor, outputs: Tensor) -> float:
    known = outputs.double().flatten(1)
    if len(known) < 2:
        return nan
    spread = (known - known.nanmean(0)).square().nanmean().sqrt()
    return float(apart.square().nanmean().sqrt() / spread.clamp(min=1e-30))
