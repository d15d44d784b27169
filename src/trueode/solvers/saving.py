"""States at requested times, gathered while a solve passes them; asking never changes the steps."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trueode.errors import UsageError
from trueode.solvers.clock import Clock, double, is_differentiable, precision

Times = Sequence[Any] | Tensor


def as_times(save_at: Times) -> Tensor:
    """Times as a tensor; numbers keep their full precision, and tensors among them their
    derivatives.

    Raises:
        UsageError: they are no times.
    """
    if isinstance(save_at, Tensor) and not save_at.is_complex():
        return save_at
    with suppress(TypeError, ValueError, RuntimeError):
        if isinstance(save_at, (list, tuple)) and any(isinstance(t, Tensor) for t in save_at):
            return torch.stack([double(t) for t in save_at])
        if not isinstance(save_at, (str, Tensor)):
            return torch.as_tensor(save_at, dtype=torch.float64, device="cpu")
    raise UsageError(f"save_at must hold real times, (times,) or (batch, times), got {save_at!r}.")


@dataclass(frozen=True)
class SavePoints:
    """Where states are wanted, as fractions of the interval.

    Attributes:
        fractions: in float64, ``(times,)``, or ``(times, batch)`` with times of its own for each
            sample; NaN: none.
        slack: how far rounding of the times may have moved them.
        moving: the fractions again, differentiable; None where no derivative by a time is asked
            for.
        ends_stay: whether the points at an end of the interval move with that end alone.
    """

    fractions: Tensor
    slack: float
    moving: Tensor | None = None
    ends_stay: bool = True

    @property
    def per_sample(self) -> bool:
        """Whether every sample has times of its own."""
        return self.fractions.dim() == 2

    @property
    def at_ends(self) -> bool:
        """Whether they are the ends of the interval alone, which no step has inside of it."""
        return (
            self.moving is None
            and not self.per_sample
            and all(x in (0.0, 1.0) for x in self.fractions.tolist())
        )


def save_points(save_at: Times, clock: Clock, batch: int | None) -> SavePoints:
    """Requested times as fractions of the interval; those within rounding of an end are that end.

    A time that no derivative is asked for stands still when an end of the interval moves, unless it
    is that end.

    Args:
        save_at: ``(times,)`` or ``(batch, times)``, where NaN stands for no time.
        clock: the times of the solve.
        batch: the number of samples; None: the state has no dimension of samples.

    Raises:
        UsageError: times are of another shape, not finite, or outside of the interval.
    """
    times = as_times(save_at)
    if times.dim() not in (1, 2):
        raise UsageError(
            f"save_at must have shape (times,) or (batch, times); it has {tuple(times.shape)}."
        )
    if times.dim() == 2:
        if batch is None or times.shape[0] != batch:
            samples = "no dimension of samples" if batch is None else f"{batch} samples"
            raise UsageError(
                f"save_at has times for {len(times)} samples, the state has {samples}: shape (batch, times) is needed."
            )
        times = times.T
    wanted = times.detach().to("cpu", torch.float64)
    slack = clock.slack_of(precision(times))
    theta = (
        torch.where(wanted == clock.t0, 0.0, torch.nan)
        if clock.length == 0
        else (wanted - clock.t0) / clock.length
    )
    absent = wanted.isnan() if times.dim() == 2 else torch.zeros_like(wanted, dtype=torch.bool)
    outside = ~((theta >= -slack) & (theta <= 1 + slack) | absent)
    if bool(outside.any()):
        t = float(wanted[outside][0])
        raise UsageError(
            f"save_at holds the time {t:g}, outside of the interval from {clock.t0:g} to {clock.t1:g}."
        )
    fixed = torch.where(theta < slack, 0.0, torch.where(theta > 1 - slack, 1.0, theta))
    if not (clock.differentiable or is_differentiable(times)) or clock.length == 0:
        return SavePoints(fixed, slack)
    moving = clock.standing(times.to("cpu", torch.float64))
    if not is_differentiable(times):
        moving = torch.where((fixed == 0) | (fixed == 1), fixed, moving)
    return SavePoints(fixed, slack, moving, ends_stay=not is_differentiable(times))


class Inside(NamedTuple):
    """Points inside of a step.

    Attributes:
        theta: fractions of the step, in the precision of the state: ``(times, 1, …)``, or one for
            each row, ``(rows, 1, …)``.
        rows: the samples that they belong to, ``(rows,)``; None: all samples at each time.
    """

    theta: Tensor
    rows: Tensor | None

    @classmethod
    def at(cls, theta: Tensor, rows: Tensor | None, z: Tensor) -> Inside:
        """Fractions ``(n,)`` of a step of states ``z``, of all samples or of one row each."""
        ones = [1] * (z.dim() - (rows is not None))
        return cls(theta.to(dtype=z.dtype.to_real(), device=z.device).view(-1, *ones), rows)


def union(points: SavePoints) -> tuple[SavePoints, Tensor]:
    """All fractions that occur, ascending, and where each entry is found among them,
    ``(times, batch)``; -1: nowhere.
    """
    absent = points.fractions.isnan()
    every = torch.unique(points.fractions[~absent])
    position = torch.searchsorted(every, points.fractions.nan_to_num(nan=0.0).contiguous())
    return SavePoints(every, points.slack), position.masked_fill(absent, -1)


def gather(states: Tensor, position: Tensor) -> Tensor:
    """From ``(union, batch, …)`` to each sample's own times, ``(times, batch, …)``; NaN where there
    is none.
    """
    here = position.to(states.device)
    absent = (here < 0).view(*here.shape, *[1] * (states.dim() - 2))
    if not len(states):
        return states.new_full((*here.shape, *states.shape[2:]), float("nan"))
    found = states[here.clamp(min=0), torch.arange(here.shape[1], device=states.device)]
    return torch.where(absent, torch.full_like(found, float("nan")), found)


def grid_positions(points: SavePoints, grid: Sequence[float]) -> list[int] | None:
    """Where on the grid each point of all samples lies, as a `Saver` sees it; None if one lies, or
    may move, inside of a step.
    """
    if points.moving is not None:
        return None
    wanted = points.fractions.tolist()
    positions = [bisect_left(grid, theta - points.slack) for theta in wanted]
    on_grid = (abs(grid[i] - x) <= points.slack for i, x in zip(positions, wanted, strict=True))
    return positions if all(on_grid) else None


class Saver:
    """Collects the states at the given points while one grid of steps for all samples passes them.

    Where derivatives by times are asked for, also points at grid points are those at a fraction of
    a step, since the grid and the points move on their own.
    """

    def __init__(self, points: SavePoints) -> None:
        self._points, self._slack = points, points.slack
        fractions, self._order = points.fractions.flatten().sort(stable=True)  # NaN comes last
        self._fractions: list[float] = fractions[~fractions.isnan()].tolist()
        self._rows = self._order % points.fractions.shape[1] if points.per_sample else None
        self._moving = None if points.moving is None else points.moving.flatten()[self._order]
        self._done = 0
        self._pieces: list[Tensor] = []

    def inside(self, before: float, after: float, z: Tensor) -> Inside | None:
        """The points inside of a step; None: there are none."""
        if self._moving is None:
            last = bisect_left(self._fractions, after - self._slack, self._done)
        else:
            last = bisect_right(self._fractions, after + self._slack, self._done)
            if self._points.ends_stay:
                last = min(last, bisect_left(self._fractions, 1.0))
        if last <= self._done:
            return None
        here = slice(self._done, last)
        if self._moving is None:
            wanted = torch.tensor(self._fractions[here], dtype=torch.float64, device="cpu")
            theta = ((wanted - before) / (after - before)).clamp(0, 1)
        else:
            theta = (self._moving[here] - before) / (after - before)
        rows = None if self._rows is None else self._rows[here].to(z.device)
        return Inside.at(theta, rows, z)

    def add(self, inside: Tensor | None, after: float, z: Tensor) -> None:
        """Take the states inside of a step and, as often as it was asked for, the one at its end."""
        if inside is not None:
            self._pieces.append(inside)
            self._done += len(inside)
        if self._moving is not None and not (self._points.ends_stay and after in (0.0, 1.0)):
            return
        last = bisect_right(self._fractions, after + self._slack, self._done)
        if last > self._done:
            rows = None if self._rows is None else self._rows[self._done : last].to(z.device)
            self._pieces.append(z.expand(last - self._done, *z.shape) if rows is None else z[rows])
            self._done = last

    def stacked(self, z: Tensor) -> Tensor:
        """The states in the order asked for, ``(times, *state)``; NaN where there is no time or a
        failed solve did not arrive.
        """
        one = z.shape if self._rows is None else z.shape[1:]
        missing = len(self._order) - self._done
        # part of the graph also where it is empty
        pieces = self._pieces or [z.expand(0, *z.shape) if self._rows is None else z[:0]]
        if missing:
            pieces = [*pieces, z.new_full((missing, *one), torch.nan)]
        states, place = torch.cat(pieces), self._order.argsort()
        if not bool((place.diff() == 1).all()):
            states = states[place.to(z.device)]
        return states.view(len(self._points.fractions), *z.shape)
