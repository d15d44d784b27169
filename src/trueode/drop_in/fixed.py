"""Calls with steps on a given grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from trueode.drop_in.call import FIXED, Call, each, joined
from trueode.drop_in.errors import ArgumentError
from trueode.drop_in.options import FIXED_OPTIONS, number, warn_of_others
from trueode.drop_in.plans import Blend, Plan, Wanted, check_ends, equal_steps, known_plan, planned
from trueode.errors import UsageError, calling
from trueode.solvers import Adjoint, FixedStep
from trueode.solvers.clock import is_differentiable, limits
from trueode.solvers.problem import Problem
from trueode.solvers.solving import carry_out


def solve_fixed(call: Call) -> Any:
    """The states at all times; between the points of the grid by interpolation."""
    options = call.options
    if options:
        warn_of_others(options, FIXED_OPTIONS, call.method)
        _check(options)
    moving = is_differentiable(call.t)
    if moving and not isinstance(call.gradient, Adjoint):
        return _walk(call, _grid(call))
    cubic, eps = options.get("interp") == "cubic", limits(_first(call.y0).dtype)[0]
    wanted = Wanted(FIXED[call.method], tuple(call.times), cubic, moving, eps)
    if options.get("grid_constructor") is not None:
        plan = planned(wanted, tuple(_grid(call).tolist()))
    else:
        step = options.get("step_size")
        step = None if step is None else number("step_size", step)
        plan = known_plan(wanted, step, call.t.dtype)
    if options.get("perturb", False):
        plan = plan._replace(solver=replace(plan.solver, breaks=tuple(_grid(call).tolist())))
    return _carried_out(call, plan, moving)


def _first(y0: Any) -> Tensor:
    found: Tensor = y0[0] if isinstance(y0, tuple) else y0
    return found


def _check(options: Mapping[str, Any]) -> None:
    if options.get("step_size") is not None and options.get("grid_constructor") is not None:
        raise UsageError("step_size and grid_constructor are mutually exclusive: leave one out.")
    interp = options.get("interp", "linear")
    if interp not in ("linear", "cubic"):
        raise UsageError(f"interp must be 'linear' or 'cubic', got {interp!r}.")


def _carried_out(call: Call, plan: Plan, moving: bool) -> Any:
    t: Any = call.t if moving else call.times
    save_at: Any = plan.save_at
    if moving and save_at is not None and plan.blend is None:
        save_at = t
    problem = Problem(
        call.func,
        call.y0,
        (t[0], t[-1]),
        solver=plan.solver,
        gradient=call.gradient,
        save_at=save_at,
    )
    # as in torchdiffeq, fixed steps return what they find, also if it is not finite
    solution = carry_out(problem, "return")
    if plan.save_at is None:
        return joined(call.y0, None, solution.z)
    if plan.blend is None:
        return solution.zs
    blend = plan.blend
    return each(lambda zs: _blended(zs, blend, call.t), solution.zs)


def _blended(zs: Tensor, blend: Blend, t: Tensor) -> Tensor:
    before, after = zs[blend.lower.to(zs.device)], zs[blend.upper.to(zs.device)]
    weight = (t.to("cpu", torch.float64) - blend.start) / blend.width
    weight = weight.to(zs.device, zs.dtype.to_real()).view(-1, *[1] * (zs.dim() - 1))
    return before + weight * (after - before)


def _grid(call: Call) -> Tensor:
    """The ends of the steps, differentiable if the times are."""
    construct, step = call.options.get("grid_constructor"), call.options.get("step_size")
    if step is not None:
        return equal_steps(call.t, number("step_size", step))
    if construct is None:
        return call.t
    with calling("options['grid_constructor'] raised an exception"):
        grid = construct(call.func, call.y0, call.t)
    if not isinstance(grid, Tensor) or grid.dim() != 1:
        raise ArgumentError("options['grid_constructor'] must return a tensor of times, (points,).")
    return grid


def _walk(call: Call, grid: Tensor) -> Any:
    """The states at all times, by one solve for each step, whose ends are differentiated."""
    points, times, perturb = grid.tolist(), call.times, call.options.get("perturb", False)
    check_ends(points, times)
    sign = 1 if times[-1] > times[0] else -1
    cubic = call.options.get("interp", "linear") == "cubic"
    state, found, j = call.y0, [call.y0], 1
    for i, (a, b) in enumerate(pairwise(points)):
        solver = FixedStep(FIXED[call.method], n_steps=1, breaks=(a, b) if perturb else ())
        last = j
        while last < len(times) and sign * times[last] <= sign * b:
            last += 1
        inside = [k for k in range(j, last) if cubic or times[k] != b]
        problem = Problem(
            call.func,
            state,
            (grid[i], grid[i + 1]),
            solver=solver,
            save_at=call.t[inside] if cubic and inside else None,
        )
        solution = carry_out(problem, "return")
        for place, k in enumerate(inside):
            if cubic:
                found.append(each(lambda zs, at=place: zs[at], solution.zs))  # type: ignore[misc]
            else:
                weight = (call.t[k] - grid[i]) / (grid[i + 1] - grid[i])
                found.append(_between(state, solution.z, weight))
        state = solution.z
        found += [state] * (last - j - len(inside))
        j = last
    if isinstance(state, tuple):
        return tuple(map(torch.stack, zip(*found, strict=True)))
    return torch.stack(found)


def _between(before: Any, after: Any, weight: Tensor) -> Any:
    if isinstance(before, tuple):
        return tuple(_between(x, y, weight) for x, y in zip(before, after, strict=True))
    return before + weight.to(before.device) * (after - before)
