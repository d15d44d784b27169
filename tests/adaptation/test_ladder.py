"""Cheaper and finer solvers."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trueode.adaptation import Ladder
from trueode.adaptation.ladder import error_ratio
from trueode.catalog import METHODS
from trueode.errors import UsageError
from trueode.solvers import Adaptive, FixedStep, OnGrid, get_tableau

FIXED = [name for name, (kind, _) in METHODS.items() if kind == "fixed"]
ADAPTIVE = [name for name, (kind, _) in METHODS.items() if kind == "adaptive"]


@example("euler", 230, 1.1)
@given(st.sampled_from(FIXED), st.integers(1, 499), st.floats(1.0001, 1e9))
def test_finer_meets_the_ratio_or_doubles(method: str, n: int, ratio: float) -> None:
    solver = FixedStep(method, n_steps=n)
    finer = Ladder(max_steps=500).finer(solver, ratio)
    assert finer is not None
    assert n < finer.n_steps <= min(2 * n, 500)
    if finer.n_steps < min(2 * n, 500):
        assert error_ratio(solver, finer) <= 1 / ratio * (1 + 1e-6), "by theory"
        assert finer.n_steps == n + 1 or (
            error_ratio(solver, FixedStep(method, n_steps=finer.n_steps - 1))
            > 1 / ratio * (1 - 1e-6)
        )


@given(st.sampled_from(FIXED), st.integers(1, 500))
def test_coarser_is_the_next(method: str, n: int) -> None:
    coarser = Ladder().coarser(FixedStep(method, n_steps=n))
    if n == 1:
        assert coarser is None
    else:
        assert coarser is not None
        assert n / 1.1 - 1 <= coarser.n_steps <= min(n - 1, n / 1.1 + 1)


@given(st.sampled_from(FIXED), st.integers(2, 500), st.floats(1.0, 1e9))
def test_coarser_by_theory_allows_the_larger_error_or_halves(
    method: str, n: int, ratio: float
) -> None:
    solver = FixedStep(method, n_steps=n)
    coarser, following = Ladder().coarser(solver, ratio), Ladder().coarser(solver)
    assert coarser is not None
    assert following is not None
    assert n / 2 <= coarser.n_steps <= following.n_steps
    if coarser.n_steps < following.n_steps:
        assert error_ratio(solver, coarser) <= ratio * (1 + 1e-6)


@given(st.sampled_from(FIXED), st.integers(1, 500), st.integers(1, 50))
def test_no_solver_is_coarser_than_the_least(method: str, n: int, least: int) -> None:
    free, coarser = Ladder(), Ladder(least=least)
    found = coarser.coarser(FixedStep(method, n_steps=n))
    fewer = free.coarser(FixedStep(method, n_steps=n))
    stages = get_tableau(method).advancing_stages
    if fewer is None or stages * fewer.n_steps < least:
        assert found is None
    else:
        assert found == fewer


@given(st.sampled_from(ADAPTIVE), st.floats(3e-5, 2e-3), st.floats(1.001, 1e9))
def test_tolerances(method: str, tol: float, ratio: float) -> None:
    solver, ladder = Adaptive(method, tol, tol, per_sample=True), Ladder()
    finer, coarser = ladder.finer(solver, ratio), ladder.coarser(solver)
    assert finer is not None
    assert coarser is not None
    floor = 1e-7 * 2**solver.order
    assert finer.rtol == finer.atol == max(tol / min(ratio, 2**solver.order), floor)
    assert coarser.rtol == coarser.atol == min(2 * tol, 3e-3)
    assert finer.per_sample
    assert coarser.per_sample
    assert error_ratio(solver, coarser) == pytest.approx(coarser.rtol / tol)


def test_limits() -> None:
    ladder = Ladder(max_steps=10, loosest=1e-2, tightest=1e-4 / 32)
    assert ladder.finer(FixedStep("rk4", n_steps=10), inf) is None
    assert ladder.finer(FixedStep("rk4", n_steps=9), inf) == FixedStep("rk4", n_steps=10)
    assert ladder.finer(Adaptive("dopri5", 1e-4, 1e-4), inf) is None
    assert ladder.coarser(Adaptive("dopri5", 1e-2, 1e-2)) is None
    assert "--max_steps 10" in ladder.advice(FixedStep("rk4", n_steps=10))
    assert "--precision float64" in ladder.advice(Adaptive("dopri5", 1e-4, 1e-4))


@given(st.sampled_from(FIXED), st.floats(1, 3000))
def test_cheaper_is_the_finest_that_saves(method: str, nfe: float) -> None:
    stages = get_tableau(method).advancing_stages
    cheaper = Ladder(max_steps=500).cheaper(FixedStep(method, n_steps=1), nfe)
    if cheaper is None:
        assert stages >= nfe
    else:
        assert isinstance(cheaper, FixedStep)
        assert cheaper.n_steps is not None
        assert cheaper.n_steps * stages < nfe
        assert cheaper.n_steps == 500 or (cheaper.n_steps + 1) * stages >= nfe


def test_an_adaptive_solver_is_tried_as_it_is() -> None:
    solver = Adaptive("dopri5", 3e-3, 3e-3)
    assert Ladder().cheaper(solver, 1.0) is solver


@pytest.mark.parametrize(
    "solver", [FixedStep("rk4", step_size=0.1), OnGrid("rk4", (0.0, 0.5, 1.0))]
)
def test_solvers_without_a_number_of_steps_are_refused(solver: FixedStep | OnGrid) -> None:
    for step in (
        Ladder().coarser,
        lambda s: Ladder().finer(s, 2.0),
        lambda s: Ladder().cheaper(s, 10.0),
    ):
        with pytest.raises(UsageError, match="n_steps"):
            step(solver)
