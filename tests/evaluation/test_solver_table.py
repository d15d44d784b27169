"""One model under many solvers."""

from __future__ import annotations

import csv
import io
from math import pi

import pytest
import torch
from rich.console import Console

from tests.evaluation.flows import (
    ANGLE,
    NUMBERS,
    RK4,
    Given,
    Turn,
    circle,
    counted,
    logits,
    on,
    sides,
    turn,
    turned,
)
from tests.problems import TanhField, states
from trueode.evaluation import ModelOnSamples, Row, SolverTable, by_factors
from trueode.evaluation.solver_table import error, to_csv, to_rich
from trueode.solvers import Adaptive, FixedStep, OnGrid, Solver

HALF = FixedStep("euler", step_size=0.5)


def model(solver: Solver, length: float = 1.0, n: int = 40) -> ModelOnSamples:
    return on(TanhField(), states(n), solver=solver, downstream=sides().double(), end=length)


def tried(
    solver: Solver, methods: list[str], factors: list[float], length: float = 1.0, tol: float = 1e-4
) -> SolverTable:
    runnable = model(solver, length)
    table = SolverTable(runnable, runnable.run())
    by_factors(table, methods, factors, length=length, tol=tol)
    return table


# solvers of the table


@pytest.mark.parametrize("length", [1.0, 3.0])
def test_steps_are_multiples_of_the_training_step_and_equal_ones_are_one_row(length: float) -> None:
    table = tried(HALF, ["euler", "midpoint", "rk4"], [0.5, 1, 2, 8, 16, 100], length)
    for method, stages in (("euler", 1), ("midpoint", 2), ("rk4", 4)):
        expected = {(0.5,): 4 * length, (1.0,): 2 * length, (2.0,): length, (8.0, 16.0, 100.0): 1}
        expected = {(0.5,): 4, (1.0,): 2, (2.0, 8.0, 16.0, 100.0): 1} if length == 1 else expected
        assert {row.factors: row.setting for row in table.of(method)} == expected
        assert all(row.nfe == stages * row.n_steps for row in table.of(method))


def test_each_grid_is_solved_once() -> None:
    runnable, solved = model(FixedStep("euler", n_steps=2)), []
    run = runnable.run
    runnable.run = lambda solver=None, **how: solved.append(solver) or run(solver, **how)
    table = SolverTable(runnable, run())
    for _ in range(2):
        for solver in (
            HALF,
            FixedStep("euler", n_steps=2),
            *(FixedStep("rk4", step_size=h) for h in (3.0, 1.0)),
        ):
            table.row(solver)
    assert solved == [FixedStep("rk4", step_size=3.0)]
    assert table.row(HALF) is table.training
    # three steps, but not the same ones
    assert table.row(FixedStep("euler", step_size=0.4)) != table.row(FixedStep("euler", n_steps=3))


def test_where_grids_are_not_known_beforehand_the_steps_taken_tell() -> None:
    """All of these take eight steps."""
    runnable = Given(*[logits(torch.tensor([0, 1, 1]))] * 2)
    table = SolverTable(runnable, runnable.run())
    for factor, step in ((1.0, 0.25), (2.0, 0.5), (4.0, 1.0)):
        table.row(FixedStep("rk4", step_size=step), factor)
    assert [(row.method, row.factors) for row in table.rows] == [
        ("euler", ()),
        ("rk4", (1.0, 2.0, 4.0)),
    ]


def test_the_training_solver_comes_first_and_once() -> None:
    for training in (
        HALF,
        Adaptive("dopri5", 1e-3, 1e-3),
        Adaptive("bosh3", 1e-3, 1e-5, per_sample=True),
    ):
        table = tried(training, ["rk4", training.name], [0.5, 1])
        own = model(training).run()
        assert (table.training, table.training.factors) == (table.rows[0], (1.0,))
        assert [row.is_training for row in table.rows] == [True, False, False, False]
        assert (table.training.loss, table.training.n_steps, table.training.changed) == (
            own.loss,
            own.n_steps,
            0.0,
        )
    assert [
        row.n_steps for row in tried(OnGrid("euler", (0.0, 0.1, 0.5, 1.0)), ["euler"], [1]).rows
    ] == [3, 3]


def test_what_factors_multiply() -> None:
    training = Adaptive("dopri5", 1e-4, 1e-6, per_sample=True)
    table = tried(training, ["rk4", "bosh3"], [0.5, 2], 2.0)
    for row in table.rows[1:]:
        factor = row.factors[0]
        if row.kind == "fixed":
            assert row.n_steps == FixedStep(
                "rk4", step_size=factor * 2 / table.training.n_steps
            ).count(2.0)
        else:
            assert row.solver == Adaptive("bosh3", factor * 1e-4, factor * 1e-6, per_sample=True)
    table = tried(HALF, ["dopri5"], [0.1, 10], tol=1e-5)
    assert [row.setting for row in table.rows] == [2, pytest.approx(1e-6), pytest.approx(1e-4)]


# results of the solvers


def test_changed_is_unlike_training_and_flips_unlike_the_exact_flow() -> None:
    """An Euler step of length h turns by arctan(h angle), an rk4 step by nearly h angle."""
    runnable = turn(400)
    table = SolverTable(runnable, *counted(runnable))
    atan = torch.tensor(ANGLE).atan()
    for steps in (1, 2, 4):
        row = table.row(FixedStep("euler", n_steps=steps))
        angle = steps * torch.tensor(ANGLE / steps).atan()
        assert row.changed == pytest.approx(float(angle - atan) / pi, abs=0.01)
        assert row.flips == pytest.approx((ANGLE - float(angle)) / pi, abs=0.02)
        assert not row.safe
        with torch.no_grad():
            right = (
                runnable.model(runnable.samples.x, FixedStep("euler", n_steps=steps)).argmax(1)
                == runnable.y
            )
        assert row.metric == pytest.approx(float(right.double().mean())) == 1 - row.flips
    fine = table.row(RK4)
    assert (fine.flips, fine.safe, fine.changed) == (0.0, True, table.training.flips)
    assert fine.upper == pytest.approx(1 - 0.05 ** (1 / 400))


def test_errors_are_relative_to_the_spread() -> None:
    x = circle(100).double()
    runnable = on(Turn().double(), x, task=NUMBERS)
    row = SolverTable(runnable, *counted(runnable, level=2)).training
    truth = turned(x)
    gap, spread = x + x @ Turn().matrix.detach().T.double() - truth, truth - truth.mean(0)
    assert (
        row.output_error
        == pytest.approx(float(gap.norm() / spread.norm()), rel=1e-3)
        == row.state_error
    )
    holes = truth.index_fill(0, torch.tensor(0), torch.inf)
    assert (error(truth, holes), error(holes * torch.nan, truth)) == (0.0, torch.inf)
    assert error(truth[:1], truth[:1]) != error(truth[:1], truth[:1]), "nothing to measure by"


def explosive() -> tuple[SolverTable, FixedStep]:
    """z' = -z³, for which too large steps diverge."""
    training = FixedStep("euler", step_size=1 / 32)
    x = torch.linspace(2.5, 3.0, 5, dtype=torch.float64)[:, None]
    runnable = on(lambda t, z: -(z**3), x, solver=training, task=NUMBERS, end=8.0)
    return SolverTable(runnable, *counted(runnable)), training


def test_a_solver_that_fails_has_a_row_that_says_so_and_the_others_go_on() -> None:
    table, training = explosive()
    failed, fine = (
        table.row(training.scaled(16), 16.0),
        table.row(FixedStep("rk4", step_size=1 / 32)),
    )
    assert (failed.status, failed.changed, failed.flips, failed.upper) == (
        "non_finite",
        1.0,
        0.0,
        1.0,
    )
    assert not failed.safe
    assert (failed.metric != failed.metric, failed.loss != failed.loss, failed.output_error) == (
        True,
        True,
        torch.inf,
    )
    assert (fine.status, fine.metric == fine.metric) == ("success", True)
    values = read(table.rows)[1]
    assert (values["status"], values["metric"]) == ("non_finite", "nan")
    assert sum("non_finite" in line for line in printed(table.rows)) == 1


def test_the_exact_flow_may_be_known_of_the_first_samples_alone() -> None:
    whole = turn(60)
    table = SolverTable(whole, whole.run(), *counted(whole.first(20))[1:])
    row = table.row(FixedStep("euler", n_steps=3))
    assert (row.flips * 20) % 1 == pytest.approx(0.0)
    assert row.metric == whole.run(FixedStep("euler", n_steps=3)).metric


# as text


def read(rows: tuple[Row, ...]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(to_csv(rows))))


def printed(rows: tuple[Row, ...]) -> list[str]:
    console = Console(width=160, file=io.StringIO(), force_terminal=False)
    console.print(to_rich(rows, "accuracy", "Basis."))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_csv_holds_every_row() -> None:
    table = tried(HALF, ["euler", "dopri5"], [0.5, 2, 4])
    for row, values in zip(table.rows, read(table.rows), strict=True):
        assert tuple(float(x) for x in values["factors"].split()) == row.factors
        for name in ("n_steps", "nfe", "loss", "metric", "changed", "setting"):
            assert float(values[name]) == getattr(row, name)
        assert (values["method"], values["kind"], values["status"]) == (
            row.method,
            row.kind,
            "success",
        )
        assert (values["is_training"], values["solver"]) == (str(row.is_training), str(row.solver))
    training = next(line for line in printed(table.rows) if "(training)" in line)
    assert training.split()[:7] == ["euler,", "h", "=", "0.5", "(training)", "1", "2"]
