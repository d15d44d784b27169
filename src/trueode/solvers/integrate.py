"""Choose and run the integration loop of a solver."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trueode.errors import SolveError, UsageError
from trueode.solvers import adaptive, fixed, per_sample
from trueode.solvers.control import Reduce
from trueode.solvers.saving import SavePoints, Saver
from trueode.solvers.solver import Adaptive, Solver
from trueode.solvers.step import Stepper


class Outcome(NamedTuple):
    """The result of a solve: states and statistics, with times as fractions of the interval."""

    z: Tensor
    zs: Tensor | None
    fractions: Tensor  # (steps + 1,) or (steps + 1, batch)
    n_steps: int | Tensor
    n_rejected: int | Tensor
    errors: Tensor | None = None
    status: str = "success"
    message: str = ""
    statuses: tuple[str, ...] | None = None  # of each sample, under per-sample control
    is_finite: bool = False  # whether the final state is known to be finite


def integrate(
    stepper: Stepper,
    solver: Solver,
    z: Tensor,
    points: SavePoints | None,
    reduce: Reduce | None = None,
) -> Outcome:
    """Run the integration loop of a solver.

    Args:
        stepper: takes the steps.
        solver: chooses the steps.
        z: initial state; ``(batch, …)`` under per-sample control.
        points: the times at which states are saved.
        reduce: sums over the ranks that share one batch.
    """
    if isinstance(solver, Adaptive) and solver.per_sample:
        z, zs, traces = per_sample.integrate(stepper, solver, z, points)
        status = next((status for status in traces.statuses if status != "success"), "success")
        known = traces.grid, traces.n_steps, traces.n_rejected, traces.errors
        return Outcome(z, zs, *known, status, traces.message, traces.statuses)
    saver = None if points is None else Saver(points)
    if isinstance(solver, Adaptive):
        z, trace = adaptive.integrate(stepper, solver, z, saver, reduce)
        grid, errors = (
            torch.tensor(x, dtype=torch.float64, device="cpu") for x in (trace.grid, trace.errors)
        )
        zs = saver.stacked(z) if saver else None
        return Outcome(
            z, zs, grid, len(errors), trace.n_rejected, errors, trace.status, trace.message
        )
    try:
        fractions = solver.fractions(stepper.clock.length)
    except SolveError as failure:
        grid = torch.zeros(1, dtype=torch.float64, device="cpu")
        return Outcome(
            z, saver.stacked(z) if saver else None, grid, 0, 0, None, failure.status, str(failure)
        )
    grid = torch.tensor(fractions, dtype=torch.float64, device="cpu")
    if grid.dim() == 2:
        if saver:
            raise UsageError(
                "save_at cannot be combined with a grid per sample: "
                "pass it to the adaptive solve itself."
            )
        if grid.shape[1] != z.shape[0]:
            raise UsageError(
                f"The grid is for {grid.shape[1]} samples; the state has shape {tuple(z.shape)}."
            )
        z = fixed.integrate_per_sample(stepper, grid, z)
    else:
        z = fixed.integrate(stepper, fractions, z, saver)  # type: ignore[arg-type]
    return Outcome(z, saver.stacked(z) if saver else None, grid, len(fractions) - 1, 0)
