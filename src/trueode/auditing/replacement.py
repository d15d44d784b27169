"""Replacements for a model's solver: the solvers of this package."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from trueode.auditing.events import up_to_event
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

    Steps end at all breaks and at all times at which the model requests states, so solvers with
    fixed steps do not interpolate. Between these times, ``FixedStep(n_steps=N)`` on an interval of
    length T takes equal steps of at most T / N, and ``FixedStep(step_size=h)`` of at most h;
    `OnGrid` adds the times to its grid. `Adaptive` solves from break to break, with dense output at
    the times between, and with the same steps for all samples, because a field may depend on the
    whole batch. If a solve fails, the outcome has its status, and later states are NaN. For solves
    that end at an event, see `up_to_event`.

    Args:
        solver: takes the steps.
        solving: if given, solves the problems itself, at all requested times.
        breaks: further times at which a field may jump.
        max_step: the longest step.

    Raises:
        UsageError: the solver has a grid for each sample.
    """
    if isinstance(solver, Adaptive) and solving is None:
        solver = replace(solver, per_sample=False)
    elif isinstance(solver, OnGrid) and solver.per_sample:
        raise UsageError(
            f"{solver} has a grid for each sample, which need not fit the samples of a model: use "
            "Adaptive."
        )

    if isinstance(solver, FixedStep | Adaptive) and max_step is not None:
        solver = replace(solver, max_step=min(max_step, solver.max_step or max_step))
    longest = max_step if isinstance(solver, OnGrid) else solver.max_step

    return up_to_event(lambda problem: _solve(solver, problem, solving, breaks, longest))


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
            f"The model solves for a state of {z0.dtype}; only real floating point states can be "
            "audited."
        )
    times = problem.times.detach().to("cpu", torch.float64).tolist()
    start, end = times[0], times[-1]
    if start == end:
        return torch.stack([z0] * len(times)), Solved(problem.found, 0, 0, 0, 0.0)
    breaks = breaks_within(problem, given)
    try:
        steps = (
            _steps(solver, times, breaks, longest)
            if solving is None or getattr(solving, "stepped", False)
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
    """Build the solver that takes the steps, ending at all times and breaks.

    Raises:
        SolveError: the solve would need more steps than allowed.
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
    # the same operations as for the saved times, so that grid points equal them to the last bit
    return OnGrid(solver.tableau, tuple((t - start) / (end - start) for t in grid), breaks=breaks)


def _filled(grid: list[float], longest: float) -> list[float]:
    """Split each step of a grid into equal steps that are no longer than ``longest``."""
    step, filled = FixedStep("euler", step_size=longest), grid[:1]
    for left, right in pairwise(grid):
        n = max(1, step.count(right - left))
        filled += [*(left + (right - left) * i / n for i in range(1, n)), right]
    return filled


def breaks_within(problem: ForeignProblem, given: Sequence[float]) -> tuple[float, ...]:
    """The breaks inside the interval: those of the problem, and those passed by the user.

    A break that differs from a time only by rounding becomes that time. Libraries negate the times
    of a solve that runs backwards, which a user's break does not follow: if it lies outside the
    interval, its negative is used.
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
    """Return a function that lists the ends of the steps between two times."""
    length = end - start
    if isinstance(solver, OnGrid):
        ends = sorted({start + theta * length for theta in solver.grid if isinstance(theta, float)})
        return lambda left, right: ends[bisect_right(ends, left) : bisect_left(ends, right)]
    h = solver.step_size if solver.step_size is not None else length / (solver.n_steps or 1)
    if h == 0:  # an interval of length zero
        return lambda left, right: []
    equal = FixedStep(solver.tableau, step_size=h)
    # times are often rounded to single precision, whatever their present dtype; this rounding must
    # not add a step
    slack = min(8 * torch.finfo(torch.float32).eps * max(abs(start), abs(end)), 0.01 * h)

    def evenly(left: float, right: float) -> list[float]:
        n = max(1, equal.count(max(right - left - slack, 0.0)))
        return [left + (right - left) * i / n for i in range(1, n)]

    return evenly
