"""This package itself: `solve`, and so `NeuralODE`, inside of any model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from trueode.auditing.interception import Library, Session
from trueode.auditing.problem import FoundSolver, Problem, Solved, has_samples
from trueode.solvers import Adaptive, FixedStep, Solution, Solver, solve
from trueode.solvers.clock import Clock, seconds
from trueode.solvers.problem import pack_tuple
from trueode.solvers.saving import as_times
from trueode.solvers.solve import direct_solve

NAME = "trueode.solvers.solve"  # as an attribute of its package, the name is that of the function


@contextmanager
def patched(session: Session) -> Iterator[None]:
    """All solves go through a session."""
    module: Any = import_module(NAME)

    def hooked(field: Any, z0: Any, t: Any, *, solver: Solver, **how: Any) -> Solution[Any]:
        if not session.is_mine():
            return direct_solve(field, z0, t, solver=solver, **how)
        found = _found(solver, abs(seconds(t[1]) - seconds(t[0])))
        if not session.replaces:
            solution = direct_solve(field, z0, t, solver=solver, **{**how, "on_failure": "return"})
            _note(session, found, solution, t)
            return solution if solution.status == "success" else _failed(solution)
        return _replaced(field, z0, t, how.get("save_at"), found, solver, session)

    module.override = hooked
    try:
        yield
    finally:
        module.override = None


def probe() -> Tensor:
    """See `Library`."""
    z0 = torch.ones(1, 1, dtype=torch.float32, device="cpu")
    final: Tensor = solve(lambda t, z: -z, z0, (0.0, 1.0), solver=FixedStep("euler", n_steps=1)).z
    return final


LIBRARY = Library("trueode", NAME, patched, probe)


def _note(session: Session, found: FoundSolver, solution: Solution[Any], t: Any) -> None:
    rejected = solution.n_rejected
    solved = Solved(
        found,
        solution.nfe,
        solution.mean_steps,
        float(rejected.double().mean()) if isinstance(rejected, Tensor) else rejected,
        abs(seconds(t[1]) - seconds(t[0])),
        solution.status,
        solution.message,
    )
    single = isinstance(solution.z, Tensor) and has_samples(solution.z)
    session.note(solved, solution.z if single else None)


def _failed(solution: Solution[Any]) -> Solution[Any]:
    """A solution whose states are NaN: what was reached is not what was asked for."""

    def blank(state: Any) -> Any:
        return tuple(map(blank, state)) if isinstance(state, tuple) else torch.full_like(state, torch.nan)

    return replace(solution, z=blank(solution.z), zs=None if solution.zs is None else blank(solution.zs))


def _replaced(
    field: Any, z0: Any, t: Any, save_at: Any, found: FoundSolver, solver: Solver, session: Session
) -> Solution[Any]:
    """The solution with the states of the session; where it failed these are NaN."""
    start, end = seconds(t[0]), seconds(t[1])
    sign = 1.0 if end >= start else -1.0
    unpack = None
    samples = isinstance(z0, Tensor) and has_samples(z0)
    if isinstance(z0, tuple):
        field, z0, unpack = pack_tuple(field, z0, per_sample=False)
    saved = [] if save_at is None else [sign * x for x in as_times(save_at).detach().double().tolist()]
    # times within rounding of an end are that end: of its size outside of the interval, of the interval's length inside
    first, last, eps = sign * start, sign * end, 8 * torch.finfo(torch.float32).eps

    def placed(x: float) -> float:
        near = eps * max(last - first if first <= x <= last else max(abs(first), abs(last)), 1e-30)
        return next((end for end in (first, last) if abs(x - end) <= near), x)

    saved = [placed(x) for x in saved]
    times = sorted({first, last, *saved})
    if len(times) == 1:
        times = times * 2
    forward = field if sign > 0 else lambda s, z: -field(-s, z)
    problem = Problem(forward, z0, torch.tensor(times, dtype=torch.float64, device="cpu"), (), samples, found)
    states, solved = session.solve(problem)
    zs = None if save_at is None else states[[times.index(x) for x in saved]]
    z = states[-1]
    fractions = torch.tensor([0.0, 1.0], dtype=torch.float64, device="cpu")
    if unpack is not None:
        z, zs = unpack(z), None if zs is None else unpack(zs)
    blank = direct_solve(lambda t, z: z, torch.zeros(1, device="cpu"), (0.0, 0.0), solver=FixedStep("euler", n_steps=1))
    return replace(
        blank,
        z=z,
        zs=zs,
        t=t[1],
        nfe=round(solved.nfe),
        n_steps=round(solved.n_steps),
        n_rejected=round(solved.n_rejected),
        status=solved.status,
        message=solved.message,
        _tableau=solver.tableau,
        _fractions=fractions,
        _clock=Clock(start, end, torch.zeros(1, device="cpu")),
    )


def _found(solver: Solver, length: float) -> FoundSolver:
    settings: dict[str, Any]
    if isinstance(solver, Adaptive):
        settings = {"rtol": solver.rtol, "atol": solver.atol, "per_sample": solver.per_sample}
    elif isinstance(solver, FixedStep):
        n = solver.count(length)
        settings = {"n_steps": n, "step_size": solver.step_size or length / max(n, 1)}
    else:
        settings = {"n_steps": len(solver.grid) - 1}
    return FoundSolver("trueode", solver.name, settings, isinstance(solver, Adaptive), solver.order, solver.name)
