"""The values that describe solvers."""

from __future__ import annotations

import itertools
import pickle
from math import ceil, isclose

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trueode.errors import SolveError, UsageError
from trueode.solvers import Adaptive, FixedStep, OnGrid

lengths = st.floats(1e-3, 1e3)


@given(st.floats(1e-2, 10), st.floats(1e-2, 50))
def test_grid_of_a_step_size(h: float, length: float) -> None:
    """All steps except the last equal h; the last is not longer and ends exactly at the end."""
    solver = FixedStep("euler", step_size=h)
    grid = solver.fractions(length)
    assert grid[0] == 0
    assert grid[-1] == 1
    assert len(grid) - 1 == solver.count(length) >= length / h - 1e-6
    steps = [(b - a) * length for a, b in itertools.pairwise(grid)]
    assert all(isclose(step, min(h, length), rel_tol=1e-6) for step in steps[:-1])
    assert 0 < steps[-1] <= h * (1 + 1e-6)


@given(st.integers(1, 3000))
def test_a_step_that_divides_the_interval_in_rounding_only(n: int) -> None:
    assert FixedStep("rk4", step_size=1 / n).count(1.0) == n
    assert FixedStep("rk4", step_size=10.0 / n).count(-10.0) == n


@given(st.integers(1, 500), st.sampled_from([0.5, 0.75, 1.0, 1.5, 2.0]))
def test_scaling_by_step_size_and_by_number_of_steps_agree(n: int, factor: float) -> None:
    by_size = FixedStep("euler", step_size=1 / n).scaled(factor)
    by_number = FixedStep("euler", n_steps=n).scaled(factor)
    assert (
        by_size.count(1.0) == by_number.count(1.0) == max(1, ceil(n / factor - 1e-9 * n / factor))
    )


@given(st.integers(1, 500), st.integers(1, 8))
def test_refining_multiplies_the_steps(n: int, times: int) -> None:
    assert FixedStep("euler", n_steps=n).refined(times).count(1.0) == n * times
    assert FixedStep("euler", step_size=1 / n).refined(times).count(1.0) == n * times


def test_refining_a_tolerance_follows_the_order() -> None:
    fine = Adaptive("dopri5", 1e-3, 1e-4).refined(2)
    assert isclose(fine.rtol, 1e-3 / 32)
    assert isclose(fine.atol, 1e-4 / 32)


def test_a_step_longer_than_the_interval_is_one_step() -> None:
    assert FixedStep("euler", step_size=3.0).fractions(1.0) == (0.0, 1.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FixedStep("euler"),
        lambda: FixedStep("euler", step_size=0.1, n_steps=3),
        lambda: FixedStep("euler", step_size=0.0),
        lambda: FixedStep("euler", step_size=float("nan")),
        lambda: FixedStep("euler", n_steps=0),
        lambda: FixedStep("euler", n_steps=2).scaled(-1),
        lambda: FixedStep("oiler", n_steps=2),
        lambda: Adaptive("rk4", 1e-3, 1e-3),
        lambda: Adaptive("dopri5", -1e-3, 1e-3),
        lambda: Adaptive("dopri5", 0.0, 0.0),
        lambda: Adaptive("dopri5", 1e-3, 1e-3, first_step=0.0),
        lambda: Adaptive("dopri5", 1e-3, 1e-3, max_steps=0),
        lambda: OnGrid("euler", (0.0, 0.7, 0.5, 1.0)),
        lambda: OnGrid("euler", (0.0, 0.5)),
        lambda: OnGrid("euler", ()),
        lambda: OnGrid("euler", ((0.0, 0.0), (0.5,), (1.0, 1.0))),
    ],
)
def test_impossible_solvers_cannot_be_made(make: object) -> None:
    with pytest.raises(UsageError):
        make()


def test_too_many_steps() -> None:
    with pytest.raises(SolveError, match=r"would need 1000 steps .* max_steps = 500"):
        FixedStep("euler", step_size=1e-3, max_steps=500).fractions(1.0)


def test_values() -> None:
    for solver in (
        FixedStep("rk4", n_steps=3),
        Adaptive("dopri5", 1e-3, 1e-3),
        OnGrid("euler", (0.0, 0.2, 1.0)),
    ):
        assert pickle.loads(pickle.dumps(solver)) == solver
        assert hash(solver) == hash(pickle.loads(pickle.dumps(solver)))
        with pytest.raises(AttributeError):
            solver.method = "euler"
    assert str(FixedStep("euler", step_size=1 / 64)) == "euler, h = 0.015625"
    assert str(Adaptive("dopri5", 1e-3, 1e-3)) == "dopri5, tol = 0.001"
    assert OnGrid("rk4", (0.0, 0.2, 1.0)).refined(2) == FixedStep("rk4", n_steps=4)


def test_a_grid_that_would_fill_the_memory_is_not_made() -> None:
    for solver in (FixedStep("euler", step_size=1e-30), FixedStep("rk4", n_steps=10**20)):
        with pytest.raises(SolveError, match="max_steps"):
            solver.fractions(1.0)
