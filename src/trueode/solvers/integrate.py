"""From a solver value to the loop that carries it out."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from trueode.errors import SolveError, UsageError
from trueode.solvers import adaptive, fixed, per_sample
from trueode.solvers.clock import Clock
from trueode.solvers.control import Reduce
from trueode.solvers.saving import SavePoints, Saver
from trueode.solvers.solver import Adaptive, Solver
from trueode.solvers.step import Stepper


@dataclass
class Outcome:
    """What the loops return: states and statistics, times as fractions of the interval."""

    z: Tensor
    zs: Tensor | None
    fractions: Tensor  # (steps + 1,) or (steps + 1, batch)
    n_steps: int | Tensor
    n_rejected: int | Tensor
    errors: Tensor | None = None
    status: str = "success"
    message: str = ""


def is_per_sample(solver: Solver) -> bool:
    """Whether every sample has steps of its own."""
    return bool(getattr(solver, "per_sample", False))


def integrate(
    stepper: Stepper, solver: Solver, z: Tensor, save_at: SavePoints | None, reduce: Reduce | None = None
) -> Outcome:
    """Carry out a solve.

    Args:
        stepper: takes the steps.
        solver: chooses them.
        z: initial state; ``(batch, …)`` under per-sample control.
        save_at: where states are wanted.
        reduce: sums over the ranks that share one batch.
    """
    clock = stepper.clock
    if isinstance(solver, Adaptive) and solver.per_sample:
        if z.dim() == 0:
            raise UsageError("Per-sample control needs a state with a batch dimension, (batch, …).")
        z, zs, traces = per_sample.integrate(stepper, solver, z, save_at)
        return Outcome(
            z, zs, traces.grid, traces.n_steps, traces.n_rejected, traces.errors, traces.status, traces.message
        )
    saver = None if save_at is None else Saver(save_at, clock)
    if isinstance(solver, Adaptive):
        z, trace = adaptive.integrate(stepper, solver, z, saver, reduce)
        zs = saver.stacked(z) if saver else None
        grid, errors = (torch.tensor(x, dtype=torch.float64) for x in (trace.grid, trace.errors))
        return Outcome(z, zs, grid, len(errors), trace.n_rejected, errors, trace.status, trace.message)
    try:
        fractions = solver.fractions(clock.length)
    except SolveError as failure:
        grid = torch.zeros(1, dtype=torch.float64)
        return Outcome(z, saver.stacked(z) if saver else None, grid, 0, 0, None, failure.status, str(failure))
    grid = torch.tensor(fractions, dtype=torch.float64)
    if grid.dim() == 2:
        if saver:
            raise UsageError("save_at does not go with a grid per sample: ask for it in the adaptive solve itself.")
        if z.dim() == 0 or grid.shape[1] != z.shape[0]:
            raise UsageError(f"The grid is for {grid.shape[1]} samples, the state has shape {tuple(z.shape)}.")
        z = fixed.integrate_per_sample(stepper, fractions, z)  # type: ignore[arg-type]
    else:
        z = fixed.integrate(stepper, fractions, z, saver)  # type: ignore[arg-type]
    n_steps = len(fractions) - 1
    outcome = Outcome(z, saver.stacked(z) if saver else None, grid, n_steps, 0)
    return check_finite(outcome, clock, solver)


def check_finite(outcome: Outcome, clock: Clock, solver: Solver) -> Outcome:
    """Mark the outcome of given steps as failed if its final state is not finite."""
    if torch._C._are_functorch_transforms_active():  # there a value cannot be asked for
        return outcome
    z = outcome.z.detach()
    if not isfinite(float(z.sum())) and not bool(z.isfinite().all()):  # a sum may overflow
        outcome.status = "non_finite"
        outcome.message = (
            f"The solve with {solver} from t = {clock.t0:g} reached a state that is not finite before t = {clock.t1:g} "
            f"({outcome.n_steps} steps of about {abs(clock.length) / max(int(outcome.n_steps), 1):.3g}): take smaller steps, or an adaptive "
            "solver, which tells where it happens."
        )
    return outcome
