"""A solver of this package in the place of a model's."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf

import torch
from torch import Tensor

from trueode.auditing.problem import Field, ForeignProblem, Replacement, Solved
from trueode.errors import SolveError, UsageError
from trueode.solvers import Adaptive, FixedStep, OnGrid, Solver
from trueode.solvers.problem import Problem
from trueode.solvers.solve import solve_problem


def replace_by(solver: Solver, nudge: float = 0.0) -> Replacement:
    """A solver of this package in the place of a model's.

    Steps end at all times at which states are wanted and at all breaks, so no state of a solver with given steps is
    interpolated: ``FixedStep(n_steps=N)`` takes, on an interval of length T, equal steps of at most T / N between these
    times, ``FixedStep(step_size=h)`` of at most h; `OnGrid` adds them to its grid. `Adaptive` solves from break to break,
    with dense output at the times between; it never looks at single samples, because a field may depend on the whole
    batch. A solve that fails is noted with its status, and its states are NaN from there.

    Args:
        solver: takes the steps.
        nudge: the initial state of the first solve is multiplied by 1 + ``nudge``.

    Raises:
        UsageError: the solver has a grid for each sample.
    """
    if isinstance(solver, Adaptive):
        solver = replace(solver, per_sample=False)
    elif isinstance(solver, OnGrid) and solver.per_sample:
        raise UsageError(f"{solver} has a grid for each sample, which a model's samples need not fit: use Adaptive.")

    factor = 1 + nudge

    def replacement(problem: ForeignProblem) -> tuple[Tensor, Solved]:
        nonlocal factor
        start, factor = factor, 1.0
        return _solve(solver, problem if start == 1 else replace(problem, z0=start * problem.z0))

    return replacement


@dataclass
class _Tally:
    nfe: int = 0
    n_steps: int = 0
    n_rejected: int = 0
    status: str = "success"
    message: str = ""


def _solve(solver: Solver, problem: ForeignProblem) -> tuple[Tensor, Solved]:
    z0 = problem.z0
    if not z0.is_floating_point():
        raise UsageError(f"The model solves for a state of {z0.dtype}; only real floating point states can be audited.")
    times = problem.times.detach().to("cpu", torch.float64).tolist()
    tally, reached = _Tally(), {times[0]: z0}
    z = z0
    try:
        for segment, steps in _plan(solver, problem, times):
            z = _advance(segment, steps, problem, z, reached, tally)
            if tally.status != "success":
                break
    except SolveError as failure:
        tally.status, tally.message = failure.status, str(failure)
    missing = torch.full_like(z0, float("nan"))
    states = torch.stack([reached.get(t, missing) for t in times])
    length = times[-1] - times[0]
    return states, Solved(problem.found, length=length, **vars(tally))


@dataclass(frozen=True)
class _Segment:
    """A part of the interval without breaks inside: its start, the times in it, its end; whether its ends are breaks."""

    times: tuple[float, ...]
    breaks: tuple[bool, bool]


def _plan(solver: Solver, problem: ForeignProblem, times: Sequence[float]) -> list[tuple[_Segment, Solver]]:
    """The segments, with what takes the steps on each.

    Raises:
        SolveError: more steps would be needed than are allowed.
    """
    segments = _segments(times, problem)
    if isinstance(solver, Adaptive):
        return [(segment, solver) for segment in segments]
    inner = _steps_between(solver, times[0], times[-1])
    plan: list[tuple[_Segment, Solver]] = []
    for segment in segments:
        start, end = segment.times[0], segment.times[-1]
        grid = [start]
        for left, right in pairwise(segment.times):
            grid += [*inner(left, right), right]
        # the same operations as for the times that are saved: grid points and these agree to the last bit
        plan.append((segment, OnGrid(solver.tableau, tuple((t - start) / (end - start) for t in grid))))
    most = solver.max_steps if isinstance(solver, FixedStep) else None
    total = sum(len(steps.grid) - 1 for _, steps in plan if isinstance(steps, OnGrid))
    if most is not None and total > most:
        raise SolveError(f"{solver} would need {total} steps, more than max_steps = {most}.", "max_steps")
    return plan


def _segments(times: Sequence[float], problem: ForeignProblem) -> list[_Segment]:
    start, end = times[0], times[-1]
    near = 8 * torch.finfo(problem.times.dtype).eps * max(abs(start), abs(end))
    marks = set[float]()
    for mark in problem.breaks:
        closest = min(times, key=lambda t, mark=mark: abs(t - mark))  # type: ignore[misc]
        mark = closest if abs(closest - mark) <= near else mark
        if start < mark < end:
            marks.add(mark)
    points, knots = sorted({*times, *marks}), [start, *sorted(marks), end]
    return [
        _Segment(tuple(points[bisect_left(points, a) : bisect_right(points, b)]), (a in marks, b in marks))
        for a, b in pairwise(knots)
        if a < b
    ]


def _steps_between(solver: FixedStep | OnGrid, start: float, end: float) -> Callable[[float, float], list[float]]:
    """Where steps end between two times."""
    length = end - start
    if isinstance(solver, OnGrid):
        ends = sorted({start + theta * length for theta in solver.grid if isinstance(theta, float)})
        return lambda left, right: ends[bisect_right(ends, left) : bisect_left(ends, right)]
    h = solver.step_size if solver.step_size is not None else length / (solver.n_steps or 1)
    if h == 0:  # an interval of length zero
        return lambda left, right: []
    equal = FixedStep(solver.tableau, step_size=h)
    # times are often rounded to single precision, whatever their dtype is by now: that is no reason for one more step
    slack = min(8 * torch.finfo(torch.float32).eps * max(abs(start), abs(end)), 0.01 * h)

    def evenly(left: float, right: float) -> list[float]:
        n = max(1, equal.count(max(right - left - slack, 0.0)))
        return [left + (right - left) * i / n for i in range(1, n)]

    return evenly


def _advance(
    segment: _Segment, solver: Solver, problem: ForeignProblem, z: Tensor, reached: dict[float, Tensor], tally: _Tally
) -> Tensor:
    """Solve on a segment from its first state, take down the states at its times, and return the last one."""
    start, *wanted = segment.times
    call = _one_sided(problem.field, segment, z) if any(segment.breaks) else problem.field
    solution = solve_problem(Problem(call, z, (start, wanted[-1]), solver=solver, save_at=wanted))
    assert isinstance(solution.zs, Tensor)
    reached.update(zip(wanted, solution.zs.unbind(0), strict=True))
    tally.nfe += solution.nfe
    tally.n_steps += int(solution.n_steps)
    tally.n_rejected += int(solution.n_rejected)
    tally.status, tally.message = solution.status, solution.message
    return solution.zs[-1]


def _one_sided(call: Field, segment: _Segment, like: Tensor) -> Field:
    """The field as seen from inside of a segment, whose ends may be points where it jumps."""
    ends = torch.tensor([segment.times[0], segment.times[-1]], dtype=torch.float64, device="cpu").to(like.dtype)
    towards = torch.tensor([inf, -inf], dtype=like.dtype, device="cpu")
    first, last = torch.where(torch.tensor(segment.breaks, device="cpu"), ends.nextafter(towards), ends).tolist()

    def one_sided(t: Tensor, z: Tensor) -> Tensor:
        return call(t.clamp(first, last), z)

    return one_sided
