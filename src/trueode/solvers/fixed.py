"""The integration loop with fixed steps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from trueode.solvers.saving import Saver
from trueode.solvers.step import Stepper


def integrate(stepper: Stepper, grid: Sequence[float], z: Tensor, saver: Saver | None) -> Tensor:
    """Step through a grid of fractions of the interval and return the final state."""
    first: Tensor | None = None
    if saver:
        saver.add(None, 0.0, z)
    for i, span in enumerate(stepper.clock.spans(grid, stepper.tableau.c)):
        inside = saver.inside(grid[i], grid[i + 1], z) if saver else None
        z, first, saved, _ = stepper.step(span, z, first, inside)
        if saver:
            saver.add(saved, grid[i + 1], z)
    return z


def integrate_per_sample(stepper: Stepper, grid: Tensor, z: Tensor) -> Tensor:
    """Step through a grid of fractions for each sample, ``(steps + 1, batch)``, and return the
    final state.
    """
    rows = grid.view(len(grid), -1, *[1] * (z.dim() - 1)).unbind(0)
    for before, after in pairwise(rows):
        z = stepper.step(stepper.clock.span_per_sample(before, after, stepper.tableau.c), z).z
    return z
