"""Models that solve by torchdiffeq, written as its README does."""

from __future__ import annotations

import json
import warnings
from functools import partial
from math import isnan, nan
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trueode.auditing.interception import recorded, replaced
from trueode.auditing.problem import ForeignProblem, Solved
from trueode.auditing.replacement import replace_by
from trueode.errors import UsageError
from trueode.solvers import Adaptive, FixedStep

torchdiffeq = pytest.importorskip("torchdiffeq")
from torchdiffeq import odeint, odeint_adjoint, odeint_event  # noqa: E402 - as a model would before the audit

TIGHT = replace_by(Adaptive("dopri5", 1e-10, 1e-10))


class Field(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2)).double()

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        derivative: Tensor = self.net(torch.cat([z, t.expand(len(z), 1)], 1))
        return derivative


@pytest.fixture
def field() -> Field:
    return Field()


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(5, 2, dtype=torch.float64)


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    "solver",
    [odeint, odeint_adjoint, partial(odeint, method="euler", options={"step_size": 0.125})],
)
@pytest.mark.parametrize(
    ("method", "ours"),
    [("euler", "euler"), ("midpoint", "midpoint"), ("heun2", "heun2"), ("rk4", "rk4_38")],
)
@pytest.mark.parametrize(
    "t",
    [times(0, 1), times(0, 0.25, 0.5, 1), times(2, 1.5, 1)],
    ids=["two", "several", "decreasing"],
)
def test_fixed_steps_equal_the_librarys(
    field: Field, x: Tensor, solver: Any, method: str, ours: str, t: Tensor
) -> None:
    own = solver(field, x, t, method=method, options={"step_size": 0.125})
    with replaced(replace_by(FixedStep(ours, step_size=0.125))) as solves:
        swapped = solver(field, x, t, method=method, options={"step_size": 0.125})
    torch.testing.assert_close(swapped, own, rtol=1e-12, atol=1e-12)
    with recorded() as noted:
        assert torch.equal(solver(field, x, t, method=method, options={"step_size": 0.125}), own)
    (swap,), (note,) = solves, noted
    assert (swap.found, swap.n_steps, swap.length) == (note.found, 8, 1.0)
    assert (note.nfe, note.n_steps, note.n_rejected, note.length) == (swap.nfe, 8, 0, 1.0)
    assert str(note.found) == f"torchdiffeq {method}, h = 0.125"
    assert (note.found.name, note.found.adaptive) == (ours, False)


@pytest.mark.parametrize("solver", [odeint, odeint_adjoint])
@pytest.mark.parametrize(
    "method", ["dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun", None]
)
@pytest.mark.parametrize(
    "t",
    [times(0, 1), times(-0.3, 0.111, 1), times(2, 1.7, 1)],
    ids=["two", "several", "decreasing"],
)
def test_tight_solves_agree(
    field: Field, x: Tensor, solver: Any, method: str | None, t: Tensor
) -> None:
    tolerance = 1e-6 if method in ("fehlberg2", "adaptive_heun", "bosh3") else 1e-10
    # steps end at the times, because the library's dense output is less accurate than its steps
    options = None if method is None else {"step_t": t[1:].clone()}
    own = solver(field, x, t, method=method, rtol=tolerance, atol=tolerance, options=options)
    for stand_in in (TIGHT, replace_by(FixedStep("rk4", n_steps=64))):
        with replaced(stand_in):
            swapped = solver(field, x, t, method=method, options=options)
        torch.testing.assert_close(swapped, own, rtol=0, atol=100 * tolerance + 2e-8)


def test_tuples_of_states(field: Field, x: Tensor) -> None:
    def pair(t: Tensor, z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return field(t, z[0]), -z[1] * z[0].mean()

    z0, seen = (x, torch.ones(3, 1, dtype=torch.float64)), list[ForeignProblem]()

    def look(problem: ForeignProblem) -> tuple[Tensor, Solved]:
        seen.append(problem)
        return TIGHT(problem)

    for t in (times(0, 0.4, 1), times(1, 0.4, 0)):
        own = odeint(pair, z0, t, rtol=1e-11, atol=1e-11)
        with replaced(look) as solves:
            swapped = odeint(pair, z0, t)
        assert [part.shape for part in swapped] == [part.shape for part in own]
        for mine, theirs in zip(swapped, own, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-8)
        assert solves[0].final is None
    assert [problem.samples for problem in seen] == [False, False]
    with recorded() as solves:
        odeint(pair, z0, t)
    assert solves[0].final is None
    module = _Pair(field)
    with replaced(look):
        odeint_adjoint(module, z0, t)
    assert not seen[-1].samples


class _Pair(nn.Module):
    def __init__(self, field: Field) -> None:
        super().__init__()
        self.field = field

    def forward(self, t: Tensor, z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return self.field(t, z[0]), -z[1]


def test_what_is_found(x: Tensor, field: Field) -> None:
    def found(**options: Any) -> Any:
        with recorded() as solves:
            odeint(field, x, times(0, 0.5, 1), **options)
        json.dumps(solves[0].found.settings)
        return solves[0].found

    tight = found()
    assert str(tight) == "torchdiffeq dopri5, tol = 1e-07 (rel), 1e-09 (abs)"
    assert (tight.adaptive, tight.order, tight.name, tight.settings["n_times"]) == (
        True,
        5,
        "dopri5",
        3,
    )
    assert found(rtol=torch.tensor([1e-3, 1e-4]), atol=torch.tensor(1e-3)).settings[
        "rtol"
    ] == pytest.approx(1e-4)
    assert found(method="rk4").name == "rk4_38"
    assert found(method="euler").settings == {
        "n_times": 3,
        "step_size": 0.5,
    }
    own_grid = found(
        method="euler", options={"grid_constructor": lambda f, y, t: times(0, 0.1, 0.5, 1)}
    )
    assert str(own_grid) == "torchdiffeq euler"
    options = {
        "first_step": 0.1,
        "max_num_steps": 90,
        "jump_t": times(0.25),
        "dtype": torch.float64,
    }
    chosen = found(method="bosh3", options=options).settings
    assert chosen["first_step"] == 0.1
    assert chosen["jump_t"] == [0.25]
    assert chosen["dtype"] == "torch.float64"
    assert found(method="heun3").name == "heun3"
    adams = found(method="implicit_adams", options={"step_size": 0.05})
    assert (adams.order, adams.adaptive, adams.name, adams.settings["rtol"]) == (
        0,
        False,
        None,
        1e-7,
    )


@pytest.mark.parametrize("method", ["dopri5", "bosh3", "adaptive_heun", "dopri8"])
def test_the_librarys_own_steps_are_counted(method: str) -> None:
    calls = 0

    def stiff(t: Tensor, z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return -30 * (z - torch.cos(9 * t))

    class Counting(nn.Module):
        accepted = rejected = 0

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return stiff(t, z)

        def callback_accept_step(self, *_: Any) -> None:
            self.accepted += 1

        def callback_reject_step(self, *_: Any) -> None:
            self.rejected += 1

    counting, z0 = Counting(), torch.zeros(2, 1, dtype=torch.float64)
    with recorded() as solves:
        odeint(counting, z0, times(0, 1, 3), method=method, rtol=1e-4, atol=1e-4)
    (solved,) = solves
    assert (solved.nfe, solved.n_steps, solved.n_rejected) == (
        calls,
        counting.accepted,
        counting.rejected,
    )
    assert solved.n_rejected > 0
    assert solved.length == 3.0


@pytest.mark.parametrize("method", ["explicit_adams", "implicit_adams", "heun3", "scipy_solver"])
def test_methods_that_we_do_not_have(field: Field, x: Tensor, method: str) -> None:
    options = {"solver": "RK45"} if method == "scipy_solver" else {"step_size": 0.05}
    arguments = {"method": method, "options": options, "rtol": 1e-9, "atol": 1e-9}
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=r"The following arguments have no effect|Functional iteration"
        )
        own = odeint(field, x, times(0, 1), **arguments)
        with recorded() as solves:
            assert torch.equal(odeint(field, x, times(0, 1), **arguments), own)
        with replaced(TIGHT):
            swapped = odeint(field, x, times(0, 1), **arguments)
    torch.testing.assert_close(swapped, own, rtol=0, atol=1e-4)
    assert solves[0].n_steps == 20 or method == "scipy_solver"
    assert solves[0].n_steps > 3
    assert solves[0].nfe >= 20
    assert isnan(solves[0].n_rejected) == (method == "scipy_solver")


def test_jumps_are_passed_on() -> None:
    def jumping(t: Tensor, z: Tensor) -> Tensor:
        return torch.where(t < 0.3, 1.0, -2.0) * z

    z0 = torch.ones(2, 1, dtype=torch.float64)
    for t, jump in ((times(0, 1), 0.3), (times(1, 0), 0.3)):
        options = {"jump_t": times(jump)}
        own = odeint(jumping, z0, t, method="dopri5", rtol=1e-10, atol=1e-10, options=options)
        with replaced(replace_by(Adaptive("dopri5", 1e-10, 1e-10))) as solves:
            swapped = odeint(jumping, z0, t, method="dopri5", options=options)
        torch.testing.assert_close(swapped, own, rtol=1e-8, atol=0)
        assert solves[0].n_rejected == 0


def test_nested_solves_are_seen(field: Field, x: Tensor) -> None:
    def outer(t: Tensor, z: Tensor) -> Tensor:
        inner: Tensor = odeint(field, z, times(0, 0.5), method="euler")
        return -inner[-1]

    own = odeint(outer, x, times(0, 1), method="midpoint")
    with recorded() as solves:
        assert torch.equal(odeint(outer, x, times(0, 1), method="midpoint"), own)
    assert [solve.found.method for solve in solves] == ["euler", "euler", "midpoint"]
    with replaced(replace_by(FixedStep("euler", n_steps=1))) as solves:
        swapped = odeint(outer, x, times(0, 1), method="midpoint")
    assert len(solves) == 2
    torch.testing.assert_close(swapped[-1], x + outer(torch.zeros(()), x))


def test_single_precision_steps_equal_the_librarys() -> None:
    net, z0 = nn.Linear(2, 2), torch.randn(4, 2)
    t = torch.linspace(0, 1, 11)
    own = odeint(lambda t, z: net(z), z0, t, method="euler")
    with replaced(replace_by(FixedStep("euler", n_steps=10))) as solves:
        swapped = odeint(lambda t, z: net(z), z0, t, method="euler")
    torch.testing.assert_close(swapped, own, rtol=1e-6, atol=1e-6)
    assert (swapped.dtype, solves[0].n_steps) == (torch.float32, 10)


def falling(t: Tensor, z: Tensor) -> Tensor:
    """A free fall with drag: height and speed."""
    return torch.stack([z[1], -9.8 - 0.5 * z[1]])


def ground(t: Tensor, z: Tensor) -> Tensor:
    return z[0]


def fall(**how: Any) -> tuple[Tensor, Tensor]:
    z0, t0 = times(10, 0), torch.tensor(1.0, dtype=torch.float64)
    time, states = odeint_event(falling, z0, t0, event_fn=ground, **how)
    return time, states[-1]


def exact_fall() -> tuple[Tensor, Tensor]:
    """The height is 10 - v (t - (1 - exp(-t / 2)) / 0.5), with the terminal speed v."""
    terminal, t = 9.8 / 0.5, torch.tensor(1.5, dtype=torch.float64)
    for _ in range(50):  # Newton's method
        gone = 1 - (-0.5 * t).exp()
        t = t - (10 - terminal * (t - gone / 0.5)) / (-terminal * gone)
    return 1 + t, -terminal * (1 - (-0.5 * t).exp())


def test_the_event_of_a_replaced_solve_is_that_of_its_solver() -> None:
    time, speed = exact_fall()
    errors = []
    for n in (4, 8, 16):
        with replaced(replace_by(FixedStep("midpoint", n_steps=n))) as solves:
            found, state = fall()
        assert (solves[0].n_steps, solves[0].status) == (n, "success")
        assert solves[0].length == pytest.approx(float(found) - 1)
        assert abs(float(state[0])) < 1e-9
        errors.append(abs(float(found - time)))
    assert errors[0] > 1e-4
    assert 3 < errors[0] / errors[1] < 5.5  # of order two
    assert 3 < errors[1] / errors[2] < 5.5
    with replaced(TIGHT):
        found, state = fall(method="euler", options={"step_size": 0.1})
    torch.testing.assert_close(found, time, rtol=1e-9, atol=0)
    torch.testing.assert_close(state[1], speed, rtol=1e-8, atol=0)
    with recorded() as solves:
        found, _ = fall(rtol=1e-9, atol=1e-9)
    assert solves[0].length == pytest.approx(float(time) - 1, rel=1e-6)


@pytest.mark.parametrize("method", ["euler", "dopri5"])
def test_events_back_in_time(method: str) -> None:
    """``z' = z`` from 1 back to 1/2: at the time - log 2."""

    def field(t: Tensor, z: Tensor) -> Tensor:
        return z

    z0, t0 = times(1), torch.tensor(0.0, dtype=torch.float64)
    how: dict[str, Any] = {"method": method, "options": {"step_size": 0.1}}
    with replaced(TIGHT):
        found, states = odeint_event(
            field, z0, t0, event_fn=lambda t, z: z[0] - 0.5, reverse_time=True,
            **(how if method == "euler" else {}),
        )  # fmt: skip
    assert float(found) == pytest.approx(-float(torch.tensor(2.0).double().log()), rel=1e-9)
    assert float(states[-1]) == pytest.approx(0.5, rel=1e-9)


def test_a_solve_without_an_event_is_lost() -> None:
    z0, t0 = times(1), torch.tensor(0.0, dtype=torch.float64)
    with replaced(TIGHT) as solves:
        time, states = odeint_event(
            lambda t, z: -z, z0, t0, event_fn=lambda t, z: z[0] + 1, method="dopri5"
        )
    assert bool(time.isnan())
    assert bool(states[-1].isnan())
    assert solves[0].status == "failed"
    assert "event" in solves[0].message


def test_callbacks_are_refused(x: Tensor) -> None:
    class Watching(Field):
        def callback_step(self, *_: Any) -> None:
            pass

    with replaced(TIGHT), pytest.raises(UsageError, match="callback_step"):
        odeint(Watching(), x, times(0, 1))
    with recorded() as solves:
        odeint(Watching(), x, times(0, 1))
    assert len(solves) == 1


@pytest.mark.parametrize("solver", [odeint, odeint_adjoint])
def test_gradients_after_the_block_are_the_librarys(field: Field, x: Tensor, solver: Any) -> None:
    def gradient() -> Tensor:
        field.zero_grad()
        solver(field, x, times(0, 1), method="rk4", options={"step_size": 0.25})[
            -1
        ].square().sum().backward()
        grad = field.net[0].weight.grad
        assert isinstance(grad, Tensor)
        return grad.clone()

    own = gradient()
    with replaced(TIGHT):
        solver(field, x, times(0, 1), method="rk4")
    with recorded():
        solver(field, x, times(0, 1), method="rk4")
    assert torch.equal(gradient(), own)


def test_the_adjoint_after_the_block_is_the_librarys(field: Field, x: Tensor) -> None:
    with replaced(replace_by(FixedStep("rk4_38", n_steps=4))) as solves:
        output = odeint_adjoint(field, x, times(0, 1), method="rk4", options={"step_size": 0.25})[
            -1
        ]
    output.square().sum().backward()
    assert len(solves) == 1
    swapped = field.net[0].weight.grad.clone()
    field.zero_grad()
    odeint_adjoint(field, x, times(0, 1), method="rk4", options={"step_size": 0.25})[
        -1
    ].square().sum().backward()
    torch.testing.assert_close(swapped, field.net[0].weight.grad, rtol=1e-10, atol=1e-12)


def test_own_solves_that_overflow_say_so() -> None:
    with recorded() as solves:
        odeint(lambda t, z: 1e20 * z**3, torch.ones(1, 1), torch.linspace(0, 1, 9), method="euler")
    assert solves[0].status == "non_finite"
    assert "torchdiffeq euler, h = 0.125" in solves[0].message
    assert nan not in (solves[0].nfe, solves[0].n_steps)
