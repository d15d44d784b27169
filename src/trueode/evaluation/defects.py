"""rk4 on one problem, and the defects of its solution between the ends of its steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from math import inf, nan
from typing import NamedTuple

import torch
from torch import Tensor

from trueode.evaluation.course import Course, Feature, Takes
from trueode.evaluation.edges import bisected, features
from trueode.solvers import OnGrid
from trueode.solvers.backends import backend_of, is_compiled, with_fast_field
from trueode.solvers.problem import Problem

AT_ONCE = 2**18  # numbers in the states of one field call for defects, if it takes any rows
KEPT = 2**21  # numbers in the states of the steps that the compiled kernel takes at once
ABOVE_ROUNDING = 1e4  # factor by which a defect must exceed rounding to be located


class Step(NamedTuple):
    """A step of rk4: its ends as fractions of the interval, its length, states and slopes."""

    start: float
    end: float
    h: float
    before: Tensor
    after: Tensor
    early: Tensor
    late: Tensor

    def at(self, rows: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """The interpolation of rows at fractions of the interval, and its derivative times the
        step length.
        """
        theta = ((time - self.start) / (self.end - self.start)).to(self.before)
        rows = rows.to(self.before.device)
        return hermite(
            theta,
            self.before[rows],
            self.after[rows],
            self.h * self.early[rows],
            self.h * self.late[rows],
        )


def hermite(
    theta: Tensor, before: Tensor, after: Tensor, early: Tensor, late: Tensor
) -> tuple[Tensor, Tensor]:
    """The cubic Hermite interpolation at fractions ``(rows,)`` of a step, and its derivative.

    All slopes are multiplied by the step length.

    Source: Hairer, Nørsett & Wanner, Solving Ordinary Differential Equations I, eq. II.6.7.
    """
    theta = theta.view(-1, *[1] * (before.dim() - 1))
    change = after - before
    bend = (1 - 2 * theta) * change + (theta - 1) * early + theta * late
    state = before + theta * change + theta * (theta - 1) * bend
    slope = change + (2 * theta - 1) * bend + theta * (theta - 1) * (early + late - 2 * change)
    return state, slope


class Rk4:
    """rk4 on one problem, and its field at other times and states.

    Attributes:
        z: the initial state, rows first.
        size, time, defect: the largest defect of each row, times the step length.
        largest: the largest defect of each step, with its row and time.
        ended: the fraction at which each row ceases to be finite; inf if it does not.
        evaluations: field evaluations per row.
        length: the length of the interval; negative if time runs backwards.
    """

    def __init__(
        self, problem: Problem, samples: bool, jumps: set[float], course: Course, block: int
    ) -> None:
        self._problem = problem
        self._field, state, _ = with_fast_field(problem).form
        self._clock, self._jumps, self._course, self._block = problem.clock, jumps, course, block
        self.samples, self.length = samples, problem.clock.length
        self.z = state if samples else state[None]
        self.evaluations = 0.0
        n = len(self.z)
        self.ended = torch.full((n,), inf, dtype=torch.float64, device="cpu")
        self.size = torch.zeros(n, dtype=torch.float64, device="cpu")
        self.time = torch.full((n,), inf, dtype=torch.float64, device="cpu")
        self.defect = torch.zeros_like(self.z)
        self.largest: list[tuple[float, int, float]] = []
        self._remembered: list[tuple[Tensor, Tensor, Step]] = []
        if course.coupled or not samples:
            course.takes[block] = Takes.ONE

    def moment(self, theta: float, side: int = 0) -> Tensor:
        """The time at a fraction of the interval, as an argument of the field.

        At a jump, ``side`` (-1 or 1) moves it to the nearest number before or after.
        """
        t = torch.tensor(
            self._clock.t0 + theta * self.length, dtype=self._clock.dtype, device="cpu"
        )
        if side and theta in self._jumps:
            t = t.nextafter(torch.full_like(t, side * self.length * inf))
        return t.to(self.z.device)

    def call(self, t: Tensor, z: Tensor) -> Tensor:
        """Call the field and count the evaluation."""
        self.evaluations += len(z) / len(self.z)
        return self._field(t, z) if self.samples else self._field(t, z[0])[None]

    def steps(self, grid: list[float], slopes: bool) -> Iterator[Step]:
        """Take all steps.

        Args:
            grid: the ends of the steps, as fractions of the interval.
            slopes: whether to compute the slopes at both ends of each step. Otherwise some steps
                hold NaN in their place.
        """
        whole = replace(self._problem, solver=OnGrid("rk4", (0.0, 1.0)), save_at=None)
        compiled = self.samples and not self._jumps and is_compiled(whole)
        for step in self._compiled(grid, slopes) if compiled else self._called(grid, slopes):
            yield step
            gone = ~step.after.isfinite().flatten(1).all(1).cpu()
            self.ended = torch.where(gone & self.ended.isinf(), step.end, self.ended)

    def _called(self, grid: list[float], slopes: bool) -> Iterator[Step]:
        """Take the steps by calling the field."""
        z, late = self.z, None
        for start, end in pairwise(grid):
            h = (end - start) * self.length
            middle = self.moment((start + end) / 2)
            early = (
                self.call(self.moment(start, 1), z)
                if late is None or start in self._jumps
                else late
            )
            k2 = self.call(middle, z + h / 2 * early)
            k3 = self.call(middle, z + h / 2 * k2)
            k4 = self.call(self.moment(end, -1), z + h * k3)
            after = z + h / 6 * (early + 2 * (k2 + k3) + k4)
            late = self.call(self.moment(end, -1), after) if slopes or end < 1 else early
            yield Step(start, end, h, z, after, early, late)
            z = after

    def _compiled(self, grid: list[float], slopes: bool) -> Iterator[Step]:
        """Take the steps by the compiled kernel, and compute the slopes of many of them at once."""
        z, at_once = self.z, max(1, KEPT // max(self.z.numel(), 1))
        for first in range(0, len(grid) - 1, at_once):
            part = grid[first : first + at_once + 1]
            states = self._states(part, z)
            found = (
                self._slopes(part, states) if slopes else states.new_full((), nan).expand_as(states)
            )
            for k, (start, end) in enumerate(pairwise(part)):
                h = (end - start) * self.length
                yield Step(start, end, h, states[k], states[k + 1], found[k], found[k + 1])
            z = states[-1]

    def _states(self, grid: list[float], z: Tensor) -> Tensor:
        """The states at the ends of steps, ``(ends, rows, …)``, by the compiled kernel."""
        length = grid[-1] - grid[0]
        times = [self._clock.t0 + theta * self.length for theta in grid]
        inner = [(theta - grid[0]) / length for theta in grid[1:-1]]
        problem = replace(
            self._problem,
            z0=z,
            t=(times[0], times[-1]),
            solver=OnGrid("rk4", (0.0, *inner, 1.0)),
            save_at=times,
        )
        self.evaluations += 4 * (len(grid) - 1)
        with torch.no_grad():
            states: Tensor = backend_of(problem).solve(problem).zs
        return states

    def _slopes(self, grid: list[float], states: Tensor) -> Tensor:
        """The field at the ends of steps, ``(ends, rows, …)``."""
        if self.takes is not Takes.ROWS:
            return torch.stack(
                [self.call(self.moment(x), z) for x, z in zip(grid, states, strict=True)]
            )
        times = torch.tensor(grid, dtype=torch.float64, device="cpu").repeat_interleave(len(self.z))
        return self._anywhere(times, states.flatten(0, 1)).view_as(states)

    @property
    def takes(self) -> Takes:
        """The calls that the field supports."""
        known = self._course.takes.get(self._block)
        if known is None:
            known = self._course.takes[self._block] = self._tried()
        return known

    def _tried(self) -> Takes:
        """Try each kind of call, and compare its result with that of ordinary calls."""
        n = len(self.z)
        moments = torch.tensor([0.37, 0.61], dtype=torch.float64, device="cpu")
        expected = torch.stack([self.call(self.moment(float(x)), self.z) for x in moments])
        near = 1e3 * torch.finfo(self.z.dtype).eps * float(expected.abs().amax())
        every = torch.arange(n, device="cpu")
        more, alternating = (
            torch.arange(n + 1, device="cpu").remainder(max(n - 1, 1)),
            torch.arange(n + 1, device="cpu") % 2,
        )
        for kind, rows, which in (
            (Takes.ROWS, more, alternating),
            (Takes.TIMES, every, alternating[:n]),
            (Takes.PARTS, every[-1:], None),
        ):
            times = self.moment(float(moments[0])) if which is None else self._times(moments[which])
            rows = rows.to(self.z.device)
            try:
                found = self.call(times, self.z[rows])
            except Exception:  # a user's field may fail in any way
                continue
            wanted = expected[0 if which is None else which.to(rows.device), rows]
            if found.shape == wanted.shape and bool(((found - wanted).abs() <= near).all()):
                return kind
        return Takes.ONE

    def _times(self, fractions: Tensor) -> Tensor:
        """Times for rows, ``(rows, 1, …)``."""
        times = (self._clock.t0 + fractions * self.length).to(self.z.device, self._clock.dtype)
        return times.view(-1, *[1] * (self.z.dim() - 1))

    def defects(self, step: Step, rows: Tensor, time: Tensor) -> Tensor:
        """Defects times the step length, ``(entries, …)``.

        Args:
            step: the step.
            rows: the row of each entry.
            time: the time of each entry, as a fraction of the interval.
        """
        states, slopes = step.at(rows, time)
        if self.takes is Takes.ROWS:
            return slopes - step.h * self._anywhere(time, states)
        if len(self.z) == 1 or self.takes is Takes.PARTS:
            alone = [
                self.call(self.moment(t), z[None])
                for t, z in zip(time.tolist(), states, strict=True)
            ]
            return slopes - step.h * torch.cat(alone)
        found, every = torch.empty_like(states), torch.arange(len(self.z), device="cpu")
        left = torch.arange(len(rows), device="cpu")
        while len(left):
            times = torch.full(
                (len(every),), float(time[left[0]]), dtype=torch.float64, device="cpu"
            )
            if self.takes is Takes.TIMES:  # one entry of each row at once
                last = torch.zeros(len(every), dtype=torch.long, device="cpu").index_copy(
                    0, rows[left], left
                )
                here = left[last[rows[left]] == left]
                times[rows[here]] = time[here]
                moments = self._times(times)
            else:
                here = left[time[left] == time[left[0]]]
                moments = self.moment(float(times[0]))
            values = self.call(moments, step.at(every, times)[0])
            found[here.to(found.device)] = values[rows[here].to(values.device)]
            left = left[~torch.isin(left, here)]
        return slopes - step.h * found

    def _anywhere(self, time: Tensor, states: Tensor) -> Tensor:
        """The field at states ``(entries, …)``, each with its own time, which it must support."""
        rows_at_once = max(1, AT_ONCE // max(states[:1].numel(), 1))
        parts = zip(torch.split(time, rows_at_once), torch.split(states, rows_at_once), strict=True)
        return torch.cat([self.call(self._times(t), z) for t, z in parts])

    def look(self, step: Step, times: Tensor) -> None:
        """Record the defects at those times ``(times, rows)`` that lie in a step."""
        inside = (times >= step.start) & (times < step.end)
        number, rows = inside.nonzero().unbind(1)
        if not len(rows):
            return
        time = times[number, rows]
        defects = self.defects(step, rows, time)
        size = defects.flatten(1).double().norm(dim=1).nan_to_num(0.0, 0.0, 0.0).cpu()
        most = self.size.scatter_reduce(0, rows, size, "amax")
        top = int(size.argmax())
        self.largest.append((float(size[top]), int(rows[top]), float(time[top])))
        best = (size == most[rows]) & (size > self.size[rows])
        self.size, where = most, rows[best]
        self.time[where] = time[best]
        self.defect[where.to(self.defect.device)] = defects[best.to(defects.device)]

    def remember(self, step: Step, rows: Tensor, times: Tensor) -> None:
        """Keep a step if one of the times of the rows lies in it, to locate features there."""
        inside = (times >= step.start) & (times < step.end)
        if bool(inside.any()):
            self._remembered.append((rows[inside], times[inside], step))

    def located(self) -> Iterator[tuple[float, Feature]]:
        """The features in the steps that were kept, with the size of their defects."""
        for rows, time, step in self._remembered:

            def defect(times: Tensor, rows: Tensor = rows, step: Step = step) -> Tensor:
                every = rows.repeat(times.numel() // len(rows))
                return (
                    self.defects(step, every, times.flatten())
                    .double()
                    .cpu()
                    .reshape(*times.shape, -1)
                )

            there, n = defect(time), len(rows)
            ends = [torch.full_like(time, end) for end in (step.start, step.end)]
            edges = [
                edge.view(2, n).tolist()
                for edge in bisected(defect, time.repeat(2), torch.cat(ends), there.repeat(2, 1))
            ]
            size = there.norm(dim=1)
            noise = (
                ABOVE_ROUNDING
                * torch.finfo(self.z.dtype).eps
                * float(step.before[rows].abs().amax())
            )
            for k in (size > noise).nonzero()[:, 0].tolist():
                away = [float((time[k] - end[k]).abs()) for end in ends]
                pairs = [sorted((x[k], y[k])) for x, y in zip(*edges, strict=True)]
                for part in features(pairs, away, step.end - step.start):
                    yield float(size[k]), part
