"""trueode itself: a hook in `solve`, which also serves `NeuralODE`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from trueode.auditing.problem import ForeignProblem, FoundSolver, Solved, has_samples
from trueode.auditing.session import Library, Session
from trueode.solvers import Adaptive, FixedStep, Solution, Solver, solve
from trueode.solvers.problem import Problem
from trueode.solvers.saving import as_times
from trueode.solvers.solution import Ending
from trueode.solvers.solving import replacement, solve_problem


@contextmanager
def patched(session: Session) -> Iterator[None]:
    """Route all solves of this context through a session."""

    def hooked(problem: Problem) -> Solution[Any] | None:
        if not session.is_mine():
            return None
        found = _found(problem.solver, abs(problem.clock.length))
        if session.replaces:
            return _replaced(problem, found, session)
        solution = solve_problem(problem)
        _note(session, found, solution, abs(problem.clock.length))
        return solution if solution.status == "success" else _failed(solution)

    token = replacement.set(hooked)
    try:
        yield
    finally:
        replacement.reset(token)


def probe() -> Tensor:
    """See `Library`."""
    z0 = torch.ones(1, 1, dtype=torch.float32, device="cpu")
    final: Tensor = solve(lambda t, z: -z, z0, (0.0, 1.0), solver=FixedStep("euler", n_steps=1)).z
    return final


LIBRARY = Library("trueode", "trueode.solvers.solving", patched, probe)


def _note(session: Session, found: FoundSolver, solution: Solution[Any], length: float) -> None:
    rejected = solution.n_rejected
    solved = Solved(
        found,
        solution.nfe,
        solution.mean_steps,
        float(rejected.double().mean()) if isinstance(rejected, Tensor) else rejected,
        length,
        solution.status,
        solution.message,
    )
    single = isinstance(solution.z, Tensor) and has_samples(solution.z)
    session.note(solved, solution.z if single else None)


def _failed(solution: Solution[Any]) -> Solution[Any]:
    """Set the states of samples that did not reach the end to NaN, because the states they reached
    are not the requested ones.
    """
    z = solution.z
    lost = solution.lost() if isinstance(z, Tensor) and has_samples(z) else None

    def blank(state: Any, before: int = 0) -> Any:
        if isinstance(state, tuple):
            return tuple(blank(part, before) for part in state)
        if lost is None:
            return torch.full_like(state, torch.nan)
        return state.masked_fill(lost.view(-1, *[1] * (state.dim() - before - 1)), torch.nan)

    return replace(solution, z=blank(z), zs=None if solution.zs is None else blank(solution.zs, 1))


def _replaced(problem: Problem, found: FoundSolver, session: Session) -> Solution[Any]:
    """The solution of the session's replacement; its states are NaN if the solve failed."""
    (start, end), z0 = (problem.clock.t0, problem.clock.t1), problem.z0
    sign = 1.0 if end >= start else -1.0
    field, z0, unpack = problem.form
    if unpack is None:  # the field itself may offer a faster way than calling it
        field = problem.field
    samples = unpack is None and has_samples(z0)
    wanted = (
        None
        if problem.save_at is None
        else sign * as_times(problem.save_at).detach().double().cpu()
    )
    # times within rounding of an end become that end; rounding is relative to its size outside the
    # interval, and to the length of the interval inside
    first, last, eps = sign * start, sign * end, 8 * torch.finfo(torch.float32).eps

    def placed(x: float) -> float:
        near = eps * max(last - first if first <= x <= last else max(abs(first), abs(last)), 1e-30)
        return next((end for end in (first, last) if abs(x - end) <= near), x)

    saved = [] if wanted is None else list(map(placed, wanted[~wanted.isnan()].tolist()))
    times = sorted({first, last, *saved})
    if len(times) == 1:
        times = times * 2
    forward = field if sign > 0 else lambda s, z: -field(-s, z)
    breaks = tuple(sorted(sign * x for x in problem.solver.breaks))
    posed = ForeignProblem(
        forward, z0, torch.tensor(times, dtype=torch.float64, device="cpu"), breaks, samples, found
    )
    states, solved = session.solve(posed)
    z, zs = states[-1], None
    if wanted is not None:
        zs = _gathered(states, wanted, [times.index(x) for x in saved])
    if unpack is not None:
        z, zs = unpack(z), None if zs is None else unpack(zs)
    return Solution(
        z=z,
        zs=zs,
        t=problem.t[1],
        nfe=round(solved.nfe),
        n_steps=round(solved.n_steps),
        n_rejected=round(solved.n_rejected),
        errors=None,
        statuses=None,
        ending=Ending(solved.status, solved.message),
        _solver=problem.solver,
        _fractions=torch.tensor([0.0, 1.0], dtype=torch.float64, device="cpu"),
        _clock=problem.clock,
        _counter=problem.counter,
    )


def _gathered(states: Tensor, wanted: Tensor, index: list[int]) -> Tensor:
    """Gather the states at the wanted times, ``(times,)`` or ``(batch, times)``; NaN for times that
    are NaN. ``index`` holds the positions of the other times among the states.
    """
    present = ~wanted.isnan()
    place = torch.zeros(wanted.shape, dtype=torch.long, device="cpu").masked_scatter(
        present, torch.tensor(index, device="cpu")
    )
    if wanted.dim() == 1:
        return states[place.to(states.device)]
    found = states[place.T.to(states.device), torch.arange(len(wanted), device=states.device)]
    absent = ~present.T.to(states.device).view(*present.T.shape, *[1] * (found.dim() - 2))
    return found.masked_fill(absent, float("nan"))


def _found(solver: Solver, length: float) -> FoundSolver:
    settings: dict[str, Any]
    if isinstance(solver, Adaptive):
        settings = {"rtol": solver.rtol, "atol": solver.atol, "per_sample": solver.per_sample}
    elif isinstance(solver, FixedStep):
        n = solver.count(length)
        settings = {"n_steps": n, "step_size": solver.step_size or length / max(n, 1)}
    else:
        settings = {"n_steps": len(solver.grid) - 1}
    return FoundSolver(
        "trueode", solver.name, settings, isinstance(solver, Adaptive), solver.order, solver.name
    )
