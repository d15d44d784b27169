"""The loop over given steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trueode.solvers.saving import Saver
from trueode.solvers.step import Stepper


def integrate(stepper: Stepper, grid: Sequence[float], z: Tensor, saver: Saver | None) -> Tensor:
    """Step through a grid of fractions of the interval and return the final state."""
    first: Tensor | None = None
    if saver:
        saver.add(None, 0.0, z)
    for i, span in enumerate(stepper.spans(grid)):
        inside = saver.inside(grid[i], grid[i + 1], z) if saver else None
        z, first, saved, _ = stepper.step(span, z, first, inside)
        if saver:
            saver.add(saved, grid[i + 1], z)
    return z


def integrate_per_sample(stepper: Stepper, grid: Sequence[Sequence[float]], z: Tensor) -> Tensor:
    """Step through a grid of fractions per sample, ``(steps + 1, batch)``, and return the final state."""
    theta = torch.tensor(grid, dtype=torch.float64).view(len(grid), -1, *[1] * (z.dim() - 1))
    for span in stepper.clock.spans(theta, stepper.tableau.c):
        z = stepper.step(span, z).z
    return z
