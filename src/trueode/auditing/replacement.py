"""Replaces a model's solver by one of this package."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from trueode.auditing.problem import ForeignProblem, Replacement, Solved
from trueode.errors import SolveError, UsageError
from trueode.evaluation.runnable import Solving
from trueode.solvers import Adaptive, FixedStep, OnGrid, Solver
from trueode.solvers.problem import Problem
from trueode.solvers.solving import solve_problem


def replace_by(
    solver: Solver,
    solving: Solving | None = None,
    breaks: Sequence[float] = (),
    max_step: float | None = None,
) -> Replacement:
    """Replace a model's solver by one of this package.

    Steps end at all times at which states are wanted and at all breaks, so no state of a solver
    with given steps is interpolated: ``FixedStep(n_steps=N)`` takes, on an interval of length T,
    equal steps of at most T / N between these times, ``FixedStep(step_size=h)`` of at most h;
    `OnGrid` adds them to its grid. `Adaptive` solves from break to break, with dense output at the
    times between; it never looks at single samples, because a field may depend on the whole batch.
    A solve that fails is noted with its status, and its states are NaN from there.

    Args:
        solver: takes the steps.
        solving: solves the problems in a way of its own, at all times at which states are wanted.
        breaks: further times at which a field may jump.
        max_step: no step is longer.

    Raises:
        UsageError: the solver has a grid for each sample.
    """
    if isinstance(solver, Adaptive) and solving is None:
        solver = replace(solver, per_sample=False)
    elif isinstance(solver, OnGrid) and solver.per_sample:
        raise UsageError(
            f"{solver} has a grid for each sample, which a model's samples need not fit: use Adaptive."
        )

    if isinstance(solver, FixedStep | Adaptive) and max_step is not None:
        solver = replace(solver, max_step=min(max_step, solver.max_step or max_step))
    longest = max_step if isinstance(solver, OnGrid) else solver.max_step

    return lambda problem: _solve(solver, problem, solving, breaks, longest)


def _solve(
    solver: Solver,
    problem: ForeignProblem,
    solving: Solving | None,
    given: Sequence[float],
    longest: float | None,
) -> tuple[Tensor, Solved]:
    z0 = problem.z0
    if not z0.is_floating_point():
        raise UsageError(
            f"The model solves for a state of {z0.dtype}; only real floating point states can be audited."
        )
    times = problem.times.detach().to("cpu", torch.float64).tolist()
    start, end = times[0], times[-1]
    if start == end:
        return torch.stack([z0] * len(times)), Solved(problem.found, 0, 0, 0, 0.0)
    breaks = breaks_within(problem, given)
    try:
        steps = (
            _steps(solver, times, breaks, longest)
            if solving is None
            else replace(solver, breaks=breaks)
        )
    except SolveError as failure:
        lost = torch.full_like(z0, float("nan"))
        states = torch.stack([z0, *[lost] * (len(times) - 1)])
        return states, Solved(problem.found, 0, 0, 0, end - start, failure.status, str(failure))
    posed = Problem(problem.field, z0, (start, end), solver=steps, save_at=times[1:])
    solution = solve_problem(posed) if solving is None else solving(posed, problem.samples)
    assert isinstance(solution.zs, Tensor)
    rejected = float(torch.as_tensor(solution.n_rejected, dtype=torch.float64, device="cpu").mean())
    counts = solution.nfe, solution.mean_steps, rejected
    solved = Solved(problem.found, *counts, end - start, solution.status, solution.message)
    return torch.cat([z0[None], solution.zs]), solved


def _steps(
    solver: Solver, times: Sequence[float], breaks: tuple[float, ...], longest: float | None
) -> Solver:
    """What takes the steps.

    Raises:
        SolveError: more steps would be needed than are allowed.
    """
    if isinstance(solver, Adaptive):
        return replace(solver, breaks=breaks)
    start, end = times[0], times[-1]
    inner, grid = _steps_between(solver, start, end), [start]
    for left, right in pairwise(sorted({*times, *breaks})):
        grid += [*inner(left, right), right]
    if longest is not None:
        grid = _filled(grid, longest)
    most = solver.max_steps if isinstance(solver, FixedStep) else None
    if most is not None and len(grid) - 1 > most:
        raise SolveError(
            f"{solver} would need {len(grid) - 1} steps, more than max_steps = {most}.", "max_steps"
        )
    # the same operations as for the times that are saved: grid points and these agree to the last
    # bit
    return OnGrid(solver.tableau, tuple((t - start) / (end - start) for t in grid), breaks=breaks)


def _filled(grid: list[float], longest: float) -> list[float]:
    """A grid of which every step is split into equal ones that are no longer than allowed."""
    step, filled = FixedStep("euler", step_size=longest), grid[:1]
    for left, right in pairwise(grid):
        n = max(1, step.count(right - left))
        filled += [*(left + (right - left) * i / n for i in range(1, n)), right]
    return filled


def breaks_within(problem: ForeignProblem, given: Sequence[float]) -> tuple[float, ...]:
    """The breaks inside of the interval, of the problem and given by hand.

    A break that differs from a time by rounding is that time.
    The times of a solve that runs backwards are negated, in ways that differ between libraries, and
    a break that is given by hand knows nothing of that: where it lies outside of the interval, its
    negative is taken.
    """
    times = problem.times.detach().to("cpu", torch.float64).tolist()
    start, end = times[0], times[-1]
    near = 8 * torch.finfo(problem.times.dtype).eps * max(abs(start), abs(end))
    marks = set[float]()
    by_hand = (mark if start < mark < end else -mark for mark in given)
    for mark in (*problem.breaks, *by_hand):
        closest = min(times, key=lambda t, mark=mark: abs(t - mark))  # type: ignore[misc]
        marks.add(closest if abs(closest - mark) <= near else mark)
    return tuple(sorted(mark for mark in marks if start < mark < end))


def _steps_between(
    solver: FixedStep | OnGrid, start: float, end: float
) -> Callable[[float, float], list[float]]:
    """Where steps end between two times."""
    length = end - start
    if isinstance(solver, OnGrid):
        ends = sorted({start + theta * length for theta in solver.grid if isinstance(theta, float)})
        return lambda left, right: ends[bisect_right(ends, left) : bisect_left(ends, right)]
    h = solver.step_size if solver.step_size is not None else length / (solver.n_steps or 1)
    if h == 0:  # an interval of length zero
        return lambda left, right: []
    equal = FixedStep(solver.tableau, step_size=h)
    # times are often rounded to single precision, whatever their dtype is by now: that is no reason
    # for one more step
    slack = min(8 * torch.finfo(torch.float32).eps * max(abs(start), abs(end)), 0.01 * h)

    def evenly(left: float, right: float) -> list[float]:
        n = max(1, equal.count(max(right - left - slack, 0.0)))
        return [left + (right - left) * i / n for i in range(1, n)]

    return evenly
