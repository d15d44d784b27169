"""Observed orders, safe settings, the Pareto front."""

from __future__ import annotations

from math import inf, nan
from types import SimpleNamespace
from typing import Any

import pytest

from trueode.auditing.convergence import explore, find_safe, observed_orders, pareto
from trueode.catalog import METHODS
from trueode.evaluation import Row, clopper_pearson
from trueode.evaluation.pace import Pace
from trueode.solvers import Adaptive, FixedStep, Solver, get_tableau


def make_row(
    method: str, setting: float, error: float, flips: int = 0, n: int = 1000, **how: Any
) -> Row:
    fixed = METHODS[method].kind == "fixed"
    solver = (
        FixedStep(method, n_steps=int(setting)) if fixed else Adaptive(method, setting, setting)
    )
    nfe = setting * get_tableau(method).advancing_stages if fixed else 10 / setting**0.2
    upper = clopper_pearson(flips, n)[1]
    values = {"is_training": False, "status": "success", **how}
    return Row(
        solver,
        setting,
        0.0,
        nfe,
        nan,
        nan,
        nan,
        flips / n,
        upper,
        upper <= 0.01,
        error,
        nan,
        **values,
    )


class Synthetic:
    """The table of a model that flips below a given number of steps."""

    runnable = SimpleNamespace(n=1)

    def __init__(self, needed: dict[str, int], training: Row | None = None) -> None:
        self.needed, self.training = needed, training
        self.rows = {} if training is None else {(training.method, training.setting): training}

    def row(self, solver: Solver) -> Row:
        assert isinstance(solver, FixedStep)
        setting = float(solver.n_steps or 0)
        flips = 0 if setting >= self.needed[solver.name] else 500
        return self.rows.setdefault(
            (solver.name, setting), make_row(solver.name, setting, 1 / setting, flips)
        )

    def of(self, method: str) -> list[Row]:
        return sorted(
            (row for row in self.rows.values() if row.method == method), key=lambda row: row.setting
        )


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_orders_of_exact_power_laws(method: str, order: int) -> None:
    rows = [make_row(method, n, 0.2 * n**-order) for n in (1, 2, 4, 8, 16)]
    (found,) = observed_orders(rows, 1e-9)
    assert found.nominal == order
    assert (found.observed, found.lower, found.upper) == pytest.approx((order,) * 3)
    assert found.steps == (2, 4, 8, 16)


def test_rounding_and_coarse_rows_are_left_out() -> None:
    rows = [make_row("rk4", n, max(20 * n**-4.0, 1e-6)) for n in (1, 2, 4, 8, 16, 32, 64, 128, 256)]
    (found,) = observed_orders(rows, 1e-6)
    assert found.observed == pytest.approx(4)
    assert found.steps == (4, 8, 16, 32)
    assert found.floor == 1e-6


def test_two_rows_are_not_enough() -> None:
    assert observed_orders([make_row("euler", n, 0.1 / n) for n in (1, 2)], 0.0) == ()
    failed = make_row("euler", 4, inf)
    assert observed_orders([*[make_row("euler", n, 0.1 / n) for n in (1, 2)], failed], 0.0) == ()


@pytest.mark.parametrize("needed", [1, 2, 3, 5, 7, 11, 27, 33, 100, 10**6])
def test_bisection_finds_the_coarsest_safe_number_of_steps(needed: int) -> None:
    table: Any = Synthetic({"rk4": needed})
    for k in range(9):
        table.row(FixedStep("rk4", n_steps=2**k))
    found = find_safe(table, "rk4")
    if needed > 2**8:
        assert found is None
    else:
        assert found is not None
        assert needed <= found.setting <= needed + max(0, needed // 32)


def test_the_front_is_not_beaten() -> None:
    rows = [
        make_row("euler", 8, 0.1),
        make_row("euler", 16, 0.05),
        make_row("rk4", 2, 0.01),
        make_row("rk4", 4, 0.001),
        make_row("midpoint", 6, 0.2),
        make_row("rk4", 8, nan),
    ]
    front = pareto(rows)
    assert [(row.method, row.setting) for row in front] == [("rk4", 2), ("rk4", 4)]


@pytest.mark.parametrize("training", [1, 6, 64, 300])
def test_the_grid_holds_coarser_and_finer_steps_of_training(training: int) -> None:
    own = make_row("euler", training, 0.1, 100, is_training=True)
    table: Any = Synthetic({"euler": 128, "rk4": 5, "midpoint": 7}, own)
    explore(table, ["euler", "rk4", "midpoint"], Pace())
    steps = [row.setting for row in table.of("euler")]
    assert {1, training, 2 * training, 4 * training} <= set(steps)
    assert {row.setting for row in table.of("rk4")} >= {1, 2, 4, 8}
    assert sum(not row.flips for row in table.of("rk4")) == 2  # the search ends after two
    assert max(row.nfe for row in table.of("rk4")) <= max(256, 4 * own.nfe)
