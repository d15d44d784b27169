"""torchdyn: hooks replace the two functions that its ``odeint`` looks up for each solve."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from trueode.auditing.problem import (
    Field,
    ForeignProblem,
    FoundSolver,
    Solved,
    has_samples,
    plain_tolerance,
    status_of,
    with_times,
)
from trueode.auditing.session import Library, Session
from trueode.errors import UsageError

METHODS = {
    "Euler": ("euler", "euler"),
    "Midpoint": ("midpoint", "midpoint"),
    "RungeKutta4": ("rk4", "rk4"),
    "DormandPrince45": ("dopri5", "dopri5"),
    "Tsitouras45": ("tsit5", "tsit5"),
    "ImplicitEuler": ("ieuler", None),
    "AsynchronousLeapfrog": ("alf", None),
}
"""For each solver class, the library's name of the method, and its name in ``catalog.METHODS``.

The library's rk4 calls the field at the fractions 0, 0, 1/2, 1/2 of a step instead of 0, 1/2, 1/2,
1. It is rk4, of order 4, only if the field does not depend on time; otherwise its order is 1.
"""
RK4_STAGE_TIMES = (0.0, 0.0, 0.5, 0.5)
BEFORE = 2  # calls of the field by `odeint` itself, to choose the first adaptive step

Call = Callable[..., tuple[Tensor, Tensor]]


@contextmanager
def patched(session: Session) -> Iterator[None]:
    """Route all solves through a session."""
    module: Any = sys.modules["torchdyn.numerics.odeint"]
    fixed, adaptive = module._fixed_odeint, module._adaptive_odeint
    module._fixed_odeint = _hook(fixed, session, _record_fixed, _replace_fixed)
    module._adaptive_odeint = _hook(adaptive, session, _record_adaptive, _replace_adaptive)
    try:
        yield
    finally:
        module._fixed_odeint, module._adaptive_odeint = fixed, adaptive


def probe() -> Tensor:
    """See `Library`."""
    t, z0 = (
        torch.tensor([0.0, 1.0], dtype=torch.float32, device="cpu"),
        torch.ones(1, 1, dtype=torch.float32, device="cpu"),
    )
    states: Tensor = sys.modules["torchdyn.numerics"].odeint(lambda t, z: -z, z0, t, "euler")[1]
    return states[-1]


LIBRARY = Library("torchdyn", "torchdyn.numerics", patched, probe)

Given = dict[str, Any]  # arguments by name
Record = Callable[[Call, Given, Session], tuple[Tensor, Tensor]]
Replace = Callable[[Given, Session], tuple[Tensor, Tensor]]


def _hook(original: Call, session: Session, record: Record, replace: Replace) -> Call:
    """Wrap a function of the library that returns times and states; the arguments are the same."""
    parameters = signature(original)

    def hooked(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not session.is_mine():
            return original(*args, **kwargs)
        bound = parameters.bind(*args, **kwargs)
        bound.apply_defaults()
        given: Given = dict(bound.arguments)
        if not session.replaces:
            return record(original, given, session)
        _refuse(given, sys._getframe(1))
        return replace(given, session)

    return hooked


def _record_fixed(original: Call, given: Given, session: Session) -> tuple[Tensor, Tensor]:
    field = _Counted(given["f"])
    times, states = original(**{**given, "f": field})
    _note(given, session, states, field.calls, len(given["t_span"]) - 1, 0)
    return times, states


def _record_adaptive(original: Call, given: Given, session: Session) -> tuple[Tensor, Tensor]:
    field, solver = _Counted(given["f"]), _Watched(given["solver"])
    times, states = original(**{**given, "f": field, "solver": solver})
    _note(
        given,
        session,
        states,
        BEFORE + field.calls,
        solver.accepted,
        solver.calls - solver.accepted,
    )
    return times, states


def _note(
    given: Given, session: Session, states: Any, nfe: int, n_steps: int, n_rejected: int
) -> None:
    found, t = _found(given), given["t_span"]
    is_tensor = isinstance(states, Tensor)
    status, message = status_of(states, found) if is_tensor else ("success", "")
    solved = Solved(found, nfe, n_steps, n_rejected, abs(float(t[-1] - t[0])), status, message)
    session.note(solved, states[-1] if is_tensor and has_samples(given["x"]) else None)


def _replace_fixed(given: Given, session: Session) -> tuple[Tensor, Tensor]:
    """The states at the times of ``t_span`` (the library's steps) that ``save_at`` lists; all of
    them without ``save_at``.
    """
    t, x = given["t_span"], given["x"]
    saved = given["save_at"] if len(given["save_at"]) else t
    saved = torch.as_tensor(saved, device=t.device)
    kept = [i for i, time in enumerate(t) if bool(torch.isclose(time, saved.to(time)).any())]
    wanted = sorted({0, *kept, len(t) - 1})
    states, _ = session.solve(_posed(given, t[wanted]))
    return saved, states[[wanted.index(i) for i in kept]].to(x.dtype)


def _replace_adaptive(given: Given, session: Session) -> tuple[Tensor, Tensor]:
    """The states at ``t_span``, even with ``return_all_eval``, for which the library returns the
    states at all its steps.
    """
    states, _ = session.solve(_posed(given, given["t_span"]))
    return given["t_span"], states


def _posed(given: Given, times: Tensor) -> ForeignProblem:
    field, x = given["f"], given["x"]
    return ForeignProblem(
        with_times(lambda t, z: field(t, z), times, x),
        x,
        times.detach(),
        (),
        has_samples(x),
        _found(given),
    )


class _Counted:
    """A field that counts its calls."""

    def __init__(self, field: Field) -> None:
        self._field = field
        self.calls = 0

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        return self._field(t, x)


class _Watched:
    """A solver that counts its steps; other attributes are those of the solver."""

    def __init__(self, solver: Any) -> None:
        self._solver = solver
        self._last: Tensor | None = None
        self.calls = 0
        self.accepted = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._solver, name)

    def step(self, f: Any, x: Any, t: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Take a step. It starts at the same time as the previous one if that was rejected."""
        self.calls += 1
        # one accepted step leaves each start; the loop ends only after an accepted step
        self.accepted += t is not self._last
        self._last = t
        return self._solver.step(f, x, t, *args, **kwargs)


def _found(given: Given) -> FoundSolver:
    solver, t = given["solver"], given["t_span"]
    kind = type(solver)
    own = kind.__module__ == "torchdyn.numerics.solvers.ode"
    method, name = (
        METHODS.get(kind.__name__, (kind.__name__, None)) if own else (kind.__name__, None)
    )
    adaptive = "atol" in given
    settings: dict[str, Any] = {"n_times": len(t)}
    if adaptive:
        settings = {**{name: plain_tolerance(given[name]) for name in ("rtol", "atol")}, **settings}
    elif len(t) > 1:
        settings["step_size"] = abs(float(t[-1] - t[0])) / (len(t) - 1)
    if method == "rk4":
        settings["stage_times"] = list(RK4_STAGE_TIMES)
    return FoundSolver(
        "torchdyn", method, settings, adaptive, int(getattr(solver, "order", 0)), name
    )


def _refuse(given: Given, caller: FrameType) -> None:
    """Refuse solves that do not solve an ODE z' = f(t, z) by a method that can be replaced."""
    solver, name = given["solver"], type(given["solver"]).__name__
    if hasattr(solver, "hypernet"):
        raise UsageError(
            f"The model's solver is the hypersolver {name} of torchdyn: its correction network is "
            "part of the model, so no solver of an ODE can replace it. Train and audit the field "
            "with a solver without correction."
        )
    if name == "AsynchronousLeapfrog":
        raise UsageError(
            "The model's solver is torchdyn's AsynchronousLeapfrog (alf), which adds velocities to "
            "the state and so does not solve an ODE z' = f(t, z). Audit the model with another "
            "solver, such as solver='rk4'."
        )
    if not isinstance(given["x"], Tensor):
        raise UsageError(
            f"The state is a {type(given['x']).__name__}; torchdyn's solves can be replaced only "
            "if it is a tensor: join its parts in one tensor."
        )
    if _shoots(caller):
        raise UsageError(
            "The model solves by multiple shooting (odeint_mshooting, MultipleShootingLayer of "
            "torchdyn), an iteration over parts of the interval that cannot be replaced: audit its "
            "field in torchdyn's NeuralODE."
        )


def _shoots(caller: FrameType | None) -> bool:
    """Whether a solve belongs to a multiple shooting, which calls it through at most one function
    (`root_solve` or `odeint`).
    """
    code = sys.modules["torchdyn.numerics.odeint"].odeint_mshooting.__code__
    return any(
        frame is not None and frame.f_code is code for frame in (caller, caller and caller.f_back)
    )
