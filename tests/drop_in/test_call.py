"""Wrong calls raise errors that are torchdiffeq's and ours."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor, nn

from tests.drop_in.fields import Counted, start
from trueode import UsageError, odeint, odeint_adjoint
from trueode.drop_in.call import ELSEWHERE
from trueode.solvers.problem import Problem
from trueode.solvers.solving import replacement, solve_problem

T = torch.tensor([0.0, 1.0])
WRONG: dict[str, dict[str, Any]] = {
    "method": {"method": "rk5"},
    "whole times": {"t": torch.tensor([0, 1])},
    "times in a list": {"t": [0.0, 1.0]},
    "times in a matrix": {"t": torch.tensor([[0.0, 1.0]])},
    "repeated times": {"t": torch.tensor([0.0, 1.0, 1.0])},
    "turning times": {"t": torch.tensor([0.0, 1.0, 0.5])},
    "times that are not numbers": {"t": torch.tensor([0.0, torch.nan, 1.0])},
    "state in a list": {"y0": [torch.zeros(2)]},
    "tolerance with gradient": {"rtol": torch.tensor(1e-3, requires_grad=True)},
    "tolerances of parts": {"y0": (torch.zeros(2), torch.zeros(1)), "rtol": (1e-3,)},
    "two grids": {
        "method": "rk4",
        "options": {"step_size": 0.1, "grid_constructor": lambda f, y, t: t},
    },
    "interpolation": {"method": "rk4", "options": {"interp": "quintic"}},
    "grid that ends early": {
        "method": "rk4",
        "options": {"grid_constructor": lambda f, y, t: t / 2},
    },
    "repeated jumps": {
        "method": "dopri5",
        "options": {"jump_t": torch.tensor([0.5]), "step_t": torch.tensor([0.5])},
    },
}


def field(t: Tensor, y: Any) -> Any:
    return tuple(-x for x in y) if isinstance(y, tuple) else -y


@pytest.mark.filterwarnings("ignore:Unexpected arguments")
@pytest.mark.parametrize("name", WRONG)
def test_errors_are_those_of_both_libraries(name: str) -> None:
    arguments = {"y0": torch.ones(2), "t": T, **WRONG[name]}
    how = {key: value for key, value in arguments.items() if key not in ("y0", "t")}
    with pytest.raises((ValueError, TypeError, AssertionError)) as theirs:
        torchdiffeq.odeint(field, arguments["y0"], arguments["t"], **how)
    with pytest.raises(UsageError) as ours:
        odeint(field, arguments["y0"], arguments["t"], **how)
    assert isinstance(ours.value, theirs.type)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        *(({"method": name}, "torchdiffeq") for name in ELSEWHERE),
        ({"event_fn": lambda t, y: y.sum()}, "odeint_event"),
        ({"rtol": torch.full((3,), 1e-3)}, "does not fit"),
        ({"rtol": -1e-3}, "negative"),
        ({"rtol": torch.tensor([1e-3, -1e-3])}, "negative"),
        ({"rtol": "small"}, "number"),
        ({"rtol": [1e-3, "small"]}, "number"),
        ({"method": "rk4", "options": {"step_size": -0.1}}, "positive"),
        ({"method": "rk4", "options": {"step_size": "small"}}, "number"),
        ({"method": "rk4", "options": {"grid_constructor": lambda f, y, t: None}}, "tensor"),
        (
            {
                "method": "rk4",
                "options": {"grid_constructor": lambda f, y, t: t[[0, 1, 0, 1]]},
            },
            "in order",
        ),
    ],
)
def test_refusals_name_what_serves_instead(how: dict[str, Any], words: str) -> None:
    for moving in (False, True):
        t = T.clone().requires_grad_(moving)
        if moving and words == "in order":
            continue
        with pytest.raises(UsageError, match=words):
            odeint(field, torch.ones(2), t, **how)


def test_whole_numbers_are_no_state() -> None:
    for y0 in (torch.ones(2, dtype=torch.long), (torch.ones(2, dtype=torch.long),), ()):
        with pytest.raises(UsageError):
            odeint(field, y0, T)


def test_parts_of_different_dtypes_get_the_larger_one() -> None:
    y0 = (torch.ones(2), torch.ones(3, dtype=torch.float64))
    for each in (odeint, torchdiffeq.odeint):
        assert {part.dtype for part in each(field, y0, T.double())} == {torch.float64}


@pytest.mark.parametrize("name", ["callback_step", "callback_accept_step"])
def test_callbacks_are_refused(name: str) -> None:
    class Called(Counted):
        pass

    with_attribute = Counted()
    object.__setattr__(with_attribute, name, lambda t, y, h: None)
    setattr(Called, name, lambda self, t, y, h: None)
    for each in (odeint, odeint_adjoint):
        for called in (with_attribute, Called()):
            with pytest.raises(UsageError, match=name):
                each(called, start(2), T.double())
    object.__setattr__(with_attribute, name + "_adjoint", None)
    object.__delattr__(with_attribute, name)
    odeint(with_attribute, start(2), T.double())
    with pytest.raises(UsageError, match="adjoint"):
        odeint_adjoint(with_attribute, start(2), T.double())


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_results_share_no_memory_with_the_state(method: str) -> None:
    y0 = start(3, 2)
    result = odeint(nn.Identity() if method == "" else Counted(), y0, T.double(), method=method)
    result.zero_()
    assert torch.equal(y0, start(3, 2))


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_an_audit_may_replace_the_solve(method: str) -> None:
    seen: list[Problem] = []

    def hooked(problem: Problem) -> Any:
        seen.append(problem)
        return solve_problem(problem)

    token = replacement.set(hooked)
    try:
        odeint(Counted(), start(3, 2), T.double(), method=method)
    finally:
        replacement.reset(token)
    assert len(seen) == 1
