"""One model under many solvers."""

from __future__ import annotations

import csv
import io
import json

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from tests.problems import TanhField, states
from trueode.data import Split
from trueode.errors import SolveError
from trueode.evaluation import SwapRow, SwapTable, evaluate, get_task, swap_table
from trueode.models import NeuralODE
from trueode.solvers import Adaptive, FixedStep, OnGrid, Solver

CLASSES, NUMBERS = get_task("classification"), get_task("regression")
TOL = 1e-4
HALF = FixedStep("euler", step_size=0.5)


def problem(solver: Solver, length: float = 1.0) -> tuple[NeuralODE, Split]:
    """A classifier and forty samples."""
    torch.manual_seed(0)
    model = NeuralODE(TanhField(), downstream=nn.Linear(2, 2).double(), solver=solver, t=(0.0, length))
    x = states(40)
    with torch.no_grad():
        return model, Split(x, model(x).argmax(1))


def table(
    training: Solver, solvers: list[str], factors: list[float], *, length: float = 1.0, tol: float = TOL
) -> SwapTable:
    return swap_table(*problem(training, length), CLASSES, training, solvers, factors, tol=tol)


def counts(rows: tuple[SwapRow, ...], solver: str) -> dict[tuple[float, ...], float]:
    """Steps by factors."""
    found = {row.factors: row.n_steps for row in rows if row.solver == solver}
    assert len(found) == sum(row.solver == solver for row in rows)  # a factor has one row
    return found


# which solvers


def test_the_test_step_is_factor_times_the_training_step() -> None:
    found = table(HALF, ["euler", "midpoint", "rk4"], [0.5, 1, 2])
    for solver, stages in (("euler", 1), ("midpoint", 2), ("rk4", 4)):
        assert counts(found.rows, solver) == {(0.5,): 4, (1.0,): 2, (2.0,): 1}
        rows = {row.factors[0]: row for row in found.rows if row.solver == solver}
        assert {factor: row.setting for factor, row in rows.items()} == {0.5: 0.25, 1.0: 0.5, 2.0: 1.0}
        assert all(row.nfe == stages * row.n_steps and row.kind == "fixed" for row in rows.values())


@pytest.mark.parametrize("length", [1.0, 3.0])
def test_a_step_above_the_interval_is_one_step(length: float) -> None:
    found = table(HALF, ["rk4"], [1.5, 8, 16, 100], length=length)
    by_factors = counts(found.rows, "rk4")
    assert by_factors[(8.0, 16.0, 100.0)] == 1  # one row: the steps are equal
    assert by_factors[(1.5,)] == -(-length // 0.75)


def test_the_training_solver_comes_first_and_once() -> None:
    for training in (HALF, Adaptive("dopri5", 1e-3, 1e-3), Adaptive("bosh3", 1e-3, 1e-5, per_sample=True)):
        found = table(training, ["rk4", training.name], [0.5, 1])
        assert found.training == training
        first = found.rows[0]
        assert (first.solver, first.factors, first.is_training) == (training.name, (1.0,), True)
        assert [row.is_training for row in found.rows[1:]] == [False] * 3
        assert sum(row.solver == training.name for row in found.rows) == 2
        assert first.flips == 0.0
        own = evaluate(*problem(training), CLASSES, training)
        assert (first.metric, first.loss, first.nfe, first.n_steps) == (own.metric, own.loss, own.nfe, own.n_steps)


def test_the_training_row_is_there_without_being_asked_for() -> None:
    found = table(HALF, ["rk4"], [0.5])
    assert [(row.solver, row.factors) for row in found.rows] == [("euler", (1.0,)), ("rk4", (0.5,))]


def test_rows_come_solver_by_solver_and_repetitions_count_once() -> None:
    found = table(HALF, ["rk4", "midpoint", "rk4"], [0.5, 1, 0.5])
    assert [(row.solver, row.factors) for row in found.rows] == [
        ("euler", (1.0,)),
        ("rk4", (0.5,)),
        ("rk4", (1.0,)),
        ("midpoint", (0.5,)),
        ("midpoint", (1.0,)),
    ]


@pytest.mark.parametrize("n", [1, 2, 8, 10, 13])
def test_equal_steps_given_by_their_number_are_one_row(n: int) -> None:
    training = FixedStep("euler", n_steps=n)
    found = table(training, ["euler"], [1, 2])
    assert counts(found.rows, "euler") == ({(1.0, 2.0): 1} if n == 1 else {(1.0,): n, (2.0,): -(-n // 2)})
    assert found.rows[0].setting == pytest.approx(1 / n)


def test_steps_of_equal_number_but_other_size_are_two_rows() -> None:
    """Steps of 0.4, 0.4, 0.2 are not those of 1/3."""
    found = table(FixedStep("euler", step_size=0.4), ["euler"], [1, 1 / 1.2])
    assert [row.n_steps for row in found.rows] == [3, 3]


def test_fixed_steps_under_adaptive_training_are_measured_by_its_mean_step() -> None:
    for per_sample in (False, True):
        training = Adaptive("dopri5", 1e-6, 1e-6, per_sample=per_sample)
        model, split = problem(training, 2.0)
        own = evaluate(model, split, CLASSES, training)
        assert own.n_steps >= 4
        found = swap_table(model, split, CLASSES, training, ["rk4"], [0.5, 1, 2], tol=TOL)
        for row in found.rows[1:]:
            step = row.factors[0] * 2.0 / own.n_steps
            assert row.setting == pytest.approx(step, rel=1e-12)
            assert row.n_steps == FixedStep("rk4", step_size=step).count(2.0)
        assert "mean step" in found.basis


def test_tolerances_under_adaptive_training_are_measured_by_its_own() -> None:
    training = Adaptive("dopri5", 1e-4, 1e-6, per_sample=True)
    model, split = problem(training)
    found = swap_table(model, split, CLASSES, training, ["dopri5", "bosh3"], [0.1, 1, 10], tol=1.0)
    for row in found.rows:
        factor = row.factors[0]
        solver = Adaptive(row.solver, factor * 1e-4, factor * 1e-6, per_sample=True)
        expected = evaluate(model, split, CLASSES, solver)
        assert row.setting == solver.rtol
        assert (row.n_steps, row.nfe, row.loss) == (expected.n_steps, expected.nfe, expected.loss)
        assert row.kind == "adaptive"
    assert len(found.rows) == 6


def test_tolerances_under_fixed_training_are_measured_by_tol() -> None:
    model, split = problem(HALF)
    found = swap_table(model, split, CLASSES, HALF, ["dopri5"], [0.1, 1, 10], tol=1e-5)
    assert [row.kind for row in found.rows] == ["fixed", "adaptive", "adaptive", "adaptive"]
    for row in found.rows[1:]:
        tol = row.factors[0] * 1e-5
        assert row.setting == pytest.approx(tol, rel=1e-12)
        assert row.loss == evaluate(model, split, CLASSES, Adaptive("dopri5", tol, tol)).loss
    assert "--tol" in found.basis
    assert "1e-05" in found.basis


def test_training_on_a_given_grid() -> None:
    training = OnGrid("euler", (0.0, 0.1, 0.5, 1.0))
    found = table(training, ["euler", "dopri5"], [1])
    assert [row.n_steps for row in found.rows[:2]] == [3, 3]
    assert [row.is_training for row in found.rows] == [True, False, False]
    assert found.rows[0].setting == pytest.approx(1 / 3)


# what they find


def test_flips_are_predictions_unlike_those_of_the_training_solver() -> None:
    model, split = problem(FixedStep("euler", step_size=2.0), length=2.0)
    model.downstream = nn.Identity()
    training = model.solver
    found = swap_table(model, split, CLASSES, training, ["euler", "rk4"], [0.25, 1], tol=TOL)
    with torch.no_grad():
        own = model(split.x, training).argmax(1)
        for row in found.rows:
            other = model(split.x, FixedStep(row.solver, step_size=row.setting)).argmax(1)
            assert row.flips == pytest.approx(float((own != other).double().mean()))
            assert row.metric == pytest.approx(float((other == split.y).double().mean()))
    assert found.rows[0].flips == 0.0
    assert found.rows[1].flips > 0


@pytest.mark.parametrize("n", [1, 40])
def test_the_training_solver_changes_no_numbers(n: int) -> None:
    """Not even where there is no scale to measure changes by: a single sample, or equal outputs."""
    x = states(1).expand(n, 2)
    model = NeuralODE(TanhField(), solver=HALF)
    found = swap_table(model, Split(x, x), NUMBERS, HALF, ["euler"], [1], tol=TOL)
    assert found.rows[0].flips == 0.0


def explosive() -> tuple[NeuralODE, Split, FixedStep]:
    """z' = -z³: steps that are too large leap away, for ever farther."""
    training = FixedStep("euler", step_size=1 / 32)
    x = torch.linspace(2.5, 3.0, 5, dtype=torch.float64).unsqueeze(1)
    return NeuralODE(lambda t, z: -(z**3), solver=training, t=(0.0, 8.0)), Split(x, x), training


def test_a_solver_that_fails_has_a_row_that_says_so_and_the_others_go_on() -> None:
    model, split, training = explosive()
    found = swap_table(model, split, NUMBERS, training, ["euler", "rk4"], [16, 1, 0.5], tol=TOL)
    by_row = {(row.solver, row.factors[0]): row for row in found.rows}
    assert len(by_row) == 6
    failed = by_row["euler", 16.0]
    assert failed.status == "non_finite"
    assert failed.setting == 0.5
    for value in (failed.metric, failed.loss, failed.flips, failed.nfe, failed.n_steps):
        assert value != value
    for key in (("euler", 1.0), ("euler", 0.5), ("rk4", 1.0), ("rk4", 0.5)):
        assert by_row[key].status == "success"
        assert by_row[key].loss == by_row[key].loss


def test_a_training_solver_that_fails_is_an_error() -> None:
    model, split, training = explosive()
    with pytest.raises(SolveError, match="not finite"):
        swap_table(model, split, NUMBERS, training.scaled(16), ["rk4"], [1], tol=TOL)


# as text


def rows_of(found: SwapTable) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(found.to_csv())))


def test_plain_values_name_the_setting_and_the_metric() -> None:
    found = table(HALF, ["euler", "dopri5"], [0.5, 1])
    plain = found.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert (plain["training"], plain["basis"]) == (str(HALF), found.basis)
    assert [row["factors"] for row in plain["rows"]] == [[1.0], [0.5], [0.5], [1.0]]
    for row, values in zip(found.rows, plain["rows"], strict=True):
        assert values["accuracy"] == row.metric
        assert values["step_size" if row.kind == "fixed" else "tol"] == row.setting
        assert ("step_size" in values) != ("tol" in values)


def test_csv_holds_every_row() -> None:
    found = table(HALF, ["euler", "dopri5"], [0.5, 2, 4])
    rows = rows_of(found)
    assert len(rows) == len(found.rows)
    for row, values in zip(found.rows, rows, strict=True):
        assert [float(x) for x in values["factors"].split()] == list(row.factors)
        for name in ("n_steps", "nfe", "loss", "flips"):
            assert float(values[name]) == getattr(row, name)
        assert float(values["accuracy"]) == row.metric
        assert (values["solver"], values["kind"], values["status"]) == (row.solver, row.kind, "success")
        assert values["is_training"] == str(row.is_training)
        setting, other = ("step_size", "tol") if row.kind == "fixed" else ("tol", "step_size")
        assert float(values[setting]) == row.setting
        assert values[other] == ""
    assert rows[2]["factors"] == "2 4"


def test_csv_has_the_status_of_what_failed() -> None:
    model, split, training = explosive()
    values = rows_of(swap_table(model, split, NUMBERS, training, ["euler"], [16], tol=TOL))[1]
    assert (values["status"], values["mse"]) == ("non_finite", "nan")


def shown(found: SwapTable) -> list[str]:
    console = Console(width=160, file=io.StringIO(), force_terminal=False)
    console.print(found.to_rich())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_the_table_of_the_terminal() -> None:
    lines = shown(table(HALF, ["euler", "rk4"], [0.5, 2, 4]))
    training = next(line for line in lines if "(training)" in line)
    assert training.split()[:6] == ["euler", "(training)", "1", "0.5", "2", "2"]
    assert "100.0 %" in training
    assert "0.0 %" in training
    assert sum(line.split()[:1] in (["euler"], ["rk4"]) for line in lines) == 5
    assert any(line.split()[:5] == ["rk4", "2", "4", "1", "1"] for line in lines)
    assert any("Steps: factor x 0.5." in line for line in lines)


def test_the_table_of_the_terminal_says_what_failed() -> None:
    model, split, training = explosive()
    lines = shown(swap_table(model, split, NUMBERS, training, ["euler"], [16], tol=TOL))
    assert sum("non_finite" in line for line in lines) == 1


def test_the_same_table_of_a_block_that_runs_backwards() -> None:
    def field(t: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(z)

    training = FixedStep("euler", step_size=0.5)
    x = states(10)
    forwards = NeuralODE(lambda t, z: -field(t, z), solver=training)
    backwards = NeuralODE(field, solver=training, t=(1.0, 0.0))
    found = [
        swap_table(model, Split(x, x), NUMBERS, training, ["euler", "rk4"], [0.5, 1], tol=TOL)
        for model in (forwards, backwards)
    ]
    assert [row.n_steps for row in found[0].rows] == [row.n_steps for row in found[1].rows]
    for one, other in zip(found[0].rows, found[1].rows, strict=True):
        assert one.loss == pytest.approx(other.loss)
