"""The choice of the next step: the elementary controller, and its cost compared with SciPy."""

from __future__ import annotations

from math import inf, nan, prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.detest import ratio
from tests.problems import KINDS
from trueode.solvers import Adaptive
from trueode.solvers.backends import backend_of, generic
from trueode.solvers.control import GROW, SAFETY, SHRINK, Control, step_factor, step_factors
from trueode.solvers.problem import Problem
from trueode.solvers.solving import carry_out

ORDERS = st.integers(2, 8)


@given(st.floats(0, 1e12), ORDERS)
def test_the_next_step_aims_at_the_same_error(error: float, order: int) -> None:
    """The error, a power of the step, becomes SAFETY ** order within the bounds of the factor."""
    factor = step_factor(error, order)
    assert SHRINK <= factor <= GROW
    if SHRINK < factor < GROW:
        assert error * factor**order == pytest.approx(SAFETY**order)
    if error <= 1:
        assert factor >= SAFETY
    else:
        assert factor <= SAFETY


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e12) | st.sampled_from([0.0, 1.0, inf, nan]), max_size=5), ORDERS)
def test_samples_are_controlled_like_a_batch(errors: list[float], order: int) -> None:
    found = step_factors(torch.tensor(errors, dtype=torch.float64), order)
    expected = torch.tensor([step_factor(error, order) for error in errors], dtype=torch.float64)
    torch.testing.assert_close(found, expected)


def test_what_is_not_finite_shrinks_the_step() -> None:
    assert step_factor(nan, 5) == step_factor(inf, 5) == SHRINK


def test_evaluations_for_the_same_error_beside_scipy() -> None:
    """At most 3 % more than RK45, in the geometric mean over problems of DETEST."""
    problems = ("B4", "B5", "E5")
    assert prod(ratio(problem, "dopri5") for problem in problems) ** (1 / len(problems)) <= 1.03


@pytest.mark.parametrize("kind", ["plain", "layers", "timed"])
def test_control_that_says_nothing_changes_nothing(kind: str) -> None:
    """The same steps and states, whatever backend solves the problem without it."""
    field, z0 = KINDS[kind]()
    solver = Adaptive("dopri5", 1e-5, 1e-6)
    controlled = Problem(field, z0, solver=solver, control=Control())
    assert backend_of(controlled) is generic
    found, expected = carry_out(controlled), carry_out(Problem(field, z0, solver=solver))
    assert (found.n_steps, found.nfe) == (expected.n_steps, expected.nfe)
    torch.testing.assert_close(found.z, expected.z, rtol=1e-7, atol=1e-9)


def test_the_shortest_step_is_accepted_whatever_its_error() -> None:
    field, z0 = KINDS["plain"]()
    problem = Problem(
        field, z0, solver=Adaptive("bosh3", 1e-12, 1e-12), control=Control(min_step=0.1)
    )
    found = carry_out(problem)
    assert 9 <= found.n_steps <= 11
    assert found.errors is not None
    assert float(found.errors.max()) > 1
