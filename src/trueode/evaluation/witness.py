"""rk4 with a witness: what both methods step over shows in the defect of a solution at random times."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import pairwise
from math import ceil, inf, nan
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trueode.solvers import Adaptive, Solution
from trueode.solvers.problem import Problem
from trueode.solvers.saving import as_times
from trueode.solvers.solve import solve_problem

AT_ONCE = 1024  # rows of a call of the field for defects, where it takes as many
ABOVE_ROUNDING = 1e4  # so much larger is a defect that can be located
BISECTIONS = 20
CLOSE = 1e-9  # of the interval: nearer to one another no two steps end
# An error of a step is smooth; a feature that was stepped over changes within so much of the way to an end of the step, on both
# sides or on one.
SHARP, SHARPER = (
    1 / 8,
    1 / 32,
)  # of the way to an end of the step: what changes within less is a feature that was stepped over, no error of the step
PLACES = 8  # features at more places than these make all steps as short as they are
SHORTEST = 1 / 4700  # of the interval, that steps are made for this
STEPPED = 2  # steps within a feature of which the place is not known

Field = Callable[[Tensor, Tensor], Tensor]


class Feature(NamedTuple):
    """A part of an interval in which the field changes faster than steps: as fractions of the interval.

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
        return self.end - self.start < self.step * 2.0 ** (2 - BISECTIONS)

    def marks(self) -> Iterator[float]:
        """Ends of steps that resolve it: its edges, and steps around it that grow from its scale to the old ones."""
        for edge in self.edges:
            yield from edge
        if self.jumps:
            return
        away = self.scale
        while away < self.step:
            yield self.start - away
            yield self.end + away
            away *= 2


class Target(NamedTuple):
    """A row of a runnable, one of its ODE blocks, and a fraction of that one's interval."""

    row: int
    block: int
    time: float


class Takes(Enum):
    """What a field takes beside one time for all rows of a batch."""

    ROWS = "any rows, each at a time of its own"
    TIMES = "a time for each row of the batch"
    ONE = "nothing else"


@dataclass
class Course:
    """What the steps of all solves keep to, found or given.

    Attributes:
        features: of each ODE block.
        longest: the longest step, as a fraction of the interval.
        takes: of ODE blocks, where it is known already, what their fields take.
    """

    features: dict[int, list[Feature]] = field(default_factory=dict)
    longest: float = 1.0
    takes: dict[int, Takes] = field(default_factory=dict)

    def add(self, block: int, found: list[Feature]) -> bool:
        """Take features that were found, the largest first; whether there are new ones."""
        known, new = self.features.setdefault(block, []), False
        for each in found:
            if all(each.end < old.start - old.scale or each.start > old.end + old.scale for old in known):
                known.append(each)
                new = True
        lasting = [each for each in known if not each.jumps]
        if len(lasting) > PLACES:
            self.longest = max(SHORTEST, min(self.longest, *((x.end - x.start) / STEPPED for x in lasting)))
            self.features[block] = [each for each in known if each.jumps]
        return new

    def marks(self, block: int, ends: Collection[float]) -> list[float]:
        """Further ends of steps of a block beside given ones, all as fractions of its interval."""
        wanted = sorted({mark for each in self.features.get(block, ()) for mark in each.marks() if 0 < mark < 1})
        given, found = sorted({0.0, 1.0, *ends}), list[float]()
        for mark in wanted:
            k = bisect_left(given, mark)
            if min(mark - given[k - 1], given[k] - mark, mark - found[-1] if found else inf) > CLOSE:
                found.append(mark)
        return found


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
        self.rows = self.rows_of_all = rows
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
        solve = _Solve(problem, samples, jumps, self.course, block)
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

    def _times(self, solve: _Solve) -> Tensor:
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

    def _take(self, block: int, solve: _Solve, times: Tensor, samples: bool) -> None:
        if block == 0:
            self.times += len(times) if solve.takes is Takes.ONE else times.numel()
        for size, k, time in solve.largest:
            for row in self.rows[k : k + 1].tolist() if samples else self.rows.tolist():
                self.largest.append((size, Target(row, block, time)))

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


class _Step(NamedTuple):
    start: float
    end: float
    h: float
    before: Tensor
    after: Tensor
    early: Tensor
    late: Tensor

    def at(self, rows: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """The interpolation of rows at fractions of the interval, and its derivative times the step."""
        theta = ((time - self.start) / (self.end - self.start)).to(self.before)
        rows = rows.to(self.before.device)
        return hermite(theta, self.before[rows], self.after[rows], self.h * self.early[rows], self.h * self.late[rows])


def hermite(theta: Tensor, before: Tensor, after: Tensor, early: Tensor, late: Tensor) -> tuple[Tensor, Tensor]:
    """The cubic interpolation at fractions ``(rows,)`` of a step, and its derivative; slopes are times the step.

    Source: Hairer, Nørsett & Wanner, Solving Ordinary Differential Equations I, eq. II.6.7.
    """
    theta = theta.view(-1, *[1] * (before.dim() - 1))
    change = after - before
    bend = (1 - 2 * theta) * change + (theta - 1) * early + theta * late
    state = before + theta * change + theta * (theta - 1) * bend
    slope = change + (2 * theta - 1) * bend + theta * (theta - 1) * (early + late - 2 * change)
    return state, slope


class _Solve:
    """rk4 on one problem, and its field at other times and states.

    Attributes:
        z: the initial state, rows first.
        size, time, defect: of each row its largest defect times the step.
        largest: of each step the largest defect, with its row and time.
        ended: the fraction at which each row ceases to be finite; inf: it does not.
        evaluations: of the field, for a row.
    """

    def __init__(self, problem: Problem, samples: bool, jumps: set[float], course: Course, block: int) -> None:
        self._field, state, _ = problem.form
        self._clock, self._jumps, self._course, self._block = problem.clock, jumps, course, block
        self.samples = samples
        self.z = state if samples else state[None]
        self.evaluations = 0.0
        n = len(self.z)
        self.ended = torch.full((n,), inf, dtype=torch.float64, device="cpu")
        self.size = torch.zeros(n, dtype=torch.float64, device="cpu")
        self.time = torch.full((n,), inf, dtype=torch.float64, device="cpu")
        self.defect = torch.zeros_like(self.z)
        self.largest: list[tuple[float, int, float]] = []
        self._remembered: list[tuple[Tensor, Tensor, _Step]] = []
        if not samples:
            course.takes[block] = Takes.ONE

    def _time(self, theta: float, side: int = 0) -> Tensor:
        """The time at a fraction, as the field is to see it; where it jumps, from one side."""
        t = torch.tensor(self._clock.t0 + theta * self._clock.length, dtype=self._clock.dtype, device="cpu")
        if side and theta in self._jumps:
            t = t.nextafter(torch.full_like(t, side * self._clock.length * inf))
        return t.to(self.z.device)

    def _call(self, t: Tensor, z: Tensor) -> Tensor:
        self.evaluations += len(z) / len(self.z)
        return self._field(t, z) if self.samples else self._field(t, z[0])[None]

    def steps(self, grid: list[float], last: bool) -> Iterator[_Step]:
        """Take all steps; ``last``: whether the slope at the end of the last one is needed."""
        z, late = self.z, None
        for start, end in pairwise(grid):
            h = (end - start) * self._clock.length
            middle = self._time((start + end) / 2)
            early = self._call(self._time(start, 1), z) if late is None or start in self._jumps else late
            k2 = self._call(middle, z + h / 2 * early)
            k3 = self._call(middle, z + h / 2 * k2)
            k4 = self._call(self._time(end, -1), z + h * k3)
            after = z + h / 6 * (early + 2 * (k2 + k3) + k4)
            late = self._call(self._time(end, -1), after) if last or end < 1 else early
            yield _Step(start, end, h, z, after, early, late)
            z = after
            gone = ~z.isfinite().flatten(1).all(1).cpu()
            self.ended = torch.where(gone & self.ended.isinf(), end, self.ended)

    @property
    def takes(self) -> Takes:
        """What the field takes."""
        known = self._course.takes.get(self._block)
        if known is None:
            known = self._course.takes[self._block] = self._tried()
        return known

    def _tried(self) -> Takes:
        n = len(self.z)
        moments = torch.tensor([0.37, 0.61], dtype=torch.float64, device="cpu")
        expected = torch.stack([self._call(self._time(float(x)), self.z) for x in moments])
        near = 1e3 * torch.finfo(self.z.dtype).eps * float(expected.abs().amax())
        for kind, rows in (
            (Takes.ROWS, torch.arange(2 * (n // 2) + 1, device="cpu").remainder(max(n - 1, 1))),
            (Takes.TIMES, torch.arange(n, device="cpu")),
        ):
            which = torch.arange(len(rows), device="cpu") % 2
            rows = rows.to(self.z.device)
            try:
                found = self._call(self._times(moments[which]), self.z[rows])
            except Exception:  # a foreign field may refuse in any way
                continue
            wanted = expected[which.to(rows.device), rows]
            if found.shape == wanted.shape and bool(((found - wanted).abs() <= near).all()):
                return kind
        return Takes.ONE

    def _times(self, fractions: Tensor) -> Tensor:
        """Times for rows, ``(rows, 1, …)``."""
        times = (self._clock.t0 + fractions * self._clock.length).to(self.z.device, self._clock.dtype)
        return times.view(-1, *[1] * (self.z.dim() - 1))

    def at(self, rows: Tensor, time: Tensor, states: Tensor) -> Tensor:
        """The field at states of rows, each at a time of its own, a fraction of the interval: ``(entries, …)``."""
        if self.takes is Takes.ROWS:
            parts = zip(torch.split(time, AT_ONCE), torch.split(states, AT_ONCE), strict=True)
            return torch.cat([self._call(self._times(t), z) for t, z in parts])
        found, rows = torch.empty_like(states), rows.to(states.device)
        if self.takes is Takes.ONE:
            for t in time.unique().tolist():  # type: ignore[no-untyped-call]
                here = (time == t).nonzero()[:, 0].to(states.device)
                whole = self.z.index_copy(0, rows[here], states[here])
                found[here] = self._call(self._time(t), whole)[rows[here]]
            return found
        left = torch.arange(len(rows), device=states.device)
        while len(left):  # one entry of each row at once
            here = left[
                torch.zeros(len(self.z), dtype=torch.long, device=left.device).index_copy(0, rows[left], left)[
                    rows[left]
                ]
                == left
            ]
            times = torch.full((len(self.z),), float(time[0]), dtype=torch.float64, device="cpu")
            times[rows[here].cpu()] = time[here.cpu()]
            found[here] = self._call(self._times(times), self.z.index_copy(0, rows[here], states[here]))[rows[here]]
            left = left[~torch.isin(left, here)]
        return found

    def look(self, step: _Step, times: Tensor) -> None:
        """Look at the defects at those of the times that lie in a step."""
        inside = (times >= step.start) & (times < step.end)
        number, rows = inside.nonzero().unbind(1)
        if not len(rows):
            return
        time = times[number, rows]
        states, slopes = step.at(rows, time)
        defects = slopes - step.h * self.at(rows, time, states)
        size = defects.flatten(1).double().norm(dim=1).nan_to_num(0.0, 0.0, 0.0).cpu()
        most = self.size.scatter_reduce(0, rows, size, "amax")
        top = int(size.argmax())
        self.largest.append((float(size[top]), int(rows[top]), float(time[top])))
        best = (size == most[rows]) & (size > self.size[rows])
        self.size, where = most, rows[best]
        self.time[where] = time[best]
        self.defect[where.to(self.defect.device)] = defects[best.to(defects.device)]

    def remember(self, step: _Step, rows: Tensor, times: Tensor) -> None:
        """Keep a step in which features are to be located, at times of rows."""
        inside = (times >= step.start) & (times < step.end)
        if bool(inside.any()):
            self._remembered.append((rows[inside], times[inside], step))

    def located(self) -> Iterator[tuple[float, Feature]]:
        """The features where steps were kept, with the size of the defect there."""
        for rows, time, step in self._remembered:

            def defect(t: Tensor, rows: Tensor = rows, step: _Step = step) -> Tensor:
                states, slopes = step.at(rows, t)
                return (slopes - step.h * self.at(rows, t, states)).flatten(1).double().cpu()

            there = defect(time)
            ends = [torch.full_like(time, end) for end in (step.start, step.end)]
            edges = [_edge(defect, time, end, there) for end in ends]
            size = there.norm(dim=1)
            noise = ABOVE_ROUNDING * torch.finfo(self.z.dtype).eps * float(step.before[rows].abs().amax())
            for k in range(len(rows)):
                away = (float((time[k] - end[k]).abs()) for end in ends)
                pairs = [sorted((float(x[k]), float(y[k]))) for x, y in edges]
                found = [(pair, (pair[1] - pair[0]) / far) for pair, far in zip(pairs, away, strict=True) if far]
                both = all(ratio < SHARP for _, ratio in found)
                sharp = tuple((low, high) for (low, high), ratio in found if both or ratio < SHARPER)
                if not float(size[k]) > noise:
                    continue
                for part in _parts(sharp, step.end - step.start):
                    yield float(size[k]), part


def _parts(edges: tuple[tuple[float, float], ...], step: float) -> Iterator[Feature]:
    """A jump is a feature by itself; other edges belong to one."""
    apart = [Feature(low, high, ((low, high),), step) for low, high in edges]
    lasting = [each for each in apart if not each.jumps]
    yield from (each for each in apart if each.jumps)
    if lasting:
        yield Feature(
            min(x.start for x in lasting), max(x.end for x in lasting), tuple(x.edges[0] for x in lasting), step
        )


def _edge(defect: Callable[[Tensor], Tensor], inside: Tensor, outside: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """The narrowest parts between two times in which a defect changes by half of itself, by bisection."""
    at_inside, at_outside = there, torch.zeros_like(there)
    size, going = there.norm(dim=1), torch.ones(len(there), dtype=torch.bool, device="cpu")
    for _ in range(BISECTIONS):
        middle = (inside + outside) / 2
        at_middle = defect(middle)
        size = torch.maximum(size, at_middle.norm(dim=1))  # the defect may grow on the way
        near, far = (at_inside - at_middle).norm(dim=1), (at_middle - at_outside).norm(dim=1)
        going &= torch.maximum(near, far) >= size / 2
        if not bool(going.any()):
            break
        closer, further = going & (near >= far), going & (near < far)
        outside = torch.where(closer, middle, outside)
        at_outside = torch.where(closer[:, None], at_middle, at_outside)
        inside = torch.where(further, middle, inside)
        at_inside = torch.where(further[:, None], at_middle, at_inside)
    return inside, outside


class Guided:
    """Solves by the solver that is asked for, with the ends of steps that a course gives.

    Attributes:
        ended: of rows whose solve ended early: the number of the block plus the fraction of its interval, where that is a row's own.
    """

    def __init__(self, course: Course, nudge: float = 0.0) -> None:
        self._course, self.nudge = course, nudge
        self._block, self.rows = 0, torch.empty(0, dtype=torch.long, device="cpu")
        self.ended: dict[int, float] = {}

    def begin(self, rows: Tensor) -> None:
        """See `Solving`."""
        self._block, self.rows = 0, rows

    def __call__(self, problem: Problem, samples: bool) -> Solution[Any]:
        """See `Solving`."""
        block, self._block = self._block, self._block + 1
        clock, solver, z0 = problem.clock, problem.solver, problem.z0
        if self.nudge and not block:
            factor = 1 + self.nudge
            z0 = tuple(factor * x for x in z0) if isinstance(z0, tuple) else factor * z0
        fractions = self._course.marks(block, [clock.fraction(t) for t in solver.breaks]) if clock.length else []
        marks = sorted({*solver.breaks, *(clock.t0 + x * clock.length for x in fractions)})
        if isinstance(solver, Adaptive):
            longest = self._course.longest * abs(clock.length)
            alone = solver.per_sample and samples and self._course.takes.get(block) is not Takes.ONE
            solver = replace(
                solver, per_sample=alone, max_step=min(solver.max_step or inf, longest) if longest else None
            )
        solution = solve_problem(replace(problem, z0=z0, solver=replace(solver, breaks=tuple(marks))))
        if solution.status != "success" and samples and (solution.statuses is not None or len(self.rows) == 1):
            lost = solution.lost().cpu()
            reached = solution._fractions[-1].expand(len(lost))
            for k in lost.nonzero()[:, 0].tolist():
                self.ended.setdefault(int(self.rows[k]), block + float(reached[k]))
        return solution
