"""`odeint`, with the arguments of torchdiffeq's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from trueode.drop_in.adaptive import solve_adaptive
from trueode.drop_in.call import (
    FIXED,
    Call,
    each,
    method_named,
    refuse_callbacks,
    refuse_events,
    state_of,
    times_of,
)
from trueode.drop_in.fixed import solve_fixed
from trueode.solvers import Backprop

_BACKPROP = Backprop()
_NOTHING: Mapping[str, Any] = {}


def odeint(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    event_fn: None = None,
) -> Any:
    """Solve ``dy/dt = func(t, y)``, ``y(t[0]) = y0``; a drop-in for ``torchdiffeq.odeint``.

    Gradients flow to ``y0``, to ``t`` and to all tensors that ``func`` uses.

    Args:
        func: the field, ``func(t, y)``.
        y0: the initial state, a tensor of any shape or a tuple of tensors.
        t: the times, ``(times,)``, increasing or decreasing; the first is that of ``y0``.
        rtol: relative tolerance, a number, a tensor for each component, or a tuple of these for the
            parts of a tuple state.
        atol: absolute tolerance, likewise.
        method: ``"dopri5"`` (None), ``"dopri8"``, ``"tsit5"``, ``"bosh3"``, ``"fehlberg2"`` or
            ``"adaptive_heun"`` with error control; ``"euler"``, ``"midpoint"``, ``"heun2"``,
            ``"heun3"`` or ``"rk4"`` (the 3/8 rule) with fixed steps, by default from time to time.
        options: those of torchdiffeq. Fixed steps: ``step_size``, ``grid_constructor``,
            ``interp``, ``perturb``. Error control: ``first_step``, ``min_step``, ``max_step``,
            ``max_num_steps``, ``step_t``, ``jump_t``, ``norm``, ``safety``, ``ifactor``,
            ``dfactor``; ``dtype`` has no effect, times are in double precision.
        event_fn: not supported.

    Returns:
        The states at all times, ``(times, *state)``; a tuple of these for a tuple state.

    Raises:
        UsageError: an argument does not fit the description above. It is also the TypeError or
            AssertionError that torchdiffeq raises, or a ValueError.
        SolveError: an adaptive solve failed; also an AssertionError.
    """
    refuse_events(event_fn)
    refuse_callbacks(func)
    return run(
        Call(
            func,
            state_of(y0),
            t,
            rtol,
            atol,
            method_named(method),
            options or _NOTHING,
            _BACKPROP,
            times_of(t),
        )
    )


def run(call: Call) -> Any:
    """The states that a call asks for."""
    if len(call.times) == 1:
        return each(lambda y: y[None].clone(), call.y0)
    return solve_fixed(call) if call.method in FIXED else solve_adaptive(call)
