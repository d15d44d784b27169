"""Where steps of the exact flow end: features of the field that were found, and solves that keep to
them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from math import inf, nan
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trueode.solvers import Adaptive, Solution
from trueode.solvers.problem import Problem
from trueode.solvers.solving import solve_problem

FINEST = 4700  # steps of an interval: more are not taken
BISECTIONS = 20  # by which features are located
CLOSE = 1e-9  # of the interval: nearer to one another no two steps end
NARROWEST = 2 * CLOSE  # within so much a jump is located
PLACES = 8  # features at more places than these make all steps as short as half of them are
STEPPED = 2  # steps within a feature of which the place is not known
ENDED = ("non_finite", "step_underflow")  # how a solution that ends early ends a solve


class Feature(NamedTuple):
    """A part of an interval in which the field changes faster than steps: as fractions of the
    interval.

    Attributes:
        start: where it begins.
        end: where it ends.
        edges: where it changes, as narrow as it was found: ``(lower, upper)``.
        step: the length of the step that went over it.
    """

    start: float
    end: float
    edges: tuple[tuple[float, float], ...]
    step: float

    @property
    def scale(self) -> float:
        """Within which it changes."""
        return max(upper - lower for lower, upper in self.edges)

    @property
    def jumps(self) -> bool:
        """Whether it is a jump, as far as it can be seen."""
        return self.end - self.start < max(self.step * 2.0 ** (2 - BISECTIONS), 2 * NARROWEST)

    def marks(self) -> Iterator[float]:
        """Ends of steps that resolve it: its edges, and steps around it that grow from its scale to
        the old ones.
        """
        for edge in self.edges:
            yield from edge
        if self.jumps:
            return
        away = self.scale
        while away < self.step:
            yield self.start - away
            yield self.end + away
            away *= 2


class Takes(Enum):
    """What a field takes beside one time for all rows of a batch."""

    ROWS = "any rows, each at a time of its own"
    TIMES = "a time for each row of the batch"
    PARTS = "any rows, all at one time"
    ONE = "nothing else"


@dataclass
class Course:
    """What the steps of all solves keep to, found or given.

    Attributes:
        features: of each ODE block.
        longest: the longest step, as a fraction of the interval.
        takes: of ODE blocks, where it is known already, what their fields take.
        coupled: whether rows of a batch see one another, so that they have one time.
    """

    features: dict[int, list[Feature]] = field(default_factory=dict)
    longest: float = 1.0
    takes: dict[int, Takes] = field(default_factory=dict)
    coupled: bool = False

    def add(self, block: int, found: list[Feature]) -> bool:
        """Take features that were found, the largest first; whether there are new ones."""
        known, new = self.features.setdefault(block, []), False
        for each in found:
            if all(
                each.end < old.start - old.scale or each.start > old.end + old.scale
                for old in known
            ):
                known.append(each)
                new = True
        lasting = [each for each in known if not each.jumps]
        if len(lasting) > PLACES:
            self.longest = max(
                1 / FINEST, min(self.longest, median(x.end - x.start for x in lasting) / STEPPED)
            )
            self.features[block] = [each for each in known if each.jumps]
        return new

    def marks(self, block: int, ends: Collection[float]) -> list[float]:
        """Further ends of steps of a block beside given ones, all as fractions of its interval."""
        wanted = sorted(
            {mark for each in self.features.get(block, ()) for mark in each.marks() if 0 < mark < 1}
        )
        given, found = sorted({0.0, 1.0, *ends}), list[float]()
        for mark in wanted:
            k = bisect_left(given, mark)
            if (
                min(mark - given[k - 1], given[k] - mark, mark - found[-1] if found else inf)
                > CLOSE
            ):
                found.append(mark)
        return found


class Guided:
    """Solves by the solver that is asked for, with the ends of steps that a course gives.

    Args:
        course: what steps keep to.
        nudge: initial states of the first block are multiplied by 1 + ``nudge``.

    Attributes:
        ended: of rows whose solution ends early the number of the block plus the fraction of its
            interval; NaN where a row's own time is not known, because it was solved together with
            others.
    """

    def __init__(self, course: Course, nudge: float = 0.0) -> None:
        self._course, self.nudge = course, nudge
        self._block, self._rows = 0, torch.empty(0, dtype=torch.long, device="cpu")
        self.ended: dict[int, float] = {}

    def begin(self, rows: Tensor) -> None:
        """See `Solving`."""
        self._block, self._rows = 0, rows

    def __call__(self, problem: Problem, samples: bool) -> Solution[Any]:
        """See `Solving`."""
        block, self._block = self._block, self._block + 1
        clock, solver, z0 = problem.clock, problem.solver, problem.z0
        if self.nudge and not block:
            factor = 1 + self.nudge
            z0 = tuple(factor * x for x in z0) if isinstance(z0, tuple) else factor * z0
        fractions = (
            self._course.marks(block, [clock.fraction(t) for t in solver.breaks])
            if clock.length
            else []
        )
        marks = sorted({*solver.breaks, *(clock.t0 + x * clock.length for x in fractions)})
        if isinstance(solver, Adaptive):
            longest = self._course.longest * abs(clock.length)
            alone = (
                solver.per_sample
                and samples
                and self._course.takes.get(block, Takes.ROWS) is Takes.ROWS
            )
            solver = replace(
                solver,
                per_sample=alone,
                max_step=min(solver.max_step or inf, longest) if longest else None,
            )
        solution = solve_problem(
            replace(problem, z0=z0, solver=replace(solver, breaks=tuple(marks)))
        )
        return solution if solution.status == "success" else self._lost(solution, block, samples)

    def _lost(self, solution: Solution[Any], block: int, samples: bool) -> Solution[Any]:
        """The solution with NaN for the rows that did not arrive."""
        if not samples:
            if solution.status in ENDED:
                self.ended |= dict.fromkeys(self._rows.tolist(), nan)
            return solution
        lost = solution.lost().cpu()
        own = solution.statuses is not None or len(lost) == 1
        reached = solution._fractions[-1].expand(len(lost))
        for k in lost.nonzero()[:, 0].tolist():
            status = solution.status if solution.statuses is None else solution.statuses[k]
            if status in ENDED:
                self.ended.setdefault(int(self._rows[k]), block + float(reached[k]) if own else nan)
        gone = lost.to(solution.z.device)
        z = solution.z.masked_fill(gone.view(-1, *[1] * (solution.z.dim() - 1)), nan)
        zs = solution.zs
        return replace(
            solution,
            z=z,
            zs=None if zs is None else zs.masked_fill(gone.view(1, -1, *[1] * (zs.dim() - 2)), nan),
        )
