"""rk4 with a witness: defects at random times reveal features that both methods step over."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from math import ceil, inf
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trueode.evaluation.course import Course, Feature, Takes
from trueode.evaluation.defects import Rk4
from trueode.evaluation.posed import Posed
from trueode.solvers import Solution
from trueode.solvers.problem import Problem

CALLS = 4096  # most calls for defects of a field that takes one time for all rows
WITHIN = 0.3  # least distance of a target from the ends of its step, as a fraction of the step


class Target(NamedTuple):
    """A row of a runnable, one of its ODE blocks, and a fraction of the block's interval."""

    row: int
    block: int
    time: float


class Witnessed:
    """Solves all problems by rk4, with a random length of the first step, and samples defects at
    random times.

    The defect u' - f(t, u) of the cubic Hermite interpolation u is zero at the ends of steps. The
    times are stratified over all rows. If a field takes only one time for all rows, the rows of a
    batch share their times.

    Args:
        course: the constraints on steps.
        n_steps: steps of an interval.
        level: the level of the refinement; each piece between given ends of steps has at least
            2^(level + 1) - 1 steps.
        rows: all rows that are solved ``(m,)``.
        sampled: number of times at which each row is sampled; 0: none.
        targets: where to locate features.
        nudge: initial states of the first block are multiplied by 1 + ``nudge``.

    Attributes:
        ended: where rows cease to be finite, by row: the number of the block plus the fraction of
            its interval.
        times: the number of different times that were sampled.
        largest: the largest defect in each step of each batch, with its target.
        located: features by block, with the sizes of their defects.
    """

    def __init__(
        self, course: Course, n_steps: int, level: int, rows: Tensor, *, sampled: int = 0,
        targets: Sequence[Target] = (), nudge: float = 0.0,
    ) -> None:  # fmt: skip
        generator = torch.Generator("cpu").manual_seed(level)
        self.offset = float(0.1 + 0.8 * torch.rand((), generator=generator, device="cpu"))
        order = torch.randperm(len(rows), generator=generator, device="cpu").tolist()
        self.place = dict(zip(rows.tolist(), order, strict=True))
        self.course, self.n_steps, self.level = course, n_steps, level
        self.sampled, self.targets, self.nudge = sampled, targets, nudge
        self.generator = generator
        self.batches: list[list[_Record]] = []
        self.rows = self._all = rows
        self.ended: dict[int, float] = {}
        self.times = 0
        self.largest: list[tuple[float, Target]] = []
        self.located: dict[int, list[tuple[float, Feature]]] = {}

    def begin(self, rows: Tensor) -> None:
        """See `Solving`."""
        self.rows = rows
        self.batches.append([])

    def __call__(self, problem: Problem, samples: bool) -> Solution[Any]:
        """See `Solving`."""
        block = len(self.batches[-1])
        posed = Posed(problem, samples, self.course, block)
        solve = Rk4(problem, samples, posed.jumps, self.course, block)
        if self.nudge and not block:
            solve.z = (1 + self.nudge) * solve.z
        grid, kept = self._grid(posed.ends, block), {0.0: solve.z}
        times = self._times(solve) if self.sampled else None
        aims = self._aims(block, samples) if self.targets else None
        for step in solve.steps(grid, slopes=times is not None or aims is not None):
            if step.end in posed.given:
                kept[step.end] = step.after
            if times is not None:
                solve.look(step, times)
            if aims is not None:
                solve.remember(step, *aims)
        for row, end in zip(
            self.rows.tolist(), solve.ended.tolist() if samples else (), strict=samples
        ):
            if end < inf:
                self.ended.setdefault(row, block + end)
        if aims is not None:
            self.located.setdefault(block, []).extend(solve.located())
        finite = bool(kept[1.0].isfinite().all())
        outcome = (
            ("success", "") if finite else ("non_finite", "rk4 reached a state that is not finite.")
        )
        found = posed.solution(kept, ceil(solve.evaluations), grid, *outcome)
        if times is not None:
            self._take(block, solve, times, samples)
        start = problem.form.state if block else None
        record = _Record(
            found, start, solve.defect, solve.time, posed.wanted, samples, problem.form.unpack
        )
        self.batches[-1].append(record)
        return found

    def _grid(self, ends: list[float], block: int) -> list[float]:
        """Ends of steps: each piece has equal steps, except that the first and the last together
        make one.

        Targets lie well within their steps, because edges are recognised by being narrow compared
        with the distance to the ends of the step.
        """
        grid, aims = [0.0], sorted(target.time for target in self.targets if target.block == block)
        for start, end in pairwise(ends):
            width = end - start
            n = max(
                ceil(width * self.n_steps - 1e-9),
                (2 << self.level) - 1,
                ceil(width / self.course.longest),
            )
            kept = True
            for k in range(n - 1):
                each = start + width * (k + self.offset) / (n - 1)
                kept = not kept or not _near(each, aims, WITHIN * width / n)
                grid += [each] if kept else []
            grid.append(end)
        return grid

    def _times(self, solve: Rk4) -> Tensor:
        """Times for each row, ``(sampled, rows)``: one in each of ``sampled`` equal parts of the
        interval.

        Each part is divided among the rows.
        """
        n, places = 1, [0]
        if solve.takes is not Takes.ONE:
            n, places = (
                len(self.place),
                [self.place.get(row, row % len(self.place)) for row in self.rows.tolist()],
            )
        inside = torch.rand(
            self.sampled, len(places), generator=self.generator, dtype=torch.float64, device="cpu"
        )
        inside = (torch.tensor(places, dtype=torch.float64, device="cpu") + inside) / n
        times = (torch.arange(self.sampled, device="cpu")[:, None] + inside) / self.sampled
        if solve.takes is Takes.PARTS:  # each time needs a call: take some times of every row
            number = torch.arange(self.sampled, device="cpu")[:, None] + torch.tensor(
                places, device="cpu"
            )
            times[number % ceil(n * self.sampled / CALLS) > 0] = inf
        return times.expand(-1, len(solve.z))

    def _aims(self, block: int, samples: bool) -> tuple[Tensor, Tensor]:
        """The rows of the batch with targets in a block, and their times."""
        place = {row: k if samples else 0 for k, row in enumerate(self.rows.tolist())}
        aims = sorted(
            {(place[x.row], x.time) for x in self.targets if x.row in place and x.block == block}
        )
        return (
            torch.tensor([row for row, _ in aims], dtype=torch.long, device="cpu"),
            torch.tensor([time for _, time in aims], dtype=torch.float64, device="cpu"),
        )

    def _take(self, block: int, solve: Rk4, times: Tensor, samples: bool) -> None:
        """Store the largest defects of a solve."""
        if block == 0:
            self.times += len(times) if solve.takes is Takes.ONE else int(times.isfinite().sum())
        for size, k, time in solve.largest:
            for row in self.rows[k : k + 1].tolist() if samples else self.rows.tolist():
                self.largest.append((size, Target(row, block, time)))

    def towards(self, targets: Sequence[Target]) -> Witnessed:
        """A witness with the same steps that locates features at targets."""
        return Witnessed(self.course, self.n_steps, self.level, self._all, targets=targets)

    def moved(self) -> Moved:
        """The same solutions without field calls, each with its largest defects added."""
        return Moved(iter(self.batches))


class _Record(NamedTuple):
    """A solution of a block, with the largest defects of its rows."""

    found: Solution[Any]
    start: Tensor | None
    defect: Tensor
    time: Tensor
    fractions: Tensor
    samples: bool
    unpack: Any


class Moved:
    """Known solutions, with the largest defect of each row added from its time to the end."""

    def __init__(self, batches: Iterator[list[_Record]]) -> None:
        self._batches = batches
        self._records: Iterator[_Record] = iter(())

    def begin(self, rows: Tensor) -> None:
        """See `Solving`."""
        self._records = iter(next(self._batches))

    def __call__(self, problem: Problem, samples: bool) -> Solution[Any]:
        """See `Solving`."""
        record = next(self._records)
        defect = record.defect if samples else record.defect[0]
        before = 0.0 if record.start is None else problem.form.state - record.start
        unpack, found = record.unpack or (lambda x: x), record.found
        z = _added(found.z, unpack(before + defect))
        if found.zs is None:
            return replace(found, z=z)
        at = record.fractions.mT if record.fractions.dim() == 2 else record.fractions[:, None]
        reached = (at >= record.time[None]).to(defect)
        if not samples:
            reached = reached[:, 0]
        wide = reached.view(*reached.shape, *[1] * (defect.dim() - (reached.dim() - 1)))
        return replace(found, z=z, zs=_added(found.zs, unpack(before + wide * defect)))


def _near(x: float, values: list[float], distance: float) -> bool:
    """Whether one of the ascending values lies within a distance of ``x``."""
    k = bisect_left(values, x - distance)
    return k < len(values) and values[k] <= x + distance


def _added(state: Any, change: Any) -> Any:
    return tuple(map(_added, state, change)) if isinstance(state, tuple) else state + change
