"""What the rows of the swap grid say of convergence: observed order, critical step, the cheapest safe solver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite, log
from typing import Any

from trueode.auditing.swaps import ASYMPTOTIC, TELLING, Row, Swaps
from trueode.catalog import METHODS
from trueode.evaluation.statistics import slope

ABOVE_FLOOR = 10.0  # errors nearer to the floor than by this factor say nothing of the order
POINTS, APART = 4, 1.5  # the finest ones that are left, each with so many times the steps of the one before


@dataclass(frozen=True)
class Order:
    """The order at which the error of a method falls.

    Attributes:
        method: its name.
        nominal: its order on smooth fields. On fields with kinks (ReLU) no method exceeds 2.
        observed: slope of log error against log step, least squares.
        lower: of its 95 % interval.
        upper: of its 95 % interval.
        floor: error of the outputs that rounding leaves, relative to their scale.
        steps: numbers of steps that it was taken from.
    """

    method: str
    nominal: int
    observed: float
    lower: float
    upper: float
    floor: float
    steps: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "steps": list(self.steps)}


def observed_orders(rows: Sequence[Row], floor: float) -> tuple[Order, ...]:
    """The order of each method of fixed steps that has three rows or more between rounding and the size of the outputs.

    Args:
        rows: of the swap grid.
        floor: error of the outputs that rounding leaves, relative to their scale.
    """
    fixed = [row for row in rows if row.kind == "fixed" and row.status == "success" and isfinite(row.output_error)]
    found = []
    for method in dict.fromkeys(row.method for row in fixed if row.method in METHODS):
        own = sorted((row for row in fixed if row.method == method), key=lambda row: row.n_steps)
        used: list[Row] = []
        for row in reversed(own):  # from the finest one
            asymptotic = ABOVE_FLOOR * floor < row.output_error < ASYMPTOTIC
            if asymptotic and len(used) < POINTS and (not used or used[0].n_steps >= APART * row.n_steps):
                used.insert(0, row)
        if len(used) < TELLING:
            continue
        x, y = [-log(row.n_steps) for row in used], [log(row.output_error) for row in used]
        steps = tuple(round(row.n_steps) for row in used)
        found.append(Order(method, METHODS[method].order, *slope(x, y), floor, steps))
    return tuple(found)


@dataclass(frozen=True)
class Safe:
    """The coarsest safe setting of a method: it is safe, and so is every finer one that was tried.

    Attributes:
        method: its name.
        kind: ``"fixed"`` or ``"adaptive"``.
        setting: number of steps, or tolerance.
        nfe: field evaluations for a sample.
        output_error: see `Row`.
        flips: predictions that differ from the reference.
        upper: bound of their share.
    """

    method: str
    kind: str
    setting: float
    nfe: float
    output_error: float
    flips: int
    upper: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def find_safe(swaps: Swaps, method: str, margin: float) -> Safe | None:
    """The coarsest safe setting of a method, found by bisection between the rows of the grid; None: it has none there.

    Safe: the share of predictions that differ from the reference is at most ``margin``, with 95 % confidence.
    """

    def safe(row: Row) -> bool:
        return row.status == "success" and row.upper <= margin

    rows = swaps.of(method)
    coarsest = len(rows)
    while coarsest and safe(rows[coarsest - 1]):
        coarsest -= 1
    if coarsest == len(rows):
        return None
    best = rows[coarsest]
    if best.kind == "fixed" and coarsest:
        low, high = int(rows[coarsest - 1].setting), int(best.setting)
        while high - low > max(1, high // 32):
            middle = (low + high) // 2
            row = swaps.row(method, float(middle))
            if safe(row):
                best, high = row, middle
            else:
                low = middle
    best = swaps.realised(best)
    return Safe(method, best.kind, best.setting, best.nfe, best.output_error, best.flips, best.upper)


def pareto(rows: Sequence[Row]) -> list[Row]:
    """The rows that no other one beats in both evaluations and error, the cheapest first."""
    usable = [row for row in rows if row.status == "success" and isfinite(row.output_error)]
    front: list[Row] = []
    for row in sorted(usable, key=lambda row: (row.nfe, row.output_error)):
        if not front or row.output_error < front[-1].output_error:
            front.append(row)
    return front
