"""The loop that chooses its steps for each sample by itself."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from trueode.solvers.control import error_scale, rms_per_sample, scaled_error, starting_step, step_factors, trial_step
from trueode.solvers.saving import SavePoints
from trueode.solvers.solver import Adaptive
from trueode.solvers.step import Stepper


@dataclass
class SampleTraces:
    """What the solves of the samples did.

    Attributes:
        grid: accepted fractions of the interval, ``(steps + 1, batch)``; a finished sample repeats its last one.
        errors: norm of the scaled error of the accepted steps, ``(steps, batch)``; NaN after the last one.
        n_steps: accepted steps, ``(batch,)``.
        n_rejected: rejected steps, ``(batch,)``.
        status: ``"success"`` or the reason of the first failure.
        message: what happened, for a failure.
    """

    grid: Tensor
    errors: Tensor
    n_steps: Tensor
    n_rejected: Tensor
    status: str = "success"
    message: str = ""


def integrate(
    stepper: Stepper, solver: Adaptive, z: Tensor, save_at: SavePoints | None
) -> tuple[Tensor, Tensor | None, SampleTraces]:
    """Integrate every sample to the end of the interval under its own error control.

    Only samples that have not arrived are evaluated, so a stiff one does not make the others pay. Control runs in
    float64 on the CPU; the field sees times of shape ``(samples, 1, …)``.

    Args:
        stepper: takes the steps.
        solver: method and tolerances.
        z: ``(batch, …)``.
        save_at: where states are wanted.

    Returns:
        The final states, the states at ``save_at`` ``(times, batch, …)`` and the traces.
    """
    batch, device = z.shape[0], z.device
    wanted = torch.tensor(save_at.fractions if save_at else [], dtype=torch.float64)
    standing = stepper.clock.standing(wanted)
    saved = z.new_full((len(wanted), *z.shape), float("nan"))
    history: list[tuple[Tensor, Tensor, Tensor]] = []  # rows, fractions reached, errors of accepted steps
    counts = torch.zeros(2, batch, dtype=torch.long)  # accepted, rejected
    status = message = ""

    final, state, first = z, z, None
    active = torch.arange(batch if stepper.clock.length else 0)
    theta = torch.zeros(len(active), dtype=torch.float64)
    if len(active):
        first = stepper.start_per_sample(theta, z)
        with torch.no_grad():
            dtheta = _first_fractions(stepper, solver, z, first)
    elif not batch:  # nothing to solve, but the weights are part of the graph, as on the ranks that have samples
        final = z + 0 * stepper.start_per_sample(theta, z)
    while len(active):
        stuck = (dtheta <= 10 * torch.finfo(torch.float64).eps * theta) | ~dtheta.isfinite()
        tired = counts[:, active].sum(0) >= solver.max_steps
        if bool((stuck | tired).any()):
            k = int((stuck | tired).nonzero()[0])
            status, what = _reason(bool(tired[k]), state[k], float(dtheta[k]), solver.max_steps)
            message = (
                f"The solve of sample {int(active[k])} with {stepper.tableau.name} stopped at "
                f"t = {stepper.clock.at(float(theta[k])):.6g} of [{stepper.clock.t0:g}, {stepper.clock.t1:g}] after "
                f"{int(counts[0, active[k]])} accepted and {int(counts[1, active[k]])} rejected steps: {what} "
                f"(step {abs(float(dtheta[k]) * stepper.clock.length):.3g})."
            )
            final = final.index_copy(0, active.to(device), state)
            break
        target = torch.where(theta + 1.0001 * dtheta >= 1, 1.0, theta + dtheta)
        hits = (wanted[:, None] > theta) & (wanted[:, None] <= target) & (wanted[:, None] < 1)
        times = hits.any(1).nonzero()[:, 0]
        inside = None
        if len(times):
            within = (standing[times, None] - theta) / (target - theta)
            inside = _columns(within, state).to(state)
        span = stepper.span_per_sample(theta, target, state)
        result = stepper.step(span, state, first, inside, with_error=True)
        with torch.no_grad():
            assert result.error is not None
            error = scaled_error(result.error, state, result.z, solver.rtol, solver.atol)
            ratio = rms_per_sample(error).double().cpu()
        accepted = ratio <= 1
        dtheta = (target - theta) * step_factors(ratio, solver.tableau.embedded_order + 1)
        counts[0, active] += accepted
        counts[1, active] += ~accepted
        if not bool(accepted.all()):
            if result.z.requires_grad and not bool(ratio.isfinite().all()):
                # the overflow of a rejected step would reach the gradients as 0 x inf: repeat those steps with size 0
                span = stepper.span_per_sample(theta, torch.where(accepted, target, theta), state)
                result = stepper.step(span, state, first, inside, with_error=True)
            column = _columns(accepted[None].to(device), state)[0]
            end = None if result.end is None or first is None else torch.where(column, result.end, first)
            result = result._replace(z=torch.where(column, result.z, state), end=end)
        if inside is not None and result.saved is not None:
            index = times[:, None].to(device), active[None].to(device)
            passed = _columns((hits[times] & accepted).to(device), state)
            saved = saved.index_put(index, torch.where(passed, result.saved, saved[index]))
        history.append((active[accepted], target[accepted], ratio[accepted]))
        theta = torch.where(accepted, target, theta)
        state, first = result.z, result.end
        going = theta < 1
        if not bool(going.all()):
            final = final.index_copy(0, active[~going].to(device), state[(~going).to(device)])
            keep = going.to(device)
            state, first = state[keep], None if first is None else first[keep]
            active, theta, dtheta = active[going], theta[going], dtheta[going]
    for at, states in ((wanted <= 0, z), (wanted >= 1, final)):
        if bool(at.any()) and (states is z or not status):
            saved = torch.where(at.to(device).view(-1, *[1] * z.dim()), states, saved)
    grid, errors = _padded(history, counts[0])
    traces = SampleTraces(grid, errors, counts[0], counts[1], status or "success", message)
    return final, None if save_at is None else saved, traces


def _columns(values: Tensor, state: Tensor) -> Tensor:
    """Values ``(times, samples)`` made broadcastable against ``(samples, …)`` states: ``(times, samples, 1, …)``."""
    return values.view(*values.shape, *[1] * (state.dim() - 1))


def _reason(tired: bool, state: Tensor, dtheta: float, max_steps: int) -> tuple[str, str]:
    if tired:
        return "max_steps", f"took more than max_steps = {max_steps} steps"
    if not (isfinite(dtheta) and bool(state.isfinite().all())):
        return "non_finite", "the state or the field is not finite"
    return "step_underflow", "the step became too small, or the field is not finite"


def _first_fractions(stepper: Stepper, solver: Adaptive, z: Tensor, first: Tensor) -> Tensor:
    length = abs(stepper.clock.length)
    if solver.first_step is not None:
        return torch.full((len(z),), min(1.0, solver.first_step / length), dtype=torch.float64)
    scale = error_scale(z.abs(), solver.rtol, solver.atol)
    d0, d1 = (rms_per_sample(x / scale).double().cpu() for x in (z, first))
    h0 = torch.tensor([trial_step(x, y) for x, y in zip(d0.tolist(), d1.tolist(), strict=True)], dtype=torch.float64)
    trial = h0.clamp(max=length) / length
    moved_state = z + _columns(stepper.clock.tensor_step(trial)[None], z)[0].detach() * first
    moved = stepper.start_per_sample(trial, moved_state)
    d2 = rms_per_sample((moved - first) / scale).double().cpu() / (trial * length)
    order = solver.tableau.embedded_order + 1
    steps = [starting_step(x, y, c, order) for x, y, c in zip(h0.tolist(), d1.tolist(), d2.tolist(), strict=True)]
    return torch.tensor(steps, dtype=torch.float64).clamp(max=length) / length


def _padded(history: list[tuple[Tensor, Tensor, Tensor]], counts: Tensor) -> tuple[Tensor, Tensor]:
    """The grid and the errors of all samples, side by side."""
    steps = int(counts.max()) if len(counts) else 0
    grid = torch.zeros(steps + 1, len(counts), dtype=torch.float64)
    errors = torch.full((steps, len(counts)), float("nan"), dtype=torch.float64)
    position = torch.zeros_like(counts)
    for rows, fractions, ratios in history:
        errors[position[rows], rows] = ratios
        position[rows] += 1
        grid[position[rows], rows] = fractions
    return grid.cummax(0).values, errors
