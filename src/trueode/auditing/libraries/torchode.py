"""torchode: a hook replaces the code of ``AutoDiffAdjoint.solve``, so bound methods use it, too."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from trueode.auditing.libraries.common_time import CommonTime
from trueode.auditing.problem import ForeignProblem, FoundSolver, Solved, has_samples
from trueode.auditing.session import Library, Session

METHODS = {"Euler": "euler", "Heun": "heun2", "Dopri5": "dopri5", "Tsit5": "tsit5"}
"""The library's names of methods, and those in ``catalog.METHODS``, which has no adaptive Heun."""
STATUSES = {2: "step_underflow", 3: "max_steps", 4: "non_finite"}


@dataclass
class _Hook:
    """Data for the replaced code: the library's function, and the session while it is open."""

    original: Any
    session: Session | None


_hook: _Hook | None = None


@contextmanager
def patched(session: Session) -> Iterator[None]:
    """Route all solves through a session."""
    global _hook
    solve = sys.modules["torchode.adjoints"].AutoDiffAdjoint.solve
    code = solve.__code__
    original = FunctionType(
        code, solve.__globals__, solve.__name__, solve.__defaults__, solve.__closure__
    )
    hook = _hook = _Hook(original, session)
    solve.__code__ = _trampoline.__code__
    try:
        yield
    finally:
        solve.__code__ = code
        hook.session = None  # the hook stays: another thread may be about to call `entered`


def probe() -> Tensor:
    """See `Library`."""
    torchode: Any = sys.modules["torchode"]
    t = torch.tensor([[0.0], [1.0]], dtype=torch.float32, device="cpu")
    term = torchode.ODETerm(lambda t, y: -y)
    solver = torchode.AutoDiffAdjoint(torchode.Euler(term), torchode.FixedStepController())
    problem = torchode.InitialValueProblem(torch.ones_like(t[1:]), t_start=t[0], t_end=t[1])
    states: Tensor = solver.solve(problem, dt0=t[1]).ys
    return states[:, -1]


LIBRARY = Library("torchode", "torchode", patched, probe)


def _trampoline(
    self: Any, problem: Any, term: Any = None, dt0: Any = None, args: Any = None
) -> Any:
    # runs as the code of the library's function, so it cannot see the names of this module
    from trueode.auditing.libraries.torchode import entered

    return entered(self, problem, term, dt0, args)


def entered(solver: Any, problem: Any, term: Any, dt0: Any, args: Any) -> Any:
    """Runs instead of ``AutoDiffAdjoint.solve``."""
    assert _hook is not None
    original, session = _hook.original, _hook.session
    if session is None or not session.is_mine():
        return original(solver, problem, term, dt0, args)
    found = _found(solver, problem, dt0)
    if session.replaces:
        return _replace(session, solver, problem, term, args, found)
    solution, nfe = _counted(original, solver, problem, term, dt0, args)
    _note(session, problem, _term(solver, term), found, solution, nfe)
    return solution


def _counted(
    original: Any, solver: Any, problem: Any, term: Any, dt0: Any, args: Any
) -> tuple[Any, float]:
    """The library's solution, and the number of calls of the field."""
    counting, stats = _term(solver, term), dict[str, Any]()
    counting.init(problem, stats)
    if "n_f_evals" in stats:
        solution = original(solver, problem, term, dt0, args)
        return solution, float(solution.stats["n_f_evals"].double().mean())
    calls, vf = 0, counting.vf  # a term with with_stats=False

    def counted(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        return vf(*given, **named)

    counting.vf = counted
    try:
        return original(solver, problem, term, dt0, args), calls
    finally:
        del counting.vf


def _term(solver: Any, term: Any) -> Any:
    return solver.step_method.term if term is None else term


def _note(
    session: Session, problem: Any, term: Any, found: FoundSolver, solution: Any, nfe: float
) -> None:
    tried, accepted = (
        float(solution.stats[name].double().mean()) for name in ("n_steps", "n_accepted")
    )
    codes = solution.status.flatten().tolist()
    failed = [code for code in codes if code]
    status, message = "success", ""
    if failed:
        status = STATUSES.get(failed[0], "failed")
        name = sys.modules["torchode.status_codes"].Status(failed[0]).name
        message = (
            f"The solve with {found} ended with {name} for {len(failed)} of {len(codes)} samples."
        )
    length = float((problem.t_end - problem.t_start).abs().double().mean())
    solved = Solved(found, nfe, accepted, tried - accepted, length, status, message)
    session.note(solved, solution.ys[:, -1] if _has_samples(problem, term) else None)


def _has_samples(problem: Any, term: Any) -> bool:
    """Whether the state has samples first; ``JointBacksolveAdjoint`` makes a batch one sample."""
    return type(term).__name__ != "UnwrappingODETerm" and has_samples(problem.y0)


def _found(solver: Any, problem: Any, dt0: Tensor | None) -> FoundSolver:
    method, controller = solver.step_method, solver.step_size_controller
    kind = type(method).__name__
    # methods without a tableau have no error estimate
    adaptive = hasattr(controller, "rtol") and hasattr(method, "tableau")
    settings: dict[str, Any] = {}
    if adaptive:
        settings = {name: float(getattr(controller, name)) for name in ("rtol", "atol")}
    if dt0 is not None:
        settings["dt0" if adaptive else "step_size"] = float(dt0.abs().double().mean())
    settings["n_times"] = problem.n_evaluation_points
    known = {
        "dt_min": getattr(controller, "dt_min", None),
        "dt_max": getattr(controller, "dt_max", None),
        "max_steps": solver.max_steps,
    }
    settings.update({name: value for name, value in known.items() if value is not None})
    own = type(method).__module__.startswith("torchode.")
    name = METHODS.get(kind) if own and not (adaptive and kind == "Heun") else None
    return FoundSolver("torchode", kind, settings, adaptive, int(method.convergence_order()), name)


def _replace(
    session: Session, solver: Any, problem: Any, term: Any, args: Any, found: FoundSolver
) -> Any:
    stats: dict[str, Any] = {}
    term = _term(solver, term)
    term.init(problem, stats)
    common = CommonTime(
        problem.t_start, problem.t_end, problem.t_eval, problem.time_dtype, problem.data_dtype
    )

    def field(s: Tensor, y: Tensor) -> Tensor:
        return common.stretch(term.vf(common.times(s), y, stats, args))

    points, index = common.points()
    posed = ForeignProblem(field, problem.y0, points, (), _has_samples(problem, term), found)
    states, solved = session.solve(posed)
    batch = torch.arange(problem.batch_size, device=states.device)
    ys = states[index, batch[:, None]]

    def counts(n: float) -> Tensor:
        return torch.full((problem.batch_size,), int(n), dtype=torch.long, device=problem.device)

    stats["n_steps"], stats["n_accepted"] = (
        counts(solved.n_steps + solved.n_rejected),
        counts(solved.n_steps),
    )
    stats["n_initialized"] = counts(ys.shape[1])
    ts = problem.t_end[:, None] if problem.t_eval is None else problem.t_eval
    return sys.modules["torchode"].Solution(ts=ts, ys=ys, stats=stats, status=counts(0))
