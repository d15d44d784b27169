"""Calls with adaptive steps."""

from __future__ import annotations

from functools import lru_cache
from math import inf
from typing import Any

from torch import Tensor

from trueode.drop_in.call import Call, joined
from trueode.drop_in.errors import SolveFailedError
from trueode.drop_in.options import (
    ADAPTIVE_OPTIONS,
    instants,
    number,
    state_norm,
    tolerance,
    warn_of_others,
)
from trueode.errors import SolveError
from trueode.solvers import Adaptive
from trueode.solvers.clock import is_differentiable
from trueode.solvers.control import GROW, SAFETY, SHRINK, Control
from trueode.solvers.problem import Problem
from trueode.solvers.solver import MOST_STEPS
from trueode.solvers.solving import carry_out

UNLIMITED = 2**31 - 1  # the default max_num_steps of torchdiffeq


def solve_adaptive(call: Call) -> Any:
    """The states at all times, by dense output between the steps."""
    if call.options:
        warn_of_others(call.options, ADAPTIVE_OPTIONS, call.method)
    solver, control = chosen(call)
    t: Any = call.t if is_differentiable(call.t) else call.times
    problem = Problem(
        call.func,
        call.y0,
        (t[0], t[-1]),
        solver=solver,
        gradient=call.gradient,
        save_at=t[1:-1] if len(t) > 2 else None,
        control=control,
    )
    try:
        solution = carry_out(problem)
    except SolveError as failure:
        advice = " In odeint, max_steps is options['max_num_steps'] for each interval of t."
        tired = failure.status == "max_steps"
        raise SolveFailedError(f"{failure}{advice if tired else ''}", failure.status) from failure
    return joined(call.y0, solution.zs, solution.z)


def chosen(call: Call) -> tuple[Adaptive, Control | None]:
    """The solver of a call, and its error control if that is not the solver's own."""
    options = call.options
    single = not isinstance(call.y0, tuple)
    if single and not options and type(call.rtol) is float and type(call.atol) is float:
        return _plain(call.method, call.rtol, call.atol), None
    rtol, shares_r = tolerance("rtol", call.rtol, call.y0)
    atol, shares_a = tolerance("atol", call.atol, call.y0)
    found = {
        name: number(name, options.get(name, default))
        for name, default in (
            ("min_step", 0.0),
            ("safety", SAFETY),
            ("dfactor", SHRINK),
            ("ifactor", GROW),
        )
    }
    control = Control(shares_r, shares_a, state_norm(options.get("norm"), call.y0), *_split(found))
    uniform = not isinstance(shares_r, Tensor) and not isinstance(shares_a, Tensor)
    return solver_of(call.method, (rtol, atol), options, call.times), (
        None if uniform and control == Control() else control
    )


def _split(found: dict[str, float]) -> tuple[float, tuple[float, float, float]]:
    return found["min_step"], (found["safety"], found["dfactor"], found["ifactor"])


def solver_of(
    method: str, tolerances: tuple[float, float], options: Any, times: list[float]
) -> Adaptive:
    """The solver of a method with the options that it takes itself."""
    first = options.get("first_step")
    longest = number("max_step", options.get("max_step", inf))
    most = number("max_num_steps", options.get("max_num_steps", UNLIMITED))
    return Adaptive(
        method,
        *tolerances,
        first_step=None if first is None else number("first_step", first),
        max_steps=int(min(most * (len(times) - 1), MOST_STEPS)),
        max_step=None if longest == inf else longest,
        breaks=instants(options, times),
    )


@lru_cache(maxsize=64)
def _plain(method: str, rtol: float, atol: float) -> Adaptive:
    return Adaptive(method, rtol, atol, max_steps=MOST_STEPS)
