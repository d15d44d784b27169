"""torchdiffeq: hooks replace the solver classes in its registry."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from trueode.auditing.problem import (
    Event,
    ForeignProblem,
    FoundSolver,
    Solved,
    has_samples,
    plain_tolerance,
    status_of,
)
from trueode.auditing.session import Library, Session
from trueode.errors import UsageError

METHODS = {
    "euler": "euler",
    "midpoint": "midpoint",
    "heun2": "heun2",
    "heun3": "heun3",
    "rk4": "rk4_38",
    "adaptive_heun": "adaptive_heun",
    "fehlberg2": "fehlberg2",
    "bosh3": "bosh3",
    "dopri5": "dopri5",
    "dopri8": "dopri8",
}
"""The library's names of methods, and the names in ``catalog.METHODS``."""
VARYING = ("explicit_adams", "implicit_adams", "fixed_adams")  # their order grows along the solve
CALLBACKS = ("callback_step", "callback_accept_step", "callback_reject_step")


@contextmanager
def patched(session: Session) -> Iterator[None]:
    """Route all solves through a session."""
    registry: dict[str, Any] = sys.modules["torchdiffeq._impl.odeint"].SOLVERS
    originals = dict(registry)
    hooks = {method: _Hook(original, method, session) for method, original in originals.items()}
    registry.update(hooks)
    try:
        yield
    finally:
        for method, hook in hooks.items():
            if registry.get(method) is hook:
                registry[method] = originals[method]


def probe() -> Tensor:
    """See `Library`."""
    t, z0 = (
        torch.tensor([0.0, 1.0], device="cpu"),
        torch.ones(1, 1, dtype=torch.float32, device="cpu"),
    )
    states: Tensor = sys.modules["torchdiffeq"].odeint(
        lambda t, z: -z, z0, t.to(z0), method="euler"
    )
    return states[-1]


LIBRARY = Library("torchdiffeq", "torchdiffeq", patched, probe)


class _Hook:
    """Stands in for a solver class in the registry; other attributes are those of the class."""

    def __init__(self, original: Any, method: str, session: Session) -> None:
        self._original, self._method, self._session = original, method, session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    def __call__(self, **arguments: Any) -> Any:
        """Create the solver of one solve; arguments are func, y0, rtol, atol and the options."""
        if not self._session.is_mine():
            return self._original(**arguments)
        if self._session.replaces:
            return _Replaced(self._original, self._method, self._session, arguments)
        return _Recorded(self._original(**arguments), self._method, self._session, arguments)


class _Replaced:
    """A solver with the library's interface that passes the problem to the session."""

    def __init__(
        self, original: Any, method: str, session: Session, arguments: dict[str, Any]
    ) -> None:
        self._original, self._method, self._session, self._arguments = (
            original,
            method,
            session,
            arguments,
        )

    def integrate(self, t: Tensor) -> Tensor:
        """The states at ascending times, ``(times, *y0.shape)``."""
        return self._session.solve(self._posed(t))[0]

    def integrate_until_event(self, t0: Tensor, event_fn: Event) -> tuple[Tensor, Tensor]:
        """The time of an event, and the states at the start and there, ``(2, *y0.shape)``."""
        posed = self._posed(torch.stack([t0, t0]))
        states, solved = self._session.solve(replace(posed, event=event_fn))
        return posed.times[0].double() + solved.length, states

    def _posed(self, t: Tensor) -> ForeignProblem:
        func, y0 = self._arguments["func"], self._arguments["y0"]
        _refuse_callbacks(func)
        found = _found(self._original, self._method, self._arguments, t)
        breaks = tuple(
            x for name in ("step_t", "jump_t") for x in _numbers(self._arguments.get(name))
        )
        return ForeignProblem(
            lambda t, z: func(t, z),
            y0,
            t.detach(),
            tuple(sorted(breaks)),
            _has_samples(func, y0),
            found,
        )


class _Recorded:
    """The library's solver, with its calls and steps counted."""

    def __init__(
        self, solver: Any, method: str, session: Session, arguments: dict[str, Any]
    ) -> None:
        self._solver, self._method, self._session, self._arguments = (
            solver,
            method,
            session,
            arguments,
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._solver, name)

    def integrate(self, t: Tensor) -> Tensor:
        """Solve with the library's solver, and record the solve."""
        with _watched(self._solver, self._arguments["func"]) as watch:
            states: Tensor = self._solver.integrate(t)
        self._note(watch, t, states)
        return states

    def integrate_until_event(self, t0: Tensor, event_fn: Any) -> Any:
        """Solve up to an event with the library's solver, and record the solve."""
        with _watched(self._solver, self._arguments["func"]) as watch:
            event_t, states = self._solver.integrate_until_event(t0, event_fn)
        self._note(watch, torch.stack([t0.detach().to(event_t), event_t.detach()]), states)
        return event_t, states

    def _note(self, watch: _Watch, t: Tensor, states: Tensor) -> None:
        found = _found(type(self._solver), self._method, self._arguments, t)
        status, message = status_of(states, found)
        length = float(t[-1] - t[0])
        samples = _has_samples(self._arguments["func"], self._arguments["y0"])
        solved = Solved(found, watch.nfe, watch.accepted, watch.rejected, length, status, message)
        self._session.note(solved, states[-1] if samples else None)


class _Watch:
    """Counts of one solve."""

    def __init__(self) -> None:
        self.nfe = 0
        self.accepted = 0.0
        self.rejected = 0.0


@contextmanager
def _watched(solver: Any, func: Any) -> Iterator[_Watch]:
    """Count calls of a field and steps of a solver, both made for a single solve."""
    watch = _Watch()

    def called(*_: Any) -> None:
        watch.nfe += 1

    if hasattr(solver, "_adaptive_step"):
        _watch_adaptive(solver, watch)
    elif hasattr(solver, "_step_func"):
        _watch_fixed(solver, watch)
    elif hasattr(solver, "solver"):
        _watch_scipy(solver, watch)
    else:
        watch.accepted = watch.rejected = float("nan")
    hook = func.register_forward_pre_hook(called)
    try:
        yield watch
    finally:
        hook.remove()


def _watch_adaptive(solver: Any, watch: _Watch) -> None:
    step = solver._adaptive_step

    def watched(state: Any) -> Any:
        after = step(state)
        if bool(after.t1 > state.t1):  # a rejected step ends where it starts
            watch.accepted += 1
        else:
            watch.rejected += 1
        return after

    solver._adaptive_step = watched


def _watch_fixed(solver: Any, watch: _Watch) -> None:
    step = solver._step_func

    def watched(*args: Any, **kwargs: Any) -> Any:
        watch.accepted += 1
        return step(*args, **kwargs)

    solver._step_func = watched


def _watch_scipy(solver: Any, watch: _Watch) -> None:
    """SciPy reports only the calls of the field; each ``step`` of its solver classes is an accepted
    step.
    """
    import scipy.integrate

    base: Any = (
        getattr(scipy.integrate, solver.solver) if isinstance(solver.solver, str) else solver.solver
    )

    class Watched(base):  # type: ignore[misc]
        def step(self) -> Any:
            watch.accepted += 1
            return super().step()

    watch.rejected = float("nan")
    solver.solver = Watched


def _refuse_callbacks(func: Any) -> None:
    null = sys.modules["torchdiffeq._impl.misc"]._null_callback
    names = [name for name in CALLBACKS if getattr(func, name, null) is not null]
    if names:
        raise UsageError(
            f"The field has the solver callbacks {', '.join(names)} of torchdiffeq, which another "
            "solver would not call in the same way: audit a field without them."
        )


def _has_samples(func: Any, y0: Tensor) -> bool:
    """Whether the state is a tensor with samples first, and not a flattened tuple."""
    misc = sys.modules["torchdiffeq._impl.misc"]
    while isinstance(func, (misc._PerturbFunc, misc._ReverseFunc)):
        func = func.base_func
    return not isinstance(func, misc._TupleFunc) and has_samples(y0)


def _found(original: Any, method: str, arguments: dict[str, Any], t: Tensor) -> FoundSolver:
    adaptive = hasattr(original, "_adaptive_step") or not hasattr(original, "_step_func")
    order = 0 if method in VARYING else int(getattr(original, "order", 0))
    settings: dict[str, Any] = {}
    if adaptive or method in VARYING:
        settings = {name: plain_tolerance(arguments[name]) for name in ("rtol", "atol")}
    settings["n_times"] = len(t)
    for name, value in arguments.items():
        if name in ("step_t", "jump_t"):
            settings[name] = _numbers(value)
        elif name not in ("func", "y0", "rtol", "atol") and (plain := _plain(value)) is not None:
            settings[name] = plain
    if (
        not adaptive
        and "step_size" not in settings
        and arguments.get("grid_constructor") is None
        and len(t) > 1
    ):
        settings["step_size"] = float(t[-1] - t[0]) / (len(t) - 1)
    return FoundSolver("torchdiffeq", method, settings, adaptive, order, METHODS.get(method))


def _plain(value: Any) -> Any:
    """An option as a plain value; None if it has none, such as a function."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, torch.dtype):
        return str(value)
    return value if isinstance(value, (bool, int, float, str)) else None


def _numbers(value: Any) -> list[float]:
    return (
        []
        if value is None
        else torch.as_tensor(value, device="cpu").detach().flatten().double().tolist()
    )
