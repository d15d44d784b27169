"""`odeint_adjoint`, with the arguments of torchdiffeq's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trueode.drop_in.adaptive import solver_of
from trueode.drop_in.call import (
    CALLBACKS,
    FIXED,
    Call,
    method_named,
    refuse_callbacks,
    refuse_events,
    state_of,
    times_of,
)
from trueode.drop_in.errors import ArgumentError
from trueode.drop_in.odeint import run
from trueode.drop_in.options import number, warn_of_others
from trueode.errors import UsageError
from trueode.solvers import Adaptive, Adjoint, Backprop, FixedStep

BACKWARD = {True: {"step_size"}, False: {"max_step", "max_num_steps"}}
"""The options of the backward solve, with fixed steps and with error control."""
WITHOUT_EFFECT = {"interp", "dtype", "norm"}
FORWARD_ONLY = {
    "grid_constructor",
    "perturb",
    "first_step",
    "min_step",
    "step_t",
    "jump_t",
    "safety",
    "ifactor",
    "dfactor",
}


def odeint_adjoint(
    func: Callable[..., Any],
    y0: Any,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    event_fn: None = None,
    adjoint_rtol: float | None = None,
    adjoint_atol: float | None = None,
    adjoint_method: str | None = None,
    adjoint_options: Mapping[str, Any] | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
) -> Any:
    """`odeint` with gradients by the adjoint equation, as ``torchdiffeq.odeint_adjoint``.

    The backward pass keeps one state in memory for each time. Its error control considers the state
    and the adjoint, not the gradients of parameters (the ``"seminorm"`` of torchdiffeq).

    Args:
        func: the field; a Module, or any function together with ``adjoint_params``.
        y0: see `odeint`.
        t: see `odeint`.
        rtol: see `odeint`.
        atol: see `odeint`.
        method: see `odeint`.
        options: see `odeint`.
        event_fn: not supported.
        adjoint_rtol: relative tolerance of the backward solve, a number; None: ``rtol``.
        adjoint_atol: its absolute tolerance; None: ``atol``.
        adjoint_method: its method; None: ``method``.
        adjoint_options: its options: ``step_size``, ``max_step``, ``max_num_steps``, or
            ``norm="seminorm"``; None: those of the forward solve.
        adjoint_params: the tensors that the field uses; None: the parameters of the Module. Leaf
            tensors that the field uses in addition get their gradients too.

    Returns:
        The states at all times, as `odeint`.

    Raises:
        UsageError: an argument does not fit the description above; see `odeint`.
        SolveError: a solve failed.
    """
    refuse_events(event_fn)
    refuse_callbacks(func, (*CALLBACKS, *(f"{name}_adjoint" for name in CALLBACKS)))
    if adjoint_params is None and not isinstance(func, nn.Module):
        raise UsageError(
            "func must be an instance of nn.Module, so that its parameters are known: pass "
            "adjoint_params=(…) for a function, or adjoint_params=() if it uses none."
        )
    name = method_named(method)
    back = name if adjoint_method is None else method_named(adjoint_method)
    if back != name and options is not None and adjoint_options is None:
        raise UsageError(
            "adjoint_method differs from method, so the adjoint_options cannot be those of "
            "options: pass adjoint_options, such as adjoint_options={}."
        )
    times = times_of(t)
    forward = Call(func, state_of(y0), t, rtol, atol, name, options or {}, Backprop(), times)
    solver = None  # that of the forward solve
    changes = adjoint_method, adjoint_options, adjoint_rtol, adjoint_atol
    single = name in FIXED or (_is_single(rtol) and _is_single(atol))
    if not single or any(each is not None for each in changes):
        chosen = forward._replace(
            method=back,
            rtol=rtol if adjoint_rtol is None else adjoint_rtol,
            atol=atol if adjoint_atol is None else adjoint_atol,
            options=_without_norm(options or {}) if adjoint_options is None else adjoint_options,
        )
        solver = _backward(chosen, explicit=adjoint_options is not None)
    adjoint = Adjoint(solver=solver, params=adjoint_params)
    # without gradients, the adjoint would only be slower
    return run(forward._replace(gradient=adjoint) if torch.is_grad_enabled() else forward)


def _backward(call: Call, explicit: bool) -> FixedStep | Adaptive:
    """The solver of the backward solve."""
    options, fixed = call.options, call.method in FIXED
    if explicit:
        norm = options.get("norm", "seminorm")
        if norm != "seminorm":
            raise UsageError(
                "adjoint_options['norm'] must be 'seminorm', which the backward solve uses: use "
                "torchdiffeq itself for another norm."
            )
        for name in sorted(FORWARD_ONLY & set(options)):
            raise UsageError(
                f"adjoint_options has no {name!r}: leave it out, or use torchdiffeq itself."
            )
        warn_of_others(options, BACKWARD[fixed] | WITHOUT_EFFECT, call.method)
    if fixed:
        step = options.get("step_size")
        if step is not None:
            return FixedStep(FIXED[call.method], step_size=number("step_size", step))
        return FixedStep(FIXED[call.method], n_steps=max(len(call.times) - 1, 1))
    if not (_is_single(call.rtol) and _is_single(call.atol)):
        raise ArgumentError(
            "The backward solve takes single numbers as tolerances: pass adjoint_rtol and "
            "adjoint_atol."
        )
    known = {name: options[name] for name in BACKWARD[False] & set(options)}
    tolerances = float(call.rtol), float(call.atol)
    return solver_of(call.method, tolerances, known, call.times)


def _without_norm(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "norm"}


def _is_single(tolerance: Any) -> bool:
    return not isinstance(tolerance, (list, tuple)) and (
        not isinstance(tolerance, Tensor) or tolerance.dim() == 0
    )
