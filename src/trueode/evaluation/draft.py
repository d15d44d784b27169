"""An exact flow under computation: the results of each row so far, and the evaluations spent."""

from __future__ import annotations

from dataclasses import replace
from math import nan

import torch
from torch import Tensor

from trueode.evaluation.course import Course, Guided, Takes
from trueode.evaluation.implicit import Implicit
from trueode.evaluation.metrics import Evaluation
from trueode.evaluation.pace import Pace
from trueode.evaluation.runnable import Part, Runnable, Solving
from trueode.solvers import Adaptive, Solver

TOGETHER = 8  # most rows that are solved again as one batch
SHARE = 0.1  # part of the change that flips a prediction by which two solves may differ


class Draft:
    """The results of the rows so far. All rows are solved under the same constraints on steps.

    Args:
        runnable: the model and its samples.
        own: the model under its training solver.
        course: the constraints on steps.
        budget: field evaluations that may be spent, counted in samples.
        spent: field evaluations spent before.
        pace: reports the solves.

    Attributes:
        outputs, states, settled, blown_up, allowed, sensitive, width: see `ExactFlow`.
        needed: the predictions for which rows are refined, ``(n, predictions)`` of bool.
        apart: the RMS difference of the two methods, of each row.
        level: the level of the solve that gave a row's outputs; -1: an implicit method.
        ended: the time at which a row blows up, and the accuracy of this time.
    """

    def __init__(
        self, runnable: Runnable, own: Evaluation, course: Course, budget: float, spent: float,
        pace: Pace,
    ) -> None:  # fmt: skip
        self.runnable, self.own, self.course, self.pace = runnable, own, course, pace
        self.budget, self.spent = budget, spent
        n, task = runnable.n, runnable.task
        dtype = torch.float64 if runnable.double else own.outputs.dtype
        self.outputs = torch.full_like(own.outputs[:n], nan, dtype=dtype)
        self.states = (
            None if own.states is None else torch.full_like(own.states[:n], nan, dtype=dtype)
        )
        self.settled = torch.zeros_like(task.flipped(own.outputs[:n], own.outputs[:n]))
        self.blown_up, self.sensitive = self.settled.any(1), self.settled.any(1)
        self.apart = torch.full((n,), nan, dtype=torch.float64, device="cpu")
        self.allowed: Tensor | None = None
        self.width = 2.0
        self.needed = torch.zeros_like(self.settled)
        self.needed.view(-1)[runnable.drawn(*self.needed.shape)] = True
        self.level = torch.zeros(n, dtype=torch.long, device="cpu")
        self.ended: dict[int, tuple[float, float]] = {}
        self._residual = runnable.residual(own.outputs[:n])

    def left(self, rows: Tensor) -> Tensor:
        """The rows that must be refined further."""
        return rows[(self.needed[rows] & ~self.settled[rows]).any(1) & ~self.blown_up[rows]]

    def many(self, rows: Tensor) -> bool:
        """Whether these rows are a large part of all."""
        return len(rows) > max(TOGETHER, self.runnable.n / 4)

    def finite(self, rows: Tensor) -> Tensor:
        """Whether the outputs of rows are finite, ``(rows,)``."""
        return self.runnable.finite(self.outputs[rows], rows)

    def same(self, outputs: Tensor, known: Tensor, share: float = SHARE) -> Tensor:
        """Which predictions agree, with outputs that differ by less than a share of the change that
        flips them, ``(rows, predictions)``.
        """
        return self.runnable.task.settled(outputs, known, self.allowed, share)

    def differ(self, rows: Tensor, same: Tensor) -> Tensor:
        """Whether a needed prediction of a row is not the same, ``(rows,)``."""
        return (self.needed[rows] & ~same).any(1)

    def settle(self, rows: Tensor, same: Tensor, one: Tensor, other: Tensor) -> None:
        """Mark predictions that are the same under two methods as converged, and record the
        difference of the methods.
        """
        self.settled[rows] = same
        self.apart[rows] = (one - other).double().flatten(1).square().nanmean(1).sqrt()

    def keep(self, rows: Tensor, outputs: Tensor, states: Tensor | None, level: int) -> None:
        """Store the results of a solve of rows."""
        self.outputs[rows], self.level[rows] = outputs.to(self.outputs), level
        if self.states is not None and states is not None:
            self.states[rows] = states.to(self.states)
        self.allowed = self.runnable.task.allowed(self.outputs, self._residual)

    def run(
        self, solver: Solver, rows: Tensor, solving: Solving, double: bool | None = None
    ) -> Evaluation:
        """Run rows under a solver, in double precision if the model supports it."""
        precise = self.runnable.double if double is None else double
        ran = self.runnable.run(solver, Part(rows, precise, solving=solving))
        self.spent += ran.nfe * len(rows)
        return ran

    def run_by_parts(
        self, solver: Adaptive, rows: Tensor, size: Tensor, least: int,
        solving: Guided | Implicit, double: bool | None = None,
    ) -> Evaluation:  # fmt: skip
        """Run rows under a solver, and those again whose solution ends early.

        A row that blows up can end the solve of a whole batch. The rows of such a batch are solved
        again one by one, or in halves sorted by ``size``, down to ``least`` rows.
        """
        runnable, takes = self.runnable, self.course.takes.values()
        ran = self.run(solver, rows, solving, double)
        again = torch.tensor(
            [row in solving.ended for row in rows.tolist()], device="cpu"
        ).nonzero()[:, 0]
        alone = all(each is Takes.ROWS for each in takes) if takes else runnable.per_sample
        alone &= isinstance(solving, Guided)
        if (
            not runnable.separable
            or not len(again)
            or (solver.per_sample if alone else len(rows) <= least)
        ):
            return ran
        for half in again[size[again].argsort()].chunk(1 if alone else 2):
            part = half.sort().values
            for row in rows[part].tolist():
                del solving.ended[row]
            single = replace(solver, per_sample=alone)
            found = self.run_by_parts(single, rows[part], size[part], least, solving, double)
            ran.outputs[part] = found.outputs
            if ran.states is not None and found.states is not None:
                ran.states[part] = found.states
        return ran


def sizes(outputs: Tensor) -> Tensor:
    """The largest number of each row; infinite where one is not finite."""
    return outputs.double().abs().nan_to_num(torch.inf).flatten(1).amax(1)
