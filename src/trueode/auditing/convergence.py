"""Which solvers a model is tried with, and what the rows say: observed order, cheapest safe solver,
Pareto front.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, isfinite, log

from trueode.catalog import METHODS
from trueode.evaluation import Row, SolverTable
from trueode.evaluation.statistics import slope
from trueode.solvers import Adaptive, FixedStep, Solver, get_tableau

LOOSEST, TIGHTEST = 1e-1, 1e-6  # tolerances of adaptive methods; float32 can keep no tighter one
LEAST_NFE = (
    256  # methods are tried up to so many evaluations, or four times those of the training solver
)
AT_REST = 2  # rows without a flip after which finer ones are not tried
ASYMPTOTIC, TELLING = (
    0.3,
    3,
)  # an order needs so many rows with an error below this share of the outputs' scale
ABOVE_FLOOR = 10.0  # errors nearer to the floor than by this factor say nothing of the order
POINTS, APART = (
    4,
    1.5,
)  # the finest ones that are left, each with so many times the steps of the one before


def explore(
    table: SolverTable, methods: Sequence[str], *, note: Callable[[str], None] = lambda text: None
) -> None:
    """Run all methods from one step, or a loose tolerance, up to where nothing changes any more.

    The steps double; those of the training method are the training steps halved and doubled, to
    four times as many at least. Steps end at all times at which a model asks for states: there are
    no fewer than that. Methods go on until two rows in turn have no flip and three show their
    order, or until their evaluations exceed four times those of the training solver and 256.

    Args:
        table: where the rows go.
        methods: names of methods.
        note: told of what is being run.
    """
    own = table.training
    most = max(LEAST_NFE, 4 * own.nfe)
    for method in methods:
        fixed, calm, telling, least = METHODS[method].kind == "fixed", 0, 0, 0.0
        for setting in _ladder(method, own):
            if (
                fixed and setting <= least
            ):  # the times of the outputs make it more: that grid has been tried
                continue
            wanted = method == own.method and fixed and setting <= 4 * own.setting
            too_dear = fixed and setting * get_tableau(method).advancing_stages > most
            if not wanted and (too_dear or (calm >= AT_REST and (telling >= TELLING or not fixed))):
                break
            solver = _solver(method, setting)
            note(str(solver))
            row = table.row(solver)
            least = row.n_steps
            calm = calm + 1 if row.status == "success" and not row.flips else 0
            telling += row.output_error < ASYMPTOTIC
            if row.nfe > most and not wanted:
                break


def _solver(method: str, setting: float) -> Solver:
    return (
        FixedStep(method, n_steps=int(setting))
        if METHODS[method].kind == "fixed"
        else Adaptive(method, setting, setting)
    )


def _ladder(method: str, own: Row) -> list[float]:
    """Numbers of steps, or tolerances, from coarse to fine."""
    if METHODS[method].kind == "adaptive":
        ladder = [LOOSEST]
        while ladder[-1] > 1.5 * TIGHTEST:
            ladder.append(float(f"{ladder[-1] / 10:.1g}"))
        if method == own.method and own.kind == "adaptive":
            ladder = sorted({*ladder, own.setting}, reverse=True)
        return ladder
    if method == own.method and own.kind == "fixed":
        base = max(1, round(own.setting))
        coarser = {ceil(base / 2**k) for k in range(base.bit_length() + 1)}
        return sorted({*map(float, coarser), *(float(base * 2**k) for k in range(1, 12))})
    return [float(2**k) for k in range(16)]


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


def observed_orders(rows: Sequence[Row], floor: float) -> tuple[Order, ...]:
    """The order of each method of fixed steps that has three rows or more between rounding and the
    size of the outputs.

    Args:
        rows: of a table.
        floor: error of the outputs that rounding leaves, relative to their scale.
    """
    fixed = [
        row
        for row in rows
        if row.kind == "fixed" and row.status == "success" and isfinite(row.output_error)
    ]
    found = []
    for method in dict.fromkeys(row.method for row in fixed if row.method in METHODS):
        own = sorted((row for row in fixed if row.method == method), key=lambda row: row.n_steps)
        used: list[Row] = []
        for row in reversed(own):  # from the finest one
            asymptotic = ABOVE_FLOOR * floor < row.output_error < ASYMPTOTIC
            if (
                asymptotic
                and len(used) < POINTS
                and (not used or used[0].n_steps >= APART * row.n_steps)
            ):
                used.insert(0, row)
        if len(used) < TELLING:
            continue
        x, y = [-log(row.n_steps) for row in used], [log(row.output_error) for row in used]
        steps = tuple(round(row.n_steps) for row in used)
        found.append(Order(method, METHODS[method].order, *slope(x, y), floor, steps))
    return tuple(found)


def find_safe(table: SolverTable, method: str) -> Row | None:
    """The coarsest safe row of a method, finer than which all are safe; found by bisection between
    rows; None: it has none.
    """

    def safe(row: Row) -> bool:
        return row.status == "success" and row.safe

    rows = table.of(method)
    coarsest = len(rows)
    while coarsest and safe(rows[coarsest - 1]):
        coarsest -= 1
    if coarsest == len(rows):
        return None
    best = rows[coarsest]
    if best.kind == "fixed" and coarsest and method in METHODS:
        low, high = int(rows[coarsest - 1].setting), int(best.setting)
        while high - low > max(1, high // 32):
            middle = (low + high) // 2
            row = table.row(FixedStep(method, n_steps=middle))
            if safe(row):
                best, high = row, middle
            else:
                low = middle
    return best


def pareto(rows: Sequence[Row]) -> list[Row]:
    """The rows that no other one beats in both evaluations and error, the cheapest first."""
    usable = [row for row in rows if row.status == "success" and isfinite(row.output_error)]
    front: list[Row] = []
    for row in sorted(usable, key=lambda row: (row.nfe, row.output_error)):
        if not front or row.output_error < front[-1].output_error:
            front.append(row)
    return front
