"""The loop that chooses its steps: one step size for the whole batch."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, ulp
from sys import float_info

import torch
from torch import Tensor

from trueode.solvers.control import Reduce, error_scale, rms, scaled_error, starting_step, step_factor, trial_step
from trueode.solvers.saving import Saver
from trueode.solvers.solver import Adaptive
from trueode.solvers.step import Stepper


@dataclass
class Trace:
    """What an adaptive solve did.

    Attributes:
        grid: accepted fractions of the interval, 0 first.
        errors: norm of the scaled error of each accepted step.
        n_rejected: number of rejected steps.
        status: ``"success"`` or the reason of failure.
        message: what happened, for a failure.
    """

    grid: list[float]
    errors: list[float]
    n_rejected: int = 0
    status: str = "success"
    message: str = ""


def integrate(
    stepper: Stepper, solver: Adaptive, z: Tensor, saver: Saver | None, reduce: Reduce | None = None
) -> tuple[Tensor, Trace]:
    """Integrate to the end of the interval under error control and return the final state with the trace.

    The steps are constants for the gradient; rejected steps leave no trace in the graph.
    """
    clock, error_order = stepper.clock, solver.tableau.embedded_order + 1
    trace = Trace([0.0], [])
    if saver:
        saver.add(None, 0.0, z)
    if clock.length == 0:
        return z, trace
    start = stepper.start(0.0, z)
    with torch.no_grad():
        dtheta = _first_fraction(stepper, solver, z, start, reduce)
    first: Tensor | None = start
    theta, ratio = 0.0, 0.0
    while theta < 1:
        if len(trace.errors) + trace.n_rejected >= solver.max_steps:
            return _fail(
                trace, "max_steps", f"took more than max_steps = {solver.max_steps} steps", stepper, z, dtheta, ratio
            )
        if dtheta <= 10 * ulp(theta) or not isfinite(dtheta):
            finite = isfinite(ratio) and isfinite(dtheta)
            status = "step_underflow" if finite else "non_finite"
            what = "the step became too small" if finite else "the state or the field is not finite"
            return _fail(trace, status, what, stepper, z, dtheta, ratio)
        # a rest too short for a step of its own is taken along
        target = 1.0 if theta + 1.0001 * dtheta >= 1 else theta + dtheta
        inside = saver.inside(theta, target, z) if saver else None
        result = stepper.step(stepper.spans((theta, target))[0], z, first, inside, with_error=True)
        with torch.no_grad():
            assert result.error is not None
            error, before, after = map(stepper.controlled, (result.error, z, result.z))
            ratio = rms(scaled_error(error, before, after, solver.rtol, solver.atol), reduce)
        dtheta = (target - theta) * step_factor(ratio, error_order)
        if not ratio <= 1:
            trace.n_rejected += 1
            continue
        stepper.accept()
        theta, z, first = target, result.z, result.end
        trace.grid.append(theta)
        trace.errors.append(ratio)
        if saver:
            saver.add(result.saved, theta, z)
        if first is None and theta < 1:
            first = stepper.start(theta, z)
    return z, trace


def _first_fraction(stepper: Stepper, solver: Adaptive, z: Tensor, first: Tensor, reduce: Reduce | None) -> float:
    length = abs(stepper.clock.length)
    if solver.first_step is not None:
        return min(1.0, solver.first_step / length)
    scale = error_scale(stepper.controlled(z).abs(), solver.rtol, solver.atol)

    def norm(x: Tensor) -> float:
        return rms(stepper.controlled(x) / scale, reduce)

    d1 = norm(first)
    h0 = trial_step(norm(z), d1)
    fraction = min(h0 / length, 1.0)
    moved = stepper.probe(fraction, torch.add(z, first, alpha=fraction * stepper.clock.length))
    d2 = norm(moved - first) / max(fraction * length, float_info.min)
    # in this order `min` keeps the NaN of a field that is not finite
    return min(starting_step(h0, d1, d2, solver.tableau.embedded_order + 1) / length, 1.0)


def _fail(
    trace: Trace, status: str, what: str, stepper: Stepper, z: Tensor, dtheta: float, ratio: float
) -> tuple[Tensor, Trace]:
    clock = stepper.clock
    trace.status = status
    trace.message = (
        f"The solve with {stepper.tableau.name} stopped at t = {clock.at(trace.grid[-1]):.6g} of [{clock.t0:g}, {clock.t1:g}] "
        f"after {len(trace.errors)} accepted and {trace.n_rejected} rejected steps: {what} "
        f"(step {abs(dtheta * clock.length):.3g}, scaled error {ratio:.3g})."
    )
    return z, trace
