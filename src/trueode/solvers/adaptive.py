"""The integration loop with adaptive steps, the same for the whole batch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import isfinite, isinf, ulp
from sys import float_info

import torch
from torch import Tensor

from trueode.solvers.control import (
    FACTORS,
    Control,
    Reduce,
    error_scale,
    magnitude,
    rms,
    rms_per_sample,
    scaled_error,
    starting_fractions,
    starting_step,
    step_factor,
    trial_step,
)
from trueode.solvers.failure import Stop, reason
from trueode.solvers.saving import Saver
from trueode.solvers.solver import Adaptive
from trueode.solvers.step import Stepper


@dataclass
class Trace:
    """The record of an adaptive solve.

    Attributes:
        grid: accepted fractions of the interval, 0 first.
        errors: norm of the scaled error of each accepted step.
        n_rejected: number of rejected steps.
        status: ``"success"`` or the reason of failure.
        message: a description of the failure, if any.
    """

    grid: list[float]
    errors: list[float]
    n_rejected: int = 0
    status: str = "success"
    message: str = ""


def integrate(
    stepper: Stepper, solver: Adaptive, z: Tensor, saver: Saver | None, reduce: Reduce | None = None
) -> tuple[Tensor, Trace]:
    """Integrate to the end of the interval under error control; return the final state and the
    trace.

    The steps are constants for the gradient; rejected steps are not part of the graph.
    """
    clock, error_order = stepper.clock, solver.tableau.embedded_order + 1
    trace = Trace([0.0], [])
    if saver:
        saver.add(None, 0.0, z)
    if clock.length == 0:
        return z, trace
    most, control = solver.longest(clock.length), stepper.control
    least, factors = _least(control, clock.length), FACTORS if control is None else control.factors
    start = stepper.start(0.0, z)
    dtheta = _within(_first_fraction(stepper, solver, z, start, reduce), least, most)
    first: Tensor | None = start
    theta, finite = 0.0, True
    while theta < 1:
        tired = len(trace.errors) + trace.n_rejected >= solver.max_steps
        if tired or dtheta <= 10 * ulp(theta) or not isfinite(dtheta):
            give_up(
                trace,
                stepper,
                solver,
                Stop(z, dtheta * clock.length, tired, finite and isfinite(dtheta)),
            )
            return z, trace
        # the last step absorbs a remainder too short for another one
        target = 1.0 if theta + 1.0001 * dtheta >= 1 else theta + dtheta
        inside = saver.inside(theta, target, z) if saver else None
        result = stepper.step(
            clock.spans((theta, target), stepper.tableau.c)[0], z, first, inside, with_error=True
        )
        assert result.error is not None
        with torch.no_grad():
            error, before, after = map(stepper.controlled, (result.error, z, result.z))
            if control is None:
                ratio = rms(scaled_error(error, before, after, solver.rtol, solver.atol), reduce)
            else:
                size = torch.maximum(magnitude(before).abs(), magnitude(after).abs())
                ratio = control.measure(error, size, solver.rtol, solver.atol)
        step = target - theta
        dtheta = _within(step * step_factor(ratio, error_order, factors), least, most)
        shortest = step <= least
        if not (ratio <= 1 or (shortest and isfinite(ratio))):
            if shortest:  # a shorter step is not allowed
                dtheta = 0.0
            finite = isfinite(ratio) or bool(error.isfinite().all() and after.isfinite().all())
            trace.n_rejected += 1
            continue
        theta, z, first, finite = target, result.z, result.end, True
        trace.grid.append(theta)
        trace.errors.append(ratio)
        if saver:
            saver.add(result.saved, theta, z)
        if first is None and theta < 1:
            first = stepper.start(theta, z)
    return z, trace


def _least(control: Control | None, length: float) -> float:
    """The shortest step as a fraction of an interval, with room for rounding."""
    return 0.0 if control is None else min(control.min_step / abs(length) * (1 + 1e-12), 1.0)


def _within(dtheta: float, least: float, most: float) -> float:
    # with this order of arguments, a fraction that is not a number stays so
    return max(min(dtheta, most), least)


def _first_fraction(
    stepper: Stepper, solver: Adaptive, z: Tensor, first: Tensor, reduce: Reduce | None
) -> float:
    length = abs(stepper.clock.length)
    if solver.first_step is not None:
        return min(1.0, solver.first_step / length)
    control, state = stepper.control, stepper.controlled(z)
    scale, order = error_scale(state, solver.rtol, solver.atol), solver.tableau.embedded_order + 1
    if z.device.type == "cuda" and control is None and reduce is None:
        return float(_first_on_device(stepper, z, first, scale, order))

    def norm(x: Tensor) -> float:
        if control is not None:
            size = magnitude(state).abs()
            return control.measure(stepper.controlled(x), size, solver.rtol, solver.atol)
        return rms(stepper.controlled(x) / scale, reduce)

    d1 = norm(first)
    # a tiny tolerance can make the norm of a finite field overflow
    if isinf(d1) and _is_finite(first, reduce):
        d1 = float_info.max
    h0 = trial_step(norm(z), d1)
    fraction = min(h0 / length, 1.0)
    # not under no_grad: the field may compute derivatives itself
    moved = stepper.start(fraction, torch.add(z, first, alpha=fraction * stepper.clock.length))
    d2 = norm(moved - first) / max(fraction * length, float_info.min)
    # with this order of arguments, `min` keeps the NaN of a field that is not finite
    return min(starting_step(h0, d1, d2, order) / length, 1.0)


def _is_finite(x: Tensor, reduce: Reduce | None) -> bool:
    """Whether a tensor is finite on all ranks."""
    wrong = (~x.isfinite()).sum()
    return not bool(wrong if reduce is None else reduce(wrong.double()))


def _first_on_device(
    stepper: Stepper, z: Tensor, first: Tensor, scale: Tensor, order: int
) -> Tensor:
    """The first step, of which the host learns the result alone."""
    clock = stepper.clock

    def norm(x: Tensor) -> Tensor:
        return rms_per_sample((stepper.controlled(x) / scale)[None], z.device).view(())

    def move(trial: Tensor) -> Tensor:  # not under no_grad: the field may compute derivatives
        return stepper.field(clock.tensor(trial), z + clock.tensor_step(trial).detach() * first)

    start = z, first, first.detach().isfinite().all()
    return starting_fractions(norm, move, start, abs(clock.length), order)


def give_up(trace: Trace, stepper: Stepper, solver: Adaptive, stop: Stop) -> None:
    """Write the status and the message of a solve that gave up into its trace."""
    clock, theta = stepper.clock, trace.grid[-1]
    field = partial(stepper.start, theta)
    trace.status, what = reason(field, field(stop.z).detach(), solver, stop)
    ratio = f", scaled error {trace.errors[-1]:.3g}" if trace.errors else ""
    trace.message = (
        f"The solve with {stepper.tableau.name} stopped at t = {clock.at(theta):.6g} "
        f"of [{clock.t0:g}, {clock.t1:g}] after {len(trace.errors)} accepted and "
        f"{trace.n_rejected} rejected steps (next step size {abs(stop.h):.3g}{ratio}): {what}."
    )
