"""A problem in the form that the solves of the exact flow use, and its solution."""

from __future__ import annotations

from math import nan
from typing import Any

import torch
from torch import Tensor

from trueode.evaluation.course import Course
from trueode.solvers import Solution
from trueode.solvers.problem import Problem
from trueode.solvers.saving import as_times
from trueode.solvers.solution import Ending


class Posed:
    """A problem with the times at which steps must end, as fractions of its interval.

    Args:
        problem: the problem.
        samples: whether the first dimension of its state counts rows.
        course: the constraints on steps.
        block: the number of the ODE block.

    Attributes:
        wanted: the fractions at which states are saved: ``(times,)``, or ``(rows, times)`` with NaN
            where a row has none.
        jumps: the fractions at which the field may jump.
        given: both ends of the interval, and all of these.
        marks: the ends of steps that the course adds.
        ends: the union of ``given`` and ``marks``.
    """

    def __init__(self, problem: Problem, samples: bool, course: Course, block: int) -> None:
        self.problem, self.samples = problem, samples
        clock = problem.clock
        times = as_times([clock.t1] if problem.save_at is None else problem.save_at)
        times = times.detach().double().cpu()
        self.wanted = ((times - clock.t0) / (clock.length or 1.0)).clamp(0, 1)
        self.jumps = {theta for t in problem.solver.breaks if 0 < (theta := clock.fraction(t)) < 1}
        self.given = {0.0, 1.0, *self.wanted[~self.wanted.isnan()].tolist(), *self.jumps}
        self.marks = course.marks(block, self.given)
        self.ends = sorted({*self.given, *self.marks})

    def solution(
        self, kept: dict[float, Tensor], nfe: int, grid: list[float], status: str, message: str
    ) -> Solution[Any]:
        """The solution, from the states of all rows at the fractions in ``given``."""
        problem, samples = self.problem, self.samples
        z, zs = kept[1.0], None if problem.save_at is None else _gathered(kept, self.wanted)
        if not samples:
            z, zs = z[0], None if zs is None else zs[:, 0]
        unpack = problem.form.unpack
        return Solution(
            z=z if unpack is None else unpack(z),
            zs=zs if unpack is None or zs is None else unpack(zs),
            t=problem.t[1], nfe=nfe, n_steps=len(grid) - 1, n_rejected=0, errors=None,
            statuses=None, ending=Ending(status, message), _solver=problem.solver,
            _fractions=torch.tensor(grid, dtype=torch.float64, device="cpu"),
            _clock=problem.clock, _counter=problem.counter,
        )  # fmt: skip


def _gathered(kept: dict[float, Tensor], fractions: Tensor) -> Tensor:
    """States at ``(times,)`` or, for each row, ``(rows, times)``; NaN where there is no time."""
    if fractions.dim() == 1:
        return torch.stack([kept[theta] for theta in fractions.tolist()])
    lost = torch.full_like(kept[0.0][0], nan)
    rows = [
        [kept[x][r] if x == x else lost for x in row] for r, row in enumerate(fractions.tolist())
    ]
    return torch.stack([torch.stack(row) for row in rows], 1)
