"""Fixed steps equal those of torchdiffeq, with as many calls of the field."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor, nn

from tests.drop_in.fields import SHAPES, TIMES, Counted, assert_close, found, start
from trueode import odeint
from trueode.drop_in.call import FIXED


def uneven(func: Any, y0: Any, t: Tensor) -> Tensor:
    """A grid with two points inside, wherever the times are."""
    inside = torch.tensor([0.13, 0.5], dtype=t.dtype)
    return torch.cat([t[:1], t[:1] + (t[-1:] - t[:1]) * inside, t[-1:]])


OPTIONS: dict[str, dict[str, Any] | None] = {
    "from time to time": None,
    "step size": {"step_size": 0.15},
    "step size that divides": {"step_size": 0.05},
    "cubic": {"step_size": 0.15, "interp": "cubic"},
    "cubic from time to time": {"interp": "cubic"},
    "perturbed": {"perturb": True},
    "perturbed steps": {"perturb": True, "step_size": 0.3},
    "own grid": {"grid_constructor": uneven},
}


def times(name: str, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(TIMES[name], dtype=dtype)


@pytest.mark.parametrize("moving", [False, True], ids=["times", "moving times"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", TIMES)
@pytest.mark.parametrize("method", FIXED)
def test_steps_and_gradients_are_equal(method: str, name: str, options: str, moving: bool) -> None:
    how = {"method": method, "options": OPTIONS[options], "moving": moving}
    ours, theirs = (
        found(each, Counted(), start(5, 2), times(name), **how)
        for each in (odeint, torchdiffeq.odeint)
    )
    assert_close(ours, theirs, 1e-11)
    if "cubic" in options:  # there, torchdiffeq evaluates the ends of steps twice
        assert ours.calls <= theirs.calls
    else:
        assert ours.calls == theirs.calls


@pytest.mark.parametrize("moving", [False, True], ids=["times", "moving times"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", ["from time to time", "step size", "cubic", "own grid"])
def test_states_of_every_shape(options: str, shape: str, moving: bool) -> None:
    field, y0 = SHAPES[shape]
    how = {"method": "rk4", "options": OPTIONS[options], "moving": moving}
    ours, theirs = (
        found(each, field(), y0(), times("backward"), **how)
        for each in (odeint, torchdiffeq.odeint)
    )
    assert_close(ours, theirs, 1e-11)


@pytest.mark.parametrize("state", [torch.float32, torch.float64])
@pytest.mark.parametrize("time", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", ["from time to time", "step size"])
def test_precisions_of_state_and_times(state: torch.dtype, time: torch.dtype, options: str) -> None:
    ours, theirs = (
        found(
            each,
            Counted(state),
            start(5, 2, dtype=state),
            times("forward", time),
            method="rk4",
            options=OPTIONS[options],
        )
        for each in (odeint, torchdiffeq.odeint)
    )
    assert ours.states[0].dtype == state
    # torchdiffeq subtracts times in their own precision
    assert_close(ours, theirs, 1e-11 if state == time == torch.float64 else 2e-5)
    assert ours.calls == theirs.calls


@pytest.mark.parametrize("method", FIXED)
def test_complex_states(method: str) -> None:
    y0 = torch.complex(start(4), start(4).flip(0))

    def field(t: Tensor, y: Tensor) -> Tensor:
        return 1j * y * t.cos() - 0.1 * y

    ours, theirs = (
        each(field, y0, times("equal"), method=method) for each in (odeint, torchdiffeq.odeint)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


class Layers(nn.Module):
    """A field that the compiled kernel recognises."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", TIMES)
def test_fields_of_layers(name: str, options: str) -> None:
    how = {"method": "rk4", "options": OPTIONS[options]}
    ours, theirs = (
        found(each, Layers(), start(5, 2), times(name), **how)
        for each in (odeint, torchdiffeq.odeint)
    )
    assert_close(ours, theirs, 1e-11)


def test_a_step_size_of_rounded_times_takes_as_many_steps() -> None:
    for size in (0.1, 0.3, 1 / 3, 0.7, 1.1, 5.0):
        for end in (0.3, 1.0, 1.1, -2.1):
            for dtype in (torch.float32, torch.float64):
                t = torch.tensor([0.0, end], dtype=dtype)
                calls = []
                for each in (odeint, torchdiffeq.odeint):
                    field = Counted()
                    each(field, start(2), t, method="euler", options={"step_size": size})
                    calls.append(field.calls)
                assert calls[0] == calls[1], (size, end, dtype)


def test_states_that_are_not_finite_are_returned() -> None:
    """As in torchdiffeq, also after the last step."""
    for each in (odeint, torchdiffeq.odeint):
        result = each(lambda t, y: 1e200 * y**3, start(2), times("equal"), method="euler")
        assert not bool(result[-1].isfinite().any())


def test_one_time_returns_the_initial_state() -> None:
    y0, t = start(3, 2), torch.tensor([0.3])
    for method in ("rk4", "dopri5"):
        ours = odeint(Counted(), y0, t, method=method)
        assert torch.equal(ours, torchdiffeq.odeint(Counted(), y0, t, method=method))
    ours += 1  # shares no memory
    assert torch.equal(y0, start(3, 2))


def test_results_do_not_depend_on_the_mode_of_an_earlier_call() -> None:
    how: dict[str, Any] = {"method": "rk4", "options": {"step_size": 0.17}}
    with torch.inference_mode():
        odeint(Counted(), start(5, 2), times("forward"), **how)
    y0 = start(5, 2).requires_grad_()
    odeint(Counted(), y0, times("forward"), **how).sum().backward()
    assert y0.grad is not None
