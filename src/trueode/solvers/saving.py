"""States at requested times, gathered while a solve passes them; asking never changes the steps."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import torch
from torch import Tensor

from trueode.errors import UsageError
from trueode.solvers.clock import Clock

Times = Sequence[float] | Tensor


def as_times(save_at: Times) -> Tensor:
    """Times as a tensor; numbers keep their full precision."""
    return save_at if isinstance(save_at, Tensor) else torch.tensor(save_at, dtype=torch.float64)


def save_fractions(save_at: Times, clock: Clock) -> list[float]:
    """Requested times as fractions of the interval; those within rounding of an end are that end.

    Raises:
        UsageError: the times are not one-dimensional, not finite, or outside of the interval.
    """
    times = as_times(save_at).detach()
    if times.dim() != 1:
        raise UsageError(f"save_at must be one-dimensional, (times,); its shape is {tuple(times.shape)}.")
    slack = 8 * torch.finfo(times.dtype).eps if times.is_floating_point() else 1e-15
    if clock.length == 0:
        fractions = [0.0 if t == clock.t0 else float("nan") for t in times.tolist()]
    else:
        fractions = [(t - clock.t0) / clock.length for t in times.tolist()]
    for t, theta in zip(times.tolist(), fractions, strict=True):
        if not -slack <= theta <= 1 + slack:
            raise UsageError(
                f"save_at holds the time {t:g}, outside of the interval from {clock.t0:g} to {clock.t1:g}."
            )
    return [0.0 if theta < slack else 1.0 if theta > 1 - slack else theta for theta in fractions]


def grid_positions(fractions: Sequence[float], grid: Sequence[float], dtype: torch.dtype) -> list[int] | None:
    """Where on the grid each fraction lies, as a `Saver` sees it; None if one lies inside of a step."""
    slack = 8 * torch.finfo(dtype).eps
    positions = [bisect_left(grid, theta - slack) for theta in fractions]
    return positions if all(abs(grid[i] - x) <= slack for i, x in zip(positions, fractions, strict=True)) else None


class Saver:
    """Collects the states at the given fractions of the interval, one state for the whole batch at each."""

    def __init__(self, fractions: Sequence[float], dtype: torch.dtype) -> None:
        self._slack = 8 * torch.finfo(dtype).eps
        self._order = sorted(range(len(fractions)), key=lambda i: fractions[i])
        self._fractions = [fractions[i] for i in self._order]
        self._states: list[Tensor] = []

    def inside(self, before: float, after: float) -> list[float]:
        """The fractions that lie inside of the step, as fractions of the step."""
        width = after - before
        pending = []
        for theta in self._fractions[len(self._states) :]:
            if theta >= after - self._slack:
                break
            pending.append(min(max((theta - before) / width, 0.0), 1.0))
        return pending

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
