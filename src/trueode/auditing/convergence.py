"""The table of solvers: its rows, and what they show (observed order, cheapest safe solver, Pareto
front).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, isfinite, log

from trueode.catalog import METHODS
from trueode.evaluation import Row, SolverTable
from trueode.evaluation.pace import Pace
from trueode.evaluation.statistics import slope
from trueode.solvers import Adaptive, FixedStep, Solver, get_tableau

LOOSEST, TIGHTEST = 1e-1, 1e-6  # tolerances of adaptive methods; float32 resolves no tighter one
LEAST_NFE = 256  # limit on evaluations, unless four times those of the training solver are more
WIDER, MOST_NFE = 4, 4096  # factor on it, and largest limit, while a sampler has no safe solver
AT_REST = 2  # after this many rows without a flip, no finer ones are tried
ASYMPTOTIC = 0.3  # an order is read from errors below this share of the outputs' scale
TELLING = 3  # and needs at least this many such rows
ABOVE_FLOOR = 10.0  # an error below this multiple of the floor shows rounding, not the order
POINTS = 4  # an order uses at most this many rows, the finest ones
APART = 1.5  # each with at least this many times the steps of the one before


def explore(table: SolverTable, methods: Sequence[str], pace: Pace) -> None:
    """Refine each method, from one step or a loose tolerance, until nothing changes any more.

    The steps double. For the training method they are the training steps, halved and doubled, up to
    at least four times as many. Steps end at all times at which a model asks for states, so there
    are at least as many steps. A method ends when two rows in turn have no flip and three show its
    order, or when its evaluations exceed both 256 and four times those of the training solver. For
    samplers this limit grows until a solver is safe, because the cheapest one is the answer.

    Args:
        table: receives the rows.
        methods: names of the methods.
        pace: reports each solver.
    """
    most = max(LEAST_NFE, 4 * table.training.nfe)
    _explore(table, methods, pace, most)
    own = table.training
    bounded = isfinite(own.sliced) and isfinite(own.upper)  # a sampler, and enough samples
    while bounded and most < MOST_NFE and not any(row.safe for row in table.rows):
        most *= WIDER
        _explore(table, methods, pace, most)


def _explore(table: SolverTable, methods: Sequence[str], pace: Pace, most: float) -> None:
    own = table.training
    for method in methods:
        fixed, unchanged, telling, least = METHODS[method].kind == "fixed", 0, 0, 0.0
        for setting in _settings(method, own):
            if fixed and setting <= least:  # output times add steps: this grid has been tried
                continue
            wanted = method == own.method and fixed and setting <= 4 * own.setting
            nfe = setting * get_tableau(method).advancing_stages if fixed else 0
            too_expensive = nfe > most
            if not wanted and (
                too_expensive or (unchanged >= AT_REST and (telling >= TELLING or not fixed))
            ):
                break
            solver = _solver(method, setting)
            pace(str(solver), nfe * table.runnable.n)
            row = table.row(solver)
            least = row.n_steps
            unchanged = unchanged + 1 if row.status == "success" and not row.flips else 0
            telling += row.output_error < ASYMPTOTIC
            if row.nfe > most and not wanted:
                break


def _solver(method: str, setting: float) -> Solver:
    return (
        FixedStep(method, n_steps=int(setting))
        if METHODS[method].kind == "fixed"
        else Adaptive(method, setting, setting)
    )


def _settings(method: str, own: Row) -> list[float]:
    """Numbers of steps, or tolerances, from coarse to fine."""
    if METHODS[method].kind == "adaptive":
        tolerances = [LOOSEST]
        while tolerances[-1] > 1.5 * TIGHTEST:
            tolerances.append(float(f"{tolerances[-1] / 10:.1g}"))
        if method == own.method and own.kind == "adaptive":
            tolerances = sorted({*tolerances, own.setting}, reverse=True)
        return tolerances
    if method == own.method and own.kind == "fixed":
        base = max(1, round(own.setting))
        coarser = {ceil(base / 2**k) for k in range(base.bit_length() + 1)}
        return sorted({*map(float, coarser), *(float(base * 2**k) for k in range(1, 12))})
    return [float(2**k) for k in range(16)]


@dataclass(frozen=True)
class Order:
    """The observed order of a method.

    Attributes:
        method: name of the method.
        nominal: its order on smooth fields. On fields with kinks (ReLU) no method exceeds 2.
        observed: slope of log error against log step, by least squares.
        lower: lower end of the 95 % interval of the slope.
        upper: upper end of the 95 % interval of the slope.
        floor: error of the outputs due to rounding, relative to their scale.
        steps: the numbers of steps used for the fit.
    """

    method: str
    nominal: int
    observed: float
    lower: float
    upper: float
    floor: float
    steps: tuple[int, ...]


def observed_orders(rows: Sequence[Row], floor: float) -> tuple[Order, ...]:
    """Fit the order of each method with fixed steps that has at least three rows with an error
    between rounding and the size of the outputs.

    Args:
        rows: rows of the table of solvers.
        floor: error of the outputs due to rounding, relative to their scale.
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
        for row in reversed(own):  # the finest first
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
    """The coarsest safe row of a method such that all finer rows are safe, too; None if it has
    none. For fixed steps, bisection between the rows refines it.
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
    """The rows that no other row beats in both evaluations and error, the cheapest first."""
    usable = [row for row in rows if row.status == "success" and isfinite(row.output_error)]
    front: list[Row] = []
    for row in sorted(usable, key=lambda row: (row.nfe, row.output_error)):
        if not front or row.output_error < front[-1].output_error:
            front.append(row)
    return front
