"""torchode: the code of ``AutoDiffAdjoint.solve``, so that methods bound earlier go through it too."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from trueode.auditing.problem import ForeignProblem, FoundSolver, Solved, has_samples
from trueode.auditing.session import Library, Session
from trueode.errors import UsageError

METHODS = {"Euler": "euler", "Heun": "heun2", "Dopri5": "dopri5", "Tsit5": "tsit5"}
"""Names of the same methods in ``catalog.METHODS``; Heun's with its error estimate is not there."""
STATUSES = {2: "step_underflow", 3: "max_steps", 4: "non_finite"}


@dataclass
class _Hook:
    """What the code in the place of the library's needs: its own function, and the session while
    there is one.
    """

    original: Any
    session: Session | None


_hook: _Hook | None = None


@contextmanager
def patched(session: Session) -> Iterator[None]:
    """All solves go through a session."""
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
        hook.session = None  # another thread may be on its way to `entered`: the function stays


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
    # runs as the code of the library's function: it sees none of the names of this module
    from trueode.auditing.libraries.torchode import entered

    return entered(self, problem, term, dt0, args)


def entered(solver: Any, problem: Any, term: Any, dt0: Any, args: Any) -> Any:
    """In the place of ``AutoDiffAdjoint.solve``."""
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
    """The library's own solution, and how often it called the field."""
    counting, stats = _term(solver, term), dict[str, Any]()
    counting.init(problem, stats)
    if "n_f_evals" in stats:
        solution = original(solver, problem, term, dt0, args)
        return solution, float(solution.stats["n_f_evals"].double().mean())
    calls, vf = 0, counting.vf  # a term with_stats=False

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
    """Not so for the batch that ``JointBacksolveAdjoint`` makes one sample of."""
    return type(term).__name__ != "UnwrappingODETerm" and has_samples(problem.y0)


def _found(solver: Any, problem: Any, dt0: Tensor | None) -> FoundSolver:
    method, controller = solver.step_method, solver.step_size_controller
    kind = type(method).__name__
    adaptive = hasattr(controller, "rtol") and hasattr(
        method, "tableau"
    )  # others have no estimate of their error
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
    clock = _Clock(problem)

    def field(s: Tensor, y: Tensor) -> Tensor:
        return clock.stretch(term.vf(clock.times(s), y, stats, args))

    points, index = clock.points()
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


class _Clock:
    """One time for all samples, whatever their own intervals are.

    Where all samples share an ascending interval it is their time. Elsewhere it runs from 0 to the
    mean length of their intervals, and each sample's time is that fraction of its own:
    ``dz/ds = (dt/ds) f(t(s), z)``.
    """

    def __init__(self, problem: Any) -> None:
        self._t_eval = problem.t_eval
        self._start = problem.t_start.detach().double()
        self._length = problem.t_end.detach().double() - self._start
        self._eps = torch.finfo(problem.time_dtype).eps
        # times wider than the state are the library's custom; a wider state is a model of single
        # precision run in double
        self._dtype = torch.promote_types(problem.time_dtype, problem.data_dtype)
        self._batch = problem.batch_size
        self._shared = bool(
            (self._start == self._start[0]).all() and (self._length == self._length[0]).all()
        )
        self._shared = self._shared and bool(self._length[0] > 0)
        self._span = float(self._length.abs().mean())
        self._rate = self._length / self._span if self._span else self._length

    def times(self, s: Tensor) -> Tensor:
        """The samples' own times ``(batch,)`` at the common one, or at one of each row."""
        s = s.flatten() if s.dim() else s.expand(self._batch)
        if self._shared:
            return s.to(self._dtype)
        own: Tensor = self._start + self._rate * s.double()
        return own.to(self._dtype)

    def stretch(self, dy: Tensor) -> Tensor:
        """A derivative ``(batch, features)`` by the samples' own time, as one by the common time."""
        return dy if self._shared else dy * self._rate.to(dy.dtype)[:, None]

    def points(self) -> tuple[Tensor, Tensor]:
        """Common times ``(points,)`` at which states are wanted, both ends among them; which of
        them are those of a sample.

        The latter is ``(batch, times)``. Fractions that differ by no more than rounding are one.

        Raises:
            UsageError: a state is wanted outside of its sample's interval.
        """
        theta, slack = self._fractions()
        every = torch.cat([theta.new_tensor([0.0, 1.0]), theta.flatten()])
        values, inverse = every.unique(return_inverse=True)  # type: ignore[no-untyped-call]
        new = values.diff() > slack
        cluster = torch.cat([new.new_zeros(1), new]).cumsum(0)
        points = values[torch.cat([new.new_ones(1), new])]
        points[-1] = 1.0
        index = cluster[inverse[2:]].view(theta.shape)
        start = float(self._start[0]) if self._shared else 0.0
        return start + points * self._span, index

    def _fractions(self) -> tuple[Tensor, float]:
        """The fractions of the samples' intervals at which states are wanted ``(batch, times)``,
        and their rounding.
        """
        if self._t_eval is None:
            return torch.ones_like(self._start)[:, None], 0.0
        length = torch.where(self._length == 0, torch.inf, self._length)
        theta = (self._t_eval.detach().double() - self._start[:, None]) / length[:, None]
        largest = torch.maximum(self._start.abs(), (self._start + self._length).abs())
        slack = min(float((8 * self._eps * largest / length.abs()).amax()), 1e-4)
        if bool(((theta < -slack) | (theta > 1 + slack)).any()):
            raise UsageError(
                "torchode was asked for states outside of a sample's interval: t_eval must lie between t_start and t_end."
            )
        theta = torch.where(theta < slack, 0.0, theta)
        return torch.where(theta > 1 - slack, 1.0, theta), slack
