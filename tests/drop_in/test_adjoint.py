"""Gradients by the adjoint equation agree with torchdiffeq's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor

from tests.drop_in.fields import SHAPES, TIMES, Counted, assert_close, found, start
from trueode import SolveError, UsageError, odeint, odeint_adjoint

TIGHT = {"rtol": 1e-8, "atol": 1e-8}


def times(name: str) -> Tensor:
    return torch.tensor(TIMES[name], dtype=torch.float64)


@pytest.mark.parametrize("moving", [False, True], ids=["times", "moving times"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["backward", "two"])
def test_adaptive_gradients_agree(name: str, shape: str, moving: bool) -> None:
    field, y0 = SHAPES[shape]
    ours, theirs = (
        found(each, field(), y0(), times(name), moving, **TIGHT)
        for each in (odeint_adjoint, torchdiffeq.odeint_adjoint)
    )
    assert_close(ours, theirs, 1e-5)


@pytest.mark.parametrize("name", TIMES)
@pytest.mark.parametrize("method", ["midpoint", "rk4"])
def test_fixed_steps_have_the_states_of_torchdiffeq(method: str, name: str) -> None:
    """Gradients are those of the flow, up to the error of the steps."""
    for options, near in ((None, 1.0), ({"step_size": 0.02}, 1e-2)):
        for moving in (False, True):
            ours, theirs = (
                found(
                    each,
                    Counted(),
                    start(5, 2),
                    times(name),
                    moving,
                    method=method,
                    options=options,
                )
                for each in (odeint_adjoint, torchdiffeq.odeint_adjoint)
            )
            torch.testing.assert_close(ours.states, theirs.states, rtol=1e-11, atol=1e-11)
            assert ours.calls == theirs.calls
            pairs = list(zip(ours.gradients, theirs.gradients, strict=True))
            if ours.by_time is not None and theirs.by_time is not None and options is None:
                pairs.append((ours.by_time, theirs.by_time))
            for x, y in pairs:
                assert float((x - y).norm()) < near * max(float(y.norm()), 0.1)


def test_equal_steps_have_the_gradients_of_torchdiffeq() -> None:
    for options in (None, {"step_size": 0.05}):
        ours, theirs = (
            found(each, Counted(), start(5, 2), times("equal"), method="rk4", options=options)
            for each in (odeint_adjoint, torchdiffeq.odeint_adjoint)
        )
        assert_close(ours, theirs, 1e-10)


@pytest.mark.parametrize(
    "how",
    [
        {"adjoint_rtol": 1e-9, "adjoint_atol": 1e-9},
        {"adjoint_options": {"norm": "seminorm"}},
        {"adjoint_method": "bosh3", "adjoint_rtol": 1e-6, "adjoint_atol": 1e-6},
        {"adjoint_method": "rk4", "adjoint_options": {"step_size": 0.01}},
        {"adjoint_options": {"max_step": 0.1}},
        {"method": "dopri5", "options": {"first_step": 0.1}},
    ],
    ids=str,
)
def test_the_backward_solve_has_its_own_settings(how: dict[str, Any]) -> None:
    expected = found(odeint, Counted(), start(5, 2), times("forward"), rtol=1e-12, atol=1e-12)
    ours, theirs = (
        found(each, Counted(), start(5, 2), times("forward"), **{**TIGHT, **how})
        for each in (odeint_adjoint, torchdiffeq.odeint_adjoint)
    )
    assert_close(ours, expected, 1e-4)
    assert_close(theirs, expected, 1e-3)


def test_settings_change_the_backward_solve() -> None:
    counts = []
    for how in ({}, {"adjoint_options": {"max_step": 0.02}}):
        field = Counted()
        result = odeint_adjoint(field, start(5, 2), times("two"), **TIGHT, **how)
        field.calls = 0
        result.sum().backward()
        counts.append(field.calls)
    assert counts[1] > counts[0]


def test_parameters_of_a_function() -> None:
    w = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    gradients = []
    for each in (odeint_adjoint, torchdiffeq.odeint_adjoint):
        result = each(lambda t, y: -w * y, start(4), times("equal"), adjoint_params=(w,), **TIGHT)
        gradients += torch.autograd.grad(result.square().sum(), w)
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(
    ("how", "builtin"),
    [
        ({"func": lambda t, y: -y}, ValueError),
        ({"adjoint_method": "rk4", "method": "euler", "options": {"step_size": 0.1}}, ValueError),
        ({"method": "rk5"}, ValueError),
        ({"t": torch.tensor([0, 1])}, TypeError),
        ({"t": torch.tensor([0.0, 0.0])}, AssertionError),
    ],
)
def test_errors_are_those_of_both_libraries(how: dict[str, Any], builtin: Any) -> None:
    arguments = {"func": Counted(), "y0": start(2), "t": times("two"), **how}
    for each in (odeint_adjoint, torchdiffeq.odeint_adjoint):
        with pytest.raises(builtin) as caught:
            each(**arguments)
        if each is odeint_adjoint:
            assert isinstance(caught.value, UsageError)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"adjoint_options": {"norm": lambda parts: 0.0}}, "seminorm"),
        ({"adjoint_options": {"min_step": 0.1}}, "min_step"),
        ({"rtol": torch.full((2,), 1e-6)}, "adjoint_rtol"),
        ({"adjoint_method": "scipy_solver"}, "torchdiffeq"),
        ({"event_fn": lambda t, y: y.sum()}, "odeint_event"),
    ],
)
def test_refusals(how: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        odeint_adjoint(Counted(), start(2), times("two"), **how)


def test_tolerances_of_components_with_numbers_for_the_backward_solve() -> None:
    rtol = torch.full((2,), 1e-9, dtype=torch.float64)
    how: dict[str, Any] = {"rtol": rtol, "adjoint_rtol": 1e-9, "adjoint_atol": 1e-9}
    ours, theirs = (
        found(each, Counted(), start(5, 2), times("equal"), **how)
        for each in (odeint_adjoint, torchdiffeq.odeint_adjoint)
    )
    assert_close(ours, theirs, 1e-5)


def test_a_backward_solve_that_fails_says_so() -> None:
    field = Counted()
    result = odeint_adjoint(
        field, start(2), times("two"), adjoint_options={"max_num_steps": 1}, **TIGHT
    )
    with pytest.raises(SolveError, match="backward"):
        result.sum().backward()


def test_without_gradients_it_is_odeint() -> None:
    with torch.no_grad():
        ours = odeint_adjoint(Counted(), start(5, 2), times("forward"))
        assert torch.equal(ours, odeint(Counted(), start(5, 2), times("forward")))
