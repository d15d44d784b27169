"""A call of `odeint`: its arguments, checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trueode.drop_in.errors import ArgumentError, ArgumentTypeError
from trueode.errors import UsageError, nearest
from trueode.solvers import Gradient

FIXED = {
    "euler": "euler",
    "midpoint": "midpoint",
    "heun2": "heun2",
    "heun3": "heun3",
    "rk4": "rk4_38",
}
"""Methods with fixed steps: torchdiffeq's names, and those in ``catalog.METHODS``."""
ADAPTIVE = ("dopri8", "dopri5", "tsit5", "bosh3", "fehlberg2", "adaptive_heun")
ELSEWHERE = {
    "explicit_adams": "rk4 with the same options, or torchdiffeq itself",
    "implicit_adams": "rk4 with the same options, or torchdiffeq itself",
    "fixed_adams": "rk4 with the same options, or torchdiffeq itself",
    "scipy_solver": "torchdiffeq itself, or scipy.integrate.solve_ivp, for implicit methods",
}
"""Methods of torchdiffeq that are not here, and what serves instead."""
CALLBACKS = ("callback_step", "callback_accept_step", "callback_reject_step")


class Call(NamedTuple):
    """The arguments of a call; see `trueode.odeint`.

    Attributes:
        method: a name of `FIXED` or `ADAPTIVE`.
        options: the options without None.
        gradient: how gradients are computed.
        times: the values of ``t``.
    """

    func: Callable[..., Any]
    y0: Any
    t: Tensor
    rtol: Any
    atol: Any
    method: str
    options: Mapping[str, Any]
    gradient: Gradient
    times: list[float]


def method_named(method: str | None) -> str:
    """The method of a call.

    Raises:
        UsageError: there is no such method here.
    """
    if method is None:
        return "dopri5"
    if method in FIXED or method in ADAPTIVE:
        return method
    known = (*FIXED, *ADAPTIVE)
    if method in ELSEWHERE:
        raise UsageError(f"odeint has no method {method!r}: use {ELSEWHERE[method]}.")
    raise UsageError(
        f"Invalid method {method!r}; choose from {', '.join(known)}.{nearest(str(method), known)}"
    )


def refuse_events(event_fn: object) -> None:
    """Raise a `UsageError` if there is an event function."""
    if event_fn is not None:
        raise UsageError(
            "odeint has no event_fn: use torchdiffeq.odeint_event for events, or trueode.solve "
            "with breaks= if the times are known."
        )


def refuse_callbacks(func: object, names: tuple[str, ...] = CALLBACKS) -> None:
    """Raise a `UsageError` if a field has callbacks, which would not be called."""
    own = getattr(func, "__dict__", {})
    for name in names:
        if name in own or hasattr(type(func), name):
            raise UsageError(
                f"odeint does not call func.{name}: remove it, use torchdiffeq itself, or read "
                "the steps from the Solution that trueode.solve returns (grid, n_steps, errors)."
            )


def times_of(t: Any) -> list[float]:
    """The values of the times.

    Raises:
        ArgumentError: they are not a tensor ``(times,)`` that strictly increases or decreases.
        ArgumentTypeError: they are not floating point numbers.
    """
    if not isinstance(t, Tensor):
        raise ArgumentError(f"t must be a torch.Tensor of times, got {type(t).__name__}.")
    if not t.is_floating_point():
        raise ArgumentTypeError(
            f"t must be a floating point tensor, but its dtype is {t.dtype}: use t.float()."
        )
    if t.dim() != 1 or not len(t):
        raise ArgumentError(
            f"t must be one dimensional, (times,), with at least one time; its shape is "
            f"{tuple(t.shape)}."
        )
    times: list[float] = t.tolist()
    steps = [b - a for a, b in pairwise(times)]
    if not (all(h > 0 for h in steps) or all(h < 0 for h in steps)):
        raise ArgumentError(
            "t must be strictly increasing or decreasing, without repeated times or NaN."
        )
    return times


def state_of(y0: Any) -> Any:
    """The initial state; the parts of a tuple get a common dtype.

    Raises:
        ArgumentError: it is neither a tensor nor a tuple.
        ArgumentTypeError: it holds no floating point or complex numbers.
    """
    if isinstance(y0, Tensor):
        if not (y0.is_floating_point() or y0.is_complex()):
            raise ArgumentTypeError(
                f"y0 must hold floating point or complex numbers, but its dtype is {y0.dtype}: "
                "use y0.float()."
            )
        return y0
    if not isinstance(y0, tuple):
        raise ArgumentError(
            f"y0 must be a torch.Tensor or a tuple of them, got {type(y0).__name__}."
        )
    if not y0 or not all(isinstance(part, Tensor) for part in y0):
        raise ArgumentError("y0 must be a tensor, or a tuple of at least one tensor.")
    dtype = reduce(torch.promote_types, {part.dtype for part in y0})
    return tuple(state_of(part.to(dtype)) for part in y0)


def joined(y0: Any, inner: Any, last: Any) -> Any:
    """The states at all times, ``(times, *state)``, from the first, those inside and the last."""
    if isinstance(y0, tuple):
        middle = (None,) * len(y0) if inner is None else inner
        return tuple(map(joined, y0, middle, last))
    if inner is None:
        return torch.stack((y0, last))
    return torch.cat((y0[None], inner, last[None]))


def each(change: Callable[[Tensor], Tensor], states: Any) -> Any:
    """A function of each part of a state."""
    return tuple(map(change, states)) if isinstance(states, tuple) else change(states)
