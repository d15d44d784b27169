"""The differences to torchdiffeq that docs/from-torchdiffeq.md names."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor

from tests.drop_in.fields import Counted, start
from trueode import UsageError, odeint, odeint_adjoint
from trueode.drop_in.adjoint import BACKWARD
from trueode.drop_in.call import ADAPTIVE, ELSEWHERE, FIXED
from trueode.drop_in.options import ADAPTIVE_OPTIONS, FIXED_OPTIONS
from trueode.fields import SequentialField
from trueode.solvers.backends import backend_of
from trueode.solvers.backends.native import layers, library
from trueode.solvers.problem import Problem
from trueode.solvers.solving import replacement

PAGE = Path(__file__).resolve().parents[2] / "docs" / "from-torchdiffeq.md"
T = torch.linspace(0, 1, 5, dtype=torch.float64)


def test_the_page_names_everything() -> None:
    text = PAGE.read_text(encoding="utf-8")
    names = {*FIXED, *ADAPTIVE, *ELSEWHERE, *FIXED_OPTIONS, *ADAPTIVE_OPTIONS, *BACKWARD[True]}
    assert not [name for name in names if f"`{name}`" not in text]
    known = set(import_module("torchdiffeq._impl.odeint").SOLVERS)
    assert known == {*FIXED, *ADAPTIVE, *ELSEWHERE} - {"tsit5"}


def test_the_limit_of_steps_is_for_the_whole_solve() -> None:
    def steps(limit: int) -> None:
        options = {"max_num_steps": limit, "first_step": 0.05, "max_step": 0.05}
        odeint(Counted(), start(2), T, method="dopri5", options=options)

    steps(8)  # about 20 steps in 4 intervals
    with pytest.raises(AssertionError, match="max_num_steps"):
        steps(4)


def test_methods_call_the_field_at_the_new_state() -> None:
    """More calls and smaller errors."""
    for method in ("fehlberg2", "adaptive_heun"):
        how: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4, "method": method}
        with torch.no_grad():
            exact = torchdiffeq.odeint(Counted(), start(5, 2), T, rtol=1e-10, atol=1e-10)
            calls, errors = [], []
            for each in (odeint, torchdiffeq.odeint):
                field = Counted()
                errors.append(float((each(field, start(5, 2), T, **how) - exact).abs().max()))
                calls.append(field.calls)
        assert calls[0] > calls[1]
        assert errors[0] < errors[1]


def test_the_kernel_solves_what_the_page_says() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    field = SequentialField(*net).double()
    used: list[Any] = []

    def hooked(problem: Problem) -> Any:
        used.append(backend_of(problem))

    y0, two = start(3, 2), T[[0, -1]]
    token = replacement.set(hooked)
    try:
        for t, how in (
            (T, {"method": "euler"}),
            (T, {"method": "rk4", "options": {"step_size": 0.3}}),
            (two, {}),
            (T, {}),
            (T, {"method": "bosh3"}),
            (two, {"method": "dopri5", "options": {"max_step": 0.1, "first_step": 0.1}}),
        ):
            odeint(field, y0, t, **how)
        fast = len(used)
        for t, how in (
            (T, {"method": "fehlberg2"}),
            (T.clone().requires_grad_(), {"method": "euler"}),
            (two, {"rtol": torch.full((2,), 1e-6)}),
            (two, {"method": "dopri5", "options": {"min_step": 0.1}}),
            (two, {"method": "dopri5", "options": {"safety": 0.8}}),
            (two, {"method": "dopri5", "options": {"norm": torch.linalg.vector_norm}}),
        ):
            odeint(field, y0, t, **how)
        odeint_adjoint(field, y0, two)
    finally:
        replacement.reset(token)
    assert all(each is not layers for each in used[fast:])
    if library.kernel() is not None:
        assert all(each is layers for each in used[:fast])


@pytest.mark.parametrize("method", ["dopri8", "bosh3"])
def test_states_between_steps_are_more_accurate(method: str) -> None:
    how: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6, "method": method}
    with torch.no_grad():
        exact = torchdiffeq.odeint(Counted(), start(5, 2), T, rtol=1e-10, atol=1e-10)
        ours, theirs = (
            float((each(Counted(), start(5, 2), T, **how) - exact).abs().max())
            for each in (odeint, torchdiffeq.odeint)
        )
    assert ours < theirs / 10


def test_fields_that_change_their_input_are_refused() -> None:
    def field(t: Tensor, y: Tensor) -> Tensor:
        return y.neg_()

    with pytest.raises(UsageError, match="in place"):
        odeint(field, start(2), T, method="rk4")


def test_times_that_the_state_cannot_tell_apart_are_refused() -> None:
    t = torch.tensor([1e6, 1e6 + 0.1], dtype=torch.float64)
    with pytest.raises(UsageError, match="precision"):
        odeint(Counted(torch.float32), start(2, dtype=torch.float32), t)
    odeint(Counted(), start(2), t)


def test_all_leaf_tensors_of_the_field_get_gradients() -> None:
    w = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    for each, known in ((odeint_adjoint, True), (torchdiffeq.odeint_adjoint, False)):
        y0 = start(2).requires_grad_()
        each(lambda t, y: -w * y, y0, T, adjoint_params=()).sum().backward()
        assert (w.grad is not None) == known
        w.grad = None


def test_cubic_interpolation_calls_the_field_once_at_each_time() -> None:
    calls = []
    for each in (odeint, torchdiffeq.odeint):
        field = Counted()
        each(field, start(2), T, method="euler", options={"interp": "cubic", "step_size": 0.5})
        calls.append(field.calls)
    assert calls[0] < calls[1]
