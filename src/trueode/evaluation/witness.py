"""rk4 with a witness: what both methods step over shows in the defect of a solution at random times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from math import ceil, inf, nan
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trueode.evaluation.course import Course, Feature, Takes
from trueode.evaluation.defects import Rk4
from trueode.solvers import Solution
from trueode.solvers.problem import Problem
from trueode.solvers.saving import as_times


class Target(NamedTuple):
    """A row of a runnable, one of its ODE blocks, and a fraction of that one's interval."""

    row: int
    block: int
    time: float


class Witnessed:
    """Solves all problems by rk4, from a first step of random length, and looks at defects at random times.

    The defect u' - f(t, u) of the cubic Hermite interpolation u is zero at the ends of steps. The times are stratified over all
    rows; where a field takes but one time for all rows, those of a batch share them.

    Args:
        course: what steps keep to.
        n_steps: steps of an interval.
        level: of the refinement; pieces between ends of steps that are given have at least 2^(level + 1) - 1 steps.
        rows: all that are solved ``(m,)``.
        sampled: times at which each row is looked at; 0: none.
        targets: where features are to be located.

    Attributes:
        ended: of rows that cease to be finite: the number of the block plus the fraction of its interval.
        times: different times that were looked at.
        largest: of each step of each batch the largest defect, and where it is.
        located: features by block, with the sizes of their defects.
    """

    def __init__(
        self, course: Course, n_steps: int, level: int, rows: Tensor, *, sampled: int = 0,
        targets: Sequence[Target] = (),
    ) -> None:  # fmt: skip
        generator = torch.Generator("cpu").manual_seed(level)
        self.offset = float(0.1 + 0.8 * torch.rand((), generator=generator, device="cpu"))
        order = torch.randperm(len(rows), generator=generator, device="cpu").tolist()
        self.place = dict(zip(rows.tolist(), order, strict=True))
        self.course, self.n_steps, self.level, self.sampled, self.targets = course, n_steps, level, sampled, targets
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
        clock, unpack = problem.clock, problem.form.unpack
        wanted = as_times([clock.t1] if problem.save_at is None else problem.save_at).detach().double().cpu()
        fractions = ((wanted - clock.t0) / (clock.length or 1.0)).clamp(0, 1)
        jumps = {theta for t in problem.solver.breaks if 0 < (theta := clock.fraction(t)) < 1}
        given = {0.0, 1.0, *fractions[~fractions.isnan()].tolist(), *jumps}
        ends = sorted({*given, *self.course.marks(block, given)})
        solve = Rk4(problem, samples, jumps, self.course, block)
        grid, kept = self._grid(ends), {0.0: solve.z}
        times = self._times(solve) if self.sampled else None
        aims = self._aims(block, samples) if self.targets else None
        for step in solve.steps(grid, last=times is not None or aims is not None):
            if step.end in given:
                kept[step.end] = step.after
            if times is not None:
                solve.look(step, times)
            if aims is not None:
                solve.remember(step, *aims)
        for row, end in zip(self.rows.tolist(), solve.ended.tolist() if samples else (), strict=samples):
            if end < inf:
                self.ended.setdefault(row, block + end)
        if aims is not None:
            self.located.setdefault(block, []).extend(solve.located())
        zs = None if problem.save_at is None else _gathered(kept, fractions)
        z = kept[1.0]
        if not samples:
            z, zs = z[0], None if zs is None else zs[:, 0]
        finite = bool(z.isfinite().all())
        found = Solution(
            z=z if unpack is None else unpack(z), zs=zs if unpack is None or zs is None else unpack(zs), t=problem.t[1],
            nfe=ceil(solve.evaluations), n_steps=len(grid) - 1, n_rejected=0, errors=None,
            status="success" if finite else "non_finite", message="" if finite else "rk4 reached a state that is not finite.",
            statuses=None, _solver=problem.solver, _fractions=torch.tensor(grid, dtype=torch.float64, device="cpu"),
            _clock=clock, _counter=problem.counter,
        )  # fmt: skip
        if times is not None:
            self._take(block, solve, times, samples)
        record = _Record(
            found, problem.form.state if block else None, solve.defect, solve.time, fractions, samples, unpack
        )
        self.batches[-1].append(record)
        return found

    def _grid(self, ends: list[float]) -> list[float]:
        """Ends of steps: in each piece equal ones, of which the first and the last share one."""
        grid = [0.0]
        for start, end in pairwise(ends):
            width = end - start
            n = max(ceil(width * self.n_steps - 1e-9), (2 << self.level) - 1, ceil(width / self.course.longest))
            grid += [start + width * (k + self.offset) / (n - 1) for k in range(n - 1)]
            grid.append(end)
        return grid

    def _times(self, solve: Rk4) -> Tensor:
        """Times for each row, ``(sampled, rows)``: one in each equal part of the interval, of which rows have parts of their own."""
        n, places = 1, [0]
        if solve.takes is not Takes.ONE:
            n, places = len(self.place), [self.place.get(row, row % len(self.place)) for row in self.rows.tolist()]
        inside = torch.rand(self.sampled, len(places), generator=self.generator, dtype=torch.float64, device="cpu")
        inside = (torch.tensor(places, dtype=torch.float64, device="cpu") + inside) / n
        times = (torch.arange(self.sampled, device="cpu")[:, None] + inside) / self.sampled
        return times.expand(-1, len(solve.z))

    def _aims(self, block: int, samples: bool) -> tuple[Tensor, Tensor]:
        """Rows of the batch that are to be looked at again in a block, and the times."""
        place = {row: k if samples else 0 for k, row in enumerate(self.rows.tolist())}
        aims = sorted({(place[x.row], x.time) for x in self.targets if x.row in place and x.block == block})
        return (
            torch.tensor([row for row, _ in aims], dtype=torch.long, device="cpu"),
            torch.tensor([time for _, time in aims], dtype=torch.float64, device="cpu"),
        )

    def _take(self, block: int, solve: Rk4, times: Tensor, samples: bool) -> None:
        if block == 0:
            self.times += len(times) if solve.takes is Takes.ONE else times.numel()
        for size, k, time in solve.largest:
            for row in self.rows[k : k + 1].tolist() if samples else self.rows.tolist():
                self.largest.append((size, Target(row, block, time)))

    def towards(self, targets: Sequence[Target]) -> Witnessed:
        """The same steps, to locate features."""
        return Witnessed(self.course, self.n_steps, self.level, self._all, targets=targets)

    def moved(self) -> Moved:
        """The same solves once more, without a call of a field: every row keeps its largest defects to the end."""
        return Moved(iter(self.batches))


class _Record(NamedTuple):
    found: Solution[Any]
    start: Tensor | None
    defect: Tensor
    time: Tensor
    fractions: Tensor
    samples: bool
    unpack: Any


class Moved:
    """Solutions that are known, each with its largest defect added from there on."""

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


def _added(state: Any, change: Any) -> Any:
    return tuple(map(_added, state, change)) if isinstance(state, tuple) else state + change


def _gathered(kept: dict[float, Tensor], fractions: Tensor) -> Tensor:
    """States at ``(times,)`` or, for each row, ``(rows, times)``; NaN where there is no time."""
    if fractions.dim() == 1:
        return torch.stack([kept[theta] for theta in fractions.tolist()])
    lost = torch.full_like(kept[0.0][0], nan)
    rows = [[kept[x][r] if x == x else lost for x in row] for r, row in enumerate(fractions.tolist())]
    return torch.stack([torch.stack(row) for row in rows], 1)
