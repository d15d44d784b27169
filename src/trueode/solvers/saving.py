"""Save states at requested times during a solve, without changing its steps."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import sub
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trueode.errors import UsageError
from trueode.solvers.clock import Clock, double, is_differentiable, precision
from trueode.transfer import send

Times = Sequence[Any] | Tensor


def as_times(save_at: Times) -> Tensor:
    """Times as a tensor; numbers keep their full precision, tensors their derivatives.

    Raises:
        UsageError: ``save_at`` does not hold times.
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
    """The times at which states are saved, as fractions of the interval.

    Attributes:
        fractions: float64, ``(times,)``, or ``(times, batch)`` for each sample's own times (padded
            with NaN).
        slack: the largest change of a fraction by rounding of the times.
        moving: the same fractions, differentiable; None if no time is differentiated.
        ends_stay: whether points at an end of the interval move only with that end.
    """

    fractions: Tensor
    slack: float
    moving: Tensor | None = None
    ends_stay: bool = True

    @property
    def per_sample(self) -> bool:
        """Whether each sample has its own times."""
        return self.fractions.dim() == 2

    @property
    def at_ends(self) -> bool:
        """Whether all points are ends of the interval, and so never inside a step."""
        return (
            self.moving is None
            and not self.per_sample
            and all(x in (0.0, 1.0) for x in self.fractions.tolist())
        )


def save_points(save_at: Times, clock: Clock, batch: int | None) -> SavePoints:
    """Requested times as fractions of the interval; those within rounding of an end count as it.

    A time that is not differentiated is constant when an end of the interval moves, unless it is
    that end.

    Args:
        save_at: ``(times,)``, or ``(batch, times)`` padded with NaN.
        clock: the times of the solve.
        batch: the number of samples; None: the state has no batch dimension.

    Raises:
        UsageError: times have the wrong shape, are not finite, or lie outside of the interval.
    """
    times = as_times(save_at)
    if times.dim() not in (1, 2):
        raise UsageError(
            f"save_at must have shape (times,) or (batch, times); it has {tuple(times.shape)}."
        )
    if times.dim() == 2:
        if batch is None or times.shape[0] != batch:
            samples = "no batch dimension" if batch is None else f"{batch} samples"
            raise UsageError(
                f"save_at has times for {len(times)} samples, but the state has {samples}: "
                "it must have shape (batch, times)."
            )
        times = times.T
    wanted = times.detach().to("cpu", torch.float64)
    slack = clock.slack_of(precision(times))
    theta = (
        torch.where(wanted == clock.t0, 0.0, torch.nan)
        if clock.length == 0
        else (wanted - clock.t0) / clock.length
    )
    if not _all_inside(theta, slack):
        outside = ~((theta >= -slack) & (theta <= 1 + slack))
        if times.dim() == 2:
            outside &= ~wanted.isnan()
        if bool(outside.any()):
            t = float(wanted[outside][0])
            raise UsageError(
                f"save_at holds the time {t:g}, outside of the interval "
                f"from {clock.t0:g} to {clock.t1:g}."
            )
    fixed = torch.where(theta < slack, 0.0, torch.where(theta > 1 - slack, 1.0, theta))
    if not (clock.differentiable or is_differentiable(times)) or clock.length == 0:
        return SavePoints(fixed, slack)
    moving = clock.standing(times.to("cpu", torch.float64))
    if not is_differentiable(times):
        moving = torch.where((fixed == 0) | (fixed == 1), fixed, moving)
    return SavePoints(fixed, slack, moving, ends_stay=not is_differentiable(times))


def _all_inside(theta: Tensor, slack: float) -> bool:
    """Whether no fraction lies outside of the interval or is NaN."""
    if not theta.numel():
        return True
    least, largest = map(float, theta.aminmax())  # NaN if a fraction is
    return least >= -slack and largest <= 1 + slack


class Inside(NamedTuple):
    """Points inside a step.

    Attributes:
        theta: fractions of the step, in the precision of the state: ``(times, 1, …)``, or one for
            each row, ``(rows, 1, …)``.
        rows: the sample of each fraction, ``(rows,)``; None: every fraction is for all samples.
    """

    theta: Tensor
    rows: Tensor | None

    @classmethod
    def at(cls, theta: Tensor, rows: Tensor | None, z: Tensor) -> Inside:
        """Points at fractions ``(n,)`` of a step of ``z``, for all samples or for one row each."""
        ones = [1] * (z.dim() - (rows is not None))
        return cls(send(theta, z.device, z.dtype.to_real()).view(-1, *ones), rows)


def union(points: SavePoints) -> tuple[SavePoints, Tensor]:
    """All distinct fractions, ascending, and the index of each entry among them,
    ``(times, batch)``; -1 for NaN.
    """
    absent = points.fractions.isnan()
    every = torch.unique(points.fractions[~absent])
    position = torch.searchsorted(every, points.fractions.nan_to_num(nan=0.0).contiguous())
    return SavePoints(every, points.slack), position.masked_fill(absent, -1)


def gather(states: Tensor, position: Tensor) -> Tensor:
    """Select each sample's own times, ``(times, batch, …)``, from ``(union, batch, …)``; NaN where
    a sample has no time.
    """
    here = send(position, states.device)
    absent = (here < 0).view(*here.shape, *[1] * (states.dim() - 2))
    if not len(states):
        return states.new_full((*here.shape, *states.shape[2:]), float("nan"))
    found = states[here.clamp(min=0), torch.arange(here.shape[1], device=states.device)]
    return torch.where(absent, torch.full_like(found, float("nan")), found)


class Ascending(NamedTuple):
    """The points of all samples, ascending, and where each was requested.

    Attributes:
        points: the points, ``(times,)``.
        order: the place of each requested time among them; None: they are the requested times.
        place: the same for times of each sample, ``(times, batch)``; see `union`.
    """

    points: SavePoints
    order: Tensor | None = None
    place: Tensor | None = None

    def restored(self, states: Tensor) -> Tensor:
        """The states ``(points, batch, …)`` in the requested order, ``(times, batch, …)``."""
        if self.place is not None:
            return gather(states, self.place)
        return states if self.order is None else states[send(self.order, states.device)]


def ascending(points: SavePoints) -> Ascending:
    """Constant points in the order in which a solve reaches them."""
    if points.per_sample:
        points, place = union(points)
        return Ascending(points, place=place)
    if bool((points.fractions.diff() >= 0).all()):
        return Ascending(points)
    fractions, order = points.fractions.sort(stable=True)
    return Ascending(SavePoints(fractions, points.slack), order.argsort())


def located(points: SavePoints, grid: Sequence[float]) -> list[tuple[int, float]]:
    """The step of each point, and its fraction of that step: 0 at grid points, with the tolerance
    of `Saver`. The end of the grid begins another step.
    """
    wanted = points.fractions.tolist()
    if len(wanted) == len(grid) and max(map(abs, map(sub, wanted, grid))) <= points.slack:
        return [(i, 0.0) for i in range(len(grid))]  # the whole grid, which is common
    found = []
    for theta in wanted:
        i = bisect_left(grid, theta - points.slack)
        if abs(grid[i] - theta) <= points.slack:
            found.append((i, 0.0))
        else:
            found.append((i - 1, (theta - grid[i - 1]) / (grid[i] - grid[i - 1])))
    return found


class Saver:
    """Collects states at given points during a solve with the same steps for all samples.

    If times are differentiated, points on the grid are treated as points inside a step too, since
    grid and points move independently.
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
        """The points inside a step; None if there are none."""
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
        rows = None if self._rows is None else send(self._rows[here], z.device)
        return Inside.at(theta, rows, z)

    def add(self, inside: Tensor | None, after: float, z: Tensor) -> None:
        """Add the states inside a step, and the state at its end as often as it was requested."""
        if inside is not None:
            self._pieces.append(inside)
            self._done += len(inside)
        if self._moving is not None and not (self._points.ends_stay and after in (0.0, 1.0)):
            return
        last = bisect_right(self._fractions, after + self._slack, self._done)
        if last > self._done:
            rows = None if self._rows is None else send(self._rows[self._done : last], z.device)
            self._pieces.append(z.expand(last - self._done, *z.shape) if rows is None else z[rows])
            self._done = last

    def stacked(self, z: Tensor) -> Tensor:
        """The states in the requested order, ``(times, *state)``; NaN where a sample has no time or
        a failed solve did not get there.
        """
        one = z.shape if self._rows is None else z.shape[1:]
        missing = len(self._order) - self._done
        # an empty result is part of the graph too
        pieces = self._pieces or [z.expand(0, *z.shape) if self._rows is None else z[:0]]
        if missing:
            pieces = [*pieces, z.new_full((missing, *one), torch.nan)]
        states, place = torch.cat(pieces), self._order.argsort()
        if not bool((place.diff() == 1).all()):
            states = states[send(place, z.device)]
        return states.view(len(self._points.fractions), *z.shape)
