"""A solve in pieces, split at the times at which the field may jump."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from itertools import pairwise
from math import inf
from operator import add
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trueode.errors import UsageError
from trueode.solvers.clock import Clock
from trueode.solvers.integrate import Outcome
from trueode.solvers.problem import Problem
from trueode.solvers.saving import as_times
from trueode.solvers.solver import Adaptive, FixedStep, OnGrid, Solver


class _Piece(NamedTuple):
    """A part of the interval: its ends as fractions, and the times of the breaks there (None: no
    break).
    """

    start: float
    end: float
    breaks: tuple[float | None, float | None]


def in_pieces(problem: Problem, solve: Callable[[Problem], Outcome]) -> Outcome:
    """Solve a problem from break to break; steps end there, and each step uses the values of the
    field on its own side.

    The ends of the interval and saved times can be differentiated; breaks are constants.

    Args:
        problem: a problem whose solver has breaks.
        solve: solves a problem without breaks.
    """
    clock, solver, z, saved = problem.clock, problem.solver, problem.z0, _Saved(problem)
    marks = {theta: t for t in solver.breaks if 0 <= (theta := clock.fraction(t)) <= 1}
    pieces = [
        _Piece(a, b, (marks.get(a), marks.get(b))) for a, b in pairwise(sorted({0.0, 1.0, *marks}))
    ]
    outcomes: list[Outcome] = []
    for piece in pieces:
        seen = _seen_from_inside(problem, piece)
        ends = tuple(
            problem.t[int(theta)] if theta in (0.0, 1.0) else marks[theta] for theta in piece[:2]
        )
        steps = (
            _steps(solver, piece, clock, outcomes)
            if len(pieces) > 1
            else replace(solver, breaks=())
        )
        outcome = _after(
            outcomes, solve(replace(seen, z0=z, t=ends, solver=steps, save_at=saved.within(piece)))
        )
        saved.take(outcome.zs)
        outcomes.append(outcome)
        z = outcome.z
        if outcome.status != "success" and outcome.statuses is None:
            break
    grids = [
        torch.where(
            each.fractions == 1, piece.end, piece.start + each.fractions * (piece.end - piece.start)
        )
        for each, piece in zip(outcomes, pieces, strict=False)
    ]
    return outcomes[-1]._replace(
        zs=saved.states(),
        fractions=torch.cat([grids[0], *(grid[1:] for grid in grids[1:])]),
        n_steps=reduce(add, (each.n_steps for each in outcomes)),
        n_rejected=reduce(add, (each.n_rejected for each in outcomes)),
        errors=None
        if outcomes[0].errors is None
        else torch.cat([each.errors for each in outcomes if each.errors is not None]),
        message=next((each.message for each in outcomes if each.message), ""),
    )


def _after(before: Sequence[Outcome], outcome: Outcome) -> Outcome:
    """The outcome of a piece; samples that failed before it keep their states and statuses."""
    known = before[-1].statuses if before else None
    if known is None or outcome.statuses is None or all(status == "success" for status in known):
        return outcome
    gone = torch.tensor([status != "success" for status in known], device="cpu")
    statuses = tuple(
        old if old != "success" else new for old, new in zip(known, outcome.statuses, strict=True)
    )
    zs = None if outcome.zs is None else _where(gone[None], float("nan"), outcome.zs)
    return outcome._replace(
        z=_where(gone, before[-1].z, outcome.z), zs=zs, statuses=statuses, status=before[-1].status
    )


def _where(mask: Tensor, chosen: Any, other: Any) -> Any:
    """``torch.where`` of states, with a mask of their first dimensions."""
    if isinstance(other, tuple):
        return tuple(
            _where(mask, chosen[i] if isinstance(chosen, tuple) else chosen, x)
            for i, x in enumerate(other)
        )
    wide = mask.to(other.device).view(*mask.shape, *[1] * (other.dim() - mask.dim()))
    return torch.where(wide, chosen, other)


def _seen_from_inside(problem: Problem, piece: _Piece) -> Problem:
    """The problem with one-sided values of its field at the breaks; layers do not jump."""
    if problem.layers is not None or piece.breaks == (None, None):
        return problem
    field, sign = problem.field, 1 if problem.clock.length > 0 else -1
    after, before = (
        None if t is None else _next(t, direction * sign * inf, problem.clock.dtype)
        for t, direction in zip(piece.breaks, (1, -1), strict=True)
    )
    low, high = (after, before)[::sign]

    def one_sided(t: Tensor, z: Any) -> Any:
        # the shift is a constant: a moving end of the interval moves the time that the field sees
        return field(t + (t.clamp(low, high) - t).detach(), z)

    return problem.with_field(one_sided)


def _next(t: float, towards: float, dtype: torch.dtype) -> float:
    """The number of a dtype that follows a time in the direction of ``towards``."""
    rounded, end = torch.tensor([t, towards], dtype=dtype, device="cpu")
    beyond = float(rounded) > t if towards > 0 else float(rounded) < t
    return float(rounded if beyond else rounded.nextafter(end))


def _steps(solver: Solver, piece: _Piece, clock: Clock, before: Sequence[Outcome]) -> Solver:
    """The solver of a piece; its ``max_steps`` is what earlier pieces have left."""
    used = sum(
        int(torch.as_tensor(each.n_steps + each.n_rejected, device="cpu").max()) for each in before
    )
    if isinstance(solver, Adaptive):
        first = None if before else solver.first_step
        return replace(
            solver, breaks=(), first_step=first, max_steps=max(1, solver.max_steps - used)
        )
    if isinstance(solver, FixedStep):
        most = None if solver.max_steps is None else max(1, solver.max_steps - used)
        step = solver.step_size or (abs(clock.length) or 1.0) / (solver.n_steps or 1)
        return FixedStep(solver.method, step_size=step, max_steps=most, max_step=solver.max_step)
    rows = [row if isinstance(row, tuple) else (row,) for row in solver.grid]
    first, last = (
        bisect_left([min(row) for row in rows], theta - clock.slack) for theta in piece[:2]
    )
    if piece.end == 1.0:
        last = len(rows) - 1
    width, part = piece.end - piece.start, rows[first : last + 1]
    if any(
        abs(theta - end) > clock.slack
        for row, end in ((part[0], piece.start), (part[-1], piece.end))
        for theta in row
    ):
        raise UsageError(f"The grid must have points at the breaks, {solver.breaks}.")
    inner = [
        tuple(min(max((theta - piece.start) / width, 0.0), 1.0) for theta in row)
        for row in part[1:-1]
    ]
    size = len(rows[0])
    grid = ((0.0,) * size, *inner, (1.0,) * size)
    return OnGrid(solver.method, grid if solver.per_sample else tuple(row[0] for row in grid))


class _Saved:
    """Splits the requested times among pieces, and joins the states there."""

    def __init__(self, problem: Problem) -> None:
        self._times = None if problem.save_at is None else as_times(problem.save_at)
        self._points = problem.points
        self._masks, self._states = list[Tensor](), list[Any]()

    def within(self, piece: _Piece) -> Tensor | None:
        """The times in a piece, without its start unless it is the first one: a state at a break
        belongs to the piece before.
        """
        if self._times is None or self._points is None:
            return None
        theta, slack = self._points.fractions, self._points.slack
        mask = theta <= piece.end + slack
        if piece.start > 0:
            mask &= theta > piece.start + slack
        self._masks.append(mask)
        if self._points.per_sample:
            return self._times.masked_fill(~mask.T.to(self._times.device), float("nan"))
        return self._times[mask.to(self._times.device)]

    def take(self, states: Any) -> None:
        """Add the states at the times of the last piece."""
        if states is not None:
            self._states.append(states)

    def states(self) -> Any:
        """The states at all times; NaN where a sample has no time or a failed solve did not get
        there.
        """
        return self._joined(self._states) if self._states else None

    def _joined(self, states: Sequence[Any]) -> Any:
        if isinstance(states[0], tuple):
            return tuple(map(self._joined, zip(*states, strict=True)))
        assert self._points is not None
        if self._points.per_sample:
            found = states[0]
            for mask, each in zip(self._masks[1:], states[1:], strict=True):
                found = _where(mask, each, found)
            return found
        found = states[0].new_full(
            (len(self._points.fractions), *states[0].shape[1:]), float("nan")
        )
        index = torch.cat([mask.nonzero()[:, 0] for mask in self._masks])
        return found.index_copy(0, index.to(found.device), torch.cat(list(states)))
