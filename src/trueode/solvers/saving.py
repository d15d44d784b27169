"""States at requested times, gathered while a solve passes them; asking never changes the steps."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trueode.errors import UsageError
from trueode.solvers.clock import Clock

Times = Sequence[float] | Tensor


def as_times(save_at: Times) -> Tensor:
    """Times as a tensor; numbers keep their full precision."""
    return save_at if isinstance(save_at, Tensor) else torch.tensor(save_at, dtype=torch.float64)


class SavePoints(NamedTuple):
    """Where states are wanted.

    Attributes:
        fractions: of the interval, in the order asked for.
        slack: how far rounding of the times may have moved them.
    """

    fractions: list[float]
    slack: float


def save_points(save_at: Times, clock: Clock) -> SavePoints:
    """Requested times as fractions of the interval; those within rounding of an end are that end.

    Raises:
        UsageError: the times are not one-dimensional, not finite, or outside of the interval.
    """
    times = as_times(save_at).detach()
    if times.dim() != 1:
        raise UsageError(f"save_at must be one-dimensional, (times,); its shape is {tuple(times.shape)}.")
    slack = 8 * max(torch.finfo(times.dtype).eps if times.is_floating_point() else 0.0, clock.eps)
    if clock.length == 0:
        fractions = [0.0 if t == clock.t0 else float("nan") for t in times.tolist()]
    else:
        fractions = [(t - clock.t0) / clock.length for t in times.tolist()]
    for t, theta in zip(times.tolist(), fractions, strict=True):
        if not -slack <= theta <= 1 + slack:
            raise UsageError(
                f"save_at holds the time {t:g}, outside of the interval from {clock.t0:g} to {clock.t1:g}."
            )
    return SavePoints([0.0 if theta < slack else 1.0 if theta > 1 - slack else theta for theta in fractions], slack)


def grid_positions(points: SavePoints, grid: Sequence[float]) -> list[int] | None:
    """Where on the grid each point lies, as a `Saver` sees it; None if one lies inside of a step."""
    positions = [bisect_left(grid, theta - points.slack) for theta in points.fractions]
    on_grid = (abs(grid[i] - x) <= points.slack for i, x in zip(positions, points.fractions, strict=True))
    return positions if all(on_grid) else None


class Saver:
    """Collects the states at the given points, one state for the whole batch at each.

    When an end of the interval requires a gradient, the grid moves with it and the requested times do not: also the
    states at grid points are then those at a fraction of a step.
    """

    def __init__(self, points: SavePoints, clock: Clock) -> None:
        self._slack, self._clock = points.slack, clock
        self._order = sorted(range(len(points.fractions)), key=lambda i: points.fractions[i])
        self._fractions = [points.fractions[i] for i in self._order]
        self._states: list[Tensor] = []

    def inside(self, before: float, after: float, z: Tensor) -> Tensor | None:
        """The points inside of a step as fractions of it, broadcastable against ``(times, *state)``; None: no points."""
        moving = self._clock.differentiable
        pending = []
        for theta in self._fractions[len(self._states) :]:
            if theta >= 1 or theta >= after + (self._slack if moving else -self._slack):
                break
            pending.append(theta)
        if not pending:
            return None
        wanted = (self._clock.standing(torch.tensor(pending, dtype=torch.float64)) - before) / (after - before)
        return (wanted if moving else wanted.clamp(0, 1)).to(z).view(-1, *[1] * z.dim())

    def add(self, inside: Tensor | None, after: float, z: Tensor) -> None:
        """Take the states inside of a step (time first) and, as often as it was asked for, the one at its end."""
        if inside is not None:
            self._states.extend(inside.unbind(0))
        while len(self._states) < len(self._fractions) and self._fractions[len(self._states)] <= after + self._slack:
            self._states.append(z)

    def stacked(self, z: Tensor) -> Tensor:
        """The states in the order asked for, ``(times, *state)``; NaN where a failed solve did not arrive."""
        missing = [torch.full_like(z, float("nan"))] * (len(self._fractions) - len(self._states))
        states = self._states + missing
        if not states:
            return z.new_empty((0, *z.shape))
        ordered = sorted(zip(self._order, states, strict=True), key=lambda pair: pair[0])
        return torch.stack([state for _, state in ordered])
