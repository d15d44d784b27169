"""Where steps of the exact flow end: features found in the field, and solves that respect them."""

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

FINEST = 4700  # most steps of an interval
BISECTIONS = 20  # that locate an edge of a feature
CLOSE = 1e-9  # least distance between two ends of steps, as a fraction of the interval
NARROWEST = 2 * CLOSE  # accuracy to which a jump is located
PLACES = 8  # with more features, all steps are shortened instead of placed around each
STEPPED = 2  # steps per feature in that case
ENDED = ("non_finite", "step_underflow")  # statuses of a solve whose solution ends early


class Feature(NamedTuple):
    """A part of an interval in which the field changes faster than the steps resolve.

    Attributes:
        start: where it begins, as all values a fraction of the interval.
        end: where it ends.
        edges: bounds ``(lower, upper)`` of each place at which the field changes.
        step: the length of the step that missed it.
    """

    start: float
    end: float
    edges: tuple[tuple[float, float], ...]
    step: float

    @property
    def scale(self) -> float:
        """The width of its widest edge."""
        return max(upper - lower for lower, upper in self.edges)

    @property
    def jumps(self) -> bool:
        """Whether it is too narrow to be told from a jump."""
        return self.end - self.start < max(self.step * 2.0 ** (2 - BISECTIONS), 2 * NARROWEST)

    def marks(self) -> Iterator[float]:
        """Ends of steps that resolve it.

        These are its edges, and around it steps that grow from its scale to the old step length.
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
    """The calls that a field supports beside all rows of a batch at one time."""

    ROWS = "any rows, each at its own time"
    TIMES = "all rows of the batch, each at its own time"
    PARTS = "any rows, all at one time"
    ONE = "nothing else"


@dataclass
class Course:
    """The constraints on the steps of all solves.

    Attributes:
        features: the features found in each ODE block.
        longest: the longest step, as a fraction of the interval.
        takes: the calls that the field of each ODE block supports, once known.
        coupled: whether rows of a batch depend on one another and must share one time.
    """

    features: dict[int, list[Feature]] = field(default_factory=dict)
    longest: float = 1.0
    takes: dict[int, Takes] = field(default_factory=dict)
    coupled: bool = False

    def add(self, block: int, found: list[Feature]) -> bool:
        """Add features, the largest first. Return whether some are new."""
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
        """Ends of steps of a block in addition to given ones, as fractions of its interval."""
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
    """Solves by the requested solver, with the ends of steps of a course.

    Args:
        course: the constraints on steps.
        nudge: initial states of the first block are multiplied by 1 + ``nudge``.

    Attributes:
        ended: where solutions end early, by row: the number of the block plus the fraction of its
            interval. NaN if a row was solved together with others, so that its time is unknown.
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
        """The solution with NaN for the rows that did not reach the end."""
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
