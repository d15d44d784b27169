"""How the states at requested times follow from those on a grid of steps."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor

from trueode.drop_in.errors import ArgumentError
from trueode.errors import UsageError
from trueode.solvers import FixedStep, OnGrid


class Wanted(NamedTuple):
    """What a plan depends on, besides the grid.

    Attributes:
        method: a name in ``catalog.METHODS``.
        times: the requested times.
        cubic: whether to interpolate by the method's dense output instead of linearly.
        moving: whether the times are differentiated.
        eps: the relative rounding error of the state.
    """

    method: str
    times: tuple[float, ...]
    cubic: bool
    moving: bool
    eps: float


class Blend(NamedTuple):
    """Linear interpolation between saved states.

    Attributes:
        lower: the saved state at or before each time, by its index.
        upper: the one at or after it.
        start: the time of the lower one, in float64.
        width: from the lower to the upper one; 1 if they are the same.
    """

    lower: Tensor
    upper: Tensor
    start: Tensor
    width: Tensor


class Plan(NamedTuple):
    """How the states at the requested times are found.

    Attributes:
        solver: takes the steps.
        save_at: the times whose states are saved, in float64; None: the end alone.
        blend: how the result follows from the saved states; None: they are the result.
    """

    solver: FixedStep | OnGrid
    save_at: Tensor | None
    blend: Blend | None = None


@lru_cache(maxsize=16)
def known_plan(wanted: Wanted, step: float | None, dtype: torch.dtype) -> Plan:
    """The plan of steps from time to time (None), or of a step size, with times of a dtype."""
    if step is None:
        return planned(wanted, wanted.times)
    times = torch.tensor(wanted.times, dtype=dtype, device="cpu")
    return planned(wanted, tuple(equal_steps(times, step).tolist()))


def planned(wanted: Wanted, grid: tuple[float, ...]) -> Plan:
    """The plan of a solve with steps between the points of a grid.

    Raises:
        ArgumentError: the grid does not lead from the first time to the last.
    """
    times = wanted.times
    check_ends(grid, times)
    first, length = grid[0], grid[-1] - grid[0]
    exact = [min(max((x - first) / length, 0.0), 1.0) for x in grid]
    if any(a > b for a, b in pairwise(exact)):
        raise ArgumentError("The points of a grid must be in order, from t[0] to t[-1].")
    near = 4 * wanted.eps * max(1.0, abs(first) / abs(length))
    solver, fractions = _solver(wanted.method, exact, near)
    if wanted.cubic:
        return Plan(solver, None if len(times) == 2 else _constant(times))
    lower, upper = _neighbours(exact, [(x - first) / length for x in times], wanted.moving)
    needed = sorted({*lower, *upper})
    if len(times) == 2 and needed == [0, len(grid) - 1]:
        return Plan(solver, None)
    inner = range(1, len(grid) - 1)
    save_at = _constant([first + fractions[i] * length if i in inner else grid[i] for i in needed])
    if lower == upper:
        return Plan(solver, save_at)
    place = {index: k for k, index in enumerate(needed)}
    below, above = (_constant([place[i] for i in x], torch.long) for x in (lower, upper))
    start = _constant([grid[i] for i in lower])
    width = _constant([grid[j] - grid[i] or 1.0 for i, j in zip(lower, upper, strict=True)])
    return Plan(solver, save_at, Blend(below, above, start, width))


def _constant(values: Sequence[float], dtype: torch.dtype = torch.float64) -> Tensor:
    with torch.inference_mode(False):  # later uses of a cached plan may need gradients
        return torch.tensor(values, dtype=dtype, device="cpu")


def check_ends(grid: Sequence[float], times: Sequence[float]) -> None:
    """Raise an `ArgumentError` if a grid does not begin and end with the times."""
    if len(grid) < 2 or grid[0] != times[0] or grid[-1] != times[-1]:
        raise ArgumentError(
            f"The grid must begin at t[0] = {times[0]:g} and end at t[-1] = {times[-1]:g}."
        )


def _neighbours(
    grid: Sequence[float], wanted: Sequence[float], moving: bool
) -> tuple[list[int], list[int]]:
    """The points of a grid at or before each fraction, and those at or after it, by their index."""
    upper = [bisect_left(grid, x) for x in wanted]
    lower = [i if grid[i] == x else i - 1 for i, x in zip(upper, wanted, strict=True)]
    if moving and lower != upper:  # the slope of the step before a time is the derivative by it
        lower = [max(i - 1, 0) for i in upper]
    return lower, upper


def _solver(
    method: str, fractions: list[float], near: float
) -> tuple[FixedStep | OnGrid, Sequence[float]]:
    """The solver with steps on a grid, and its fractions; equal steps are faster to describe."""
    n = len(fractions) - 1
    equal = [i / n for i in range(n + 1)]
    if all(abs(x - y) <= near for x, y in zip(fractions, equal, strict=True)):
        return FixedStep(method, n_steps=n), equal
    return OnGrid(method, tuple(fractions)), fractions


def equal_steps(t: Tensor, step: float) -> Tensor:
    """Times a step apart, from the first to the last; the last step is shorter if necessary.

    Computed in the precision of the times, as in torchdiffeq, so that there are as many steps.
    """
    if not step > 0:
        raise UsageError(f"step_size must be positive, got {step!r}.")
    length = (t[-1] - t[0]).detach()
    sign = 1 if length > 0 else -1
    n = ceil(float(sign * length / step + 1))
    inner = t[0] + sign * (torch.arange(n - 1, dtype=t.dtype, device=t.device) * step)
    return torch.cat((inner, t[-1:]))
