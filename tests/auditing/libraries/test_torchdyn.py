"""Models that solve by torchdyn, written as its README does."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trueode.auditing import interception
from trueode.auditing.interception import recorded, replaced
from trueode.auditing.problem import ForeignProblem, Solved
from trueode.auditing.replacement import replace_by
from trueode.errors import UsageError
from trueode.solvers import Adaptive, FixedStep

pytest.importorskip("torchdyn")
from torchdyn.core import MultipleShootingLayer, NeuralODE
from torchdyn.numerics import HyperEuler, odeint, odeint_mshooting, odeint_symplectic
from torchdyn.numerics import odeint as the_function
from torchdyn.numerics.solvers.ode import AsynchronousLeapfrog, Euler, Midpoint

TIGHT = replace_by(Adaptive("dopri5", 1e-7, 1e-7))
MODULE: Any = sys.modules["torchdyn.numerics.odeint"]


@pytest.fixture
def field() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(5, 2)


def moving(t: Tensor, z: Tensor, args: Any = None) -> Tensor:
    return torch.stack([z[:, 1], -z[:, 0] + torch.cos(3 * t)], 1)


SENSITIVITIES = ["autograd", "adjoint", "interpolated_adjoint"]


@pytest.mark.parametrize("sensitivity", SENSITIVITIES)
@pytest.mark.parametrize(
    ("method", "ours"), [("euler", "euler"), ("midpoint", "midpoint"), ("rk4", "rk4")]
)
def test_fixed_steps_equal_the_librarys(
    field: nn.Module, x: Tensor, sensitivity: str, method: str, ours: str
) -> None:
    model = NeuralODE(field, solver=method, sensitivity=sensitivity)
    t = torch.linspace(0, 1, 9)
    t_eval, own = model(x, t)
    with replaced(replace_by(FixedStep(ours, n_steps=8))) as solves:
        t_swapped, swapped = model(x, t)
        torch.testing.assert_close(model.trajectory(x, t), own, rtol=1e-5, atol=1e-6)
    assert torch.equal(t_swapped, t_eval)
    torch.testing.assert_close(swapped, own, rtol=1e-5, atol=1e-6)
    with recorded() as noted:
        assert torch.equal(model(x, t)[1], own)
    (swap, _), (note,) = solves, noted
    assert (swap.found, swap.nfe, swap.n_steps) == (note.found, note.nfe, 8)
    assert (note.n_steps, note.n_rejected, note.length, note.found.name) == (8, 0, 1.0, ours)
    assert str(note.found) == f"torchdyn {method}, h = 0.125"
    assert note.found.settings["n_times"] == 9


def test_steps_depend_on_time_where_the_field_does() -> None:
    x = torch.randn(5, 2, dtype=torch.float64)
    for t in (
        torch.linspace(0, 1, 9, dtype=torch.float64),
        torch.linspace(2, -1, 9, dtype=torch.float64),
    ):
        for method in ("euler", "midpoint"):
            own = odeint(moving, x, t, method)
            with replaced(replace_by(FixedStep(method, n_steps=8))):
                swapped = odeint(moving, x, t, method)
            torch.testing.assert_close(swapped[0], own[0])
            torch.testing.assert_close(swapped[1], own[1], rtol=1e-12, atol=1e-12)


def test_the_librarys_rk4_is_of_first_order_where_the_field_depends_on_time() -> None:
    x, start, end = torch.randn(5, 2, dtype=torch.float64), 0.0, 1.0
    with replaced(replace_by(Adaptive("dopri5", 1e-12, 1e-12))):
        exact = odeint(moving, x, torch.tensor([start, end], dtype=torch.float64), "rk4")[1][-1]
    errors = []
    for n in (32, 64):
        with recorded() as solves:
            own = odeint(moving, x, torch.linspace(start, end, n + 1, dtype=torch.float64), "rk4")[
                1
            ][-1]
        errors.append(float((own - exact).abs().max()))
    assert 1.8 < errors[0] / errors[1] < 2.2
    assert solves[0].found.settings["stage_times"] == [0.0, 0.0, 0.5, 0.5]


@pytest.mark.parametrize("sensitivity", SENSITIVITIES)
@pytest.mark.parametrize("method", ["dopri5", "tsit5"])
def test_tight_solves_agree(field: nn.Module, x: Tensor, sensitivity: str, method: str) -> None:
    model = NeuralODE(field, solver=method, atol=1e-6, rtol=1e-6, sensitivity=sensitivity)
    for t in (torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])):
        t_eval, own = model(x, t)
        with replaced(TIGHT):
            t_swapped, swapped = model(x, t)
            trajectory = model.trajectory(x, t)
        assert swapped.shape == (
            2,
            5,
            2,
        )  # interpolated_adjoint: the library returns the states of all its steps
        torch.testing.assert_close(swapped[[0, -1]], own[[0, -1]], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(t_swapped, t_eval[[0, -1]])
        torch.testing.assert_close(trajectory[-1], own[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["dopri5", "tsit5"])
def test_several_times(x: Tensor, method: str) -> None:
    t = torch.tensor([0.5, 0.61, 1.3, 2.0], dtype=torch.float64)
    z = x.double()
    t_own, own = odeint(moving, z, t, method, atol=1e-9, rtol=1e-9)
    with replaced(replace_by(Adaptive("dopri5", 1e-9, 1e-9))):
        t_swapped, swapped = odeint(moving, z, t, method)
    torch.testing.assert_close(t_swapped, t)
    torch.testing.assert_close(swapped[-1], own[-1], rtol=0, atol=1e-7)
    torch.testing.assert_close(t_own[-1], t_swapped[-1])


@pytest.mark.parametrize("method", ["dopri5", "tsit5"])
def test_the_librarys_own_steps_are_counted(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, ratios = 0, []

    def stiff(t: Tensor, z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return -30 * (z - torch.cos(9 * t))

    adapt = MODULE.adapt_step

    def watching(dt: Tensor, ratio: Tensor, *rest: Any) -> Tensor:
        ratios.append(float(ratio))
        step: Tensor = adapt(dt, ratio, *rest)
        return step

    monkeypatch.setattr(MODULE, "adapt_step", watching)
    with recorded() as solves:
        ratios.clear()
        odeint(
            stiff, torch.zeros(2, 1), torch.tensor([0.0, 1.0, 3.0]), method, atol=1e-4, rtol=1e-4
        )
    (solved,) = solves
    accepted = sum(ratio <= 1 for ratio in ratios)
    assert (solved.nfe, solved.n_steps, solved.n_rejected) == (
        calls,
        accepted,
        len(ratios) - accepted,
    )
    assert solved.n_rejected > 0
    assert solved.nfe == 2 + 6 * len(ratios)
    assert solved.length == 3.0


def test_what_is_found(x: Tensor, field: nn.Module) -> None:
    t = torch.tensor([0.0, 1.0])

    def found(**options: Any) -> Any:
        with recorded() as solves:
            NeuralODE(field, **options)(x, t)
        json.dumps(solves[0].found.settings)
        return solves[0].found

    loose = found(solver="dopri5", atol=0.1, rtol=0.1)
    assert str(loose) == "torchdyn dopri5, tol = 0.1"
    assert (loose.adaptive, loose.order, loose.name) == (True, 5, "dopri5")
    assert str(found(solver=Midpoint())) == "torchdyn midpoint, h = 1"
    implicit = found(solver="ieuler")
    assert (implicit.method, implicit.name, implicit.order) == ("ieuler", None, 1)

    class Own(Midpoint):
        pass

    assert (found(solver=Own()).method, found(solver=Own()).name) == ("Own", None)


def test_saved_times_are_those_that_the_library_saves(x: Tensor) -> None:
    t, z = torch.linspace(0, 1, 11), x
    for saved in (t[[10]], t[[0, 5]], [0.2, 0.7]):
        t_own, own = odeint(moving, z, t, "euler", save_at=saved)
        with replaced(replace_by(FixedStep("euler", n_steps=10))):
            t_swapped, swapped = odeint(moving, z, t, "euler", save_at=saved)
        assert torch.equal(t_swapped, t_own)
        torch.testing.assert_close(swapped, own, rtol=1e-5, atol=1e-6)
    with replaced(replace_by(FixedStep("euler", n_steps=4))) as solves:
        odeint(moving, z, t, "euler", save_at=t[[10]])
    assert solves[0].n_steps == 4  # only saved times must be ends of steps
    with replaced(replace_by(FixedStep("euler", n_steps=4))) as solves:
        odeint(moving, z, t, "euler")
    assert solves[0].n_steps == 10


def test_functions_imported_earlier_and_problems_as_posed(x: Tensor) -> None:
    seen = list[ForeignProblem]()

    def look(problem: ForeignProblem) -> tuple[Tensor, Solved]:
        seen.append(problem)
        return TIGHT(problem)

    times = list[torch.dtype]()

    def field(t: Tensor, z: Tensor) -> Tensor:
        times.append(t.dtype)
        assert t.dim() == 0 or t.shape == (1,)
        return -z

    with replaced(look):
        the_function(field, x, torch.tensor([0.0, 1.0]), "rk4")
        the_function(field, x[0], torch.tensor([0.0, 1.0]), "dopri5")
    assert [problem.samples for problem in seen] == [True, False]
    assert set(times) == {torch.float32}
    times.clear()
    with replaced(look):  # a model of single precision in double precision
        _, states = the_function(field, x.double(), torch.tensor([0.0, 1.0]), "rk4")
    assert (set(times), states.dtype) == ({torch.float64}, torch.float64)


def test_what_is_no_solve_of_an_ode_is_refused(field: nn.Module, x: Tensor) -> None:
    t = torch.linspace(0, 1, 5)
    hyper = HyperEuler(lambda t, x: 0.1 * x)
    with recorded() as solves:
        NeuralODE(field, solver=hyper)(x, t)
    assert (solves[0].found.method, solves[0].found.name) == ("HyperEuler", None)
    with replaced(TIGHT):
        with pytest.raises(UsageError, match="hypersolver HyperEuler"):
            NeuralODE(field, solver=hyper)(x, t)
        with pytest.raises(UsageError, match="multiple shooting"):
            odeint_mshooting(lambda t, z: field(z), x, t, "mszero")
        with pytest.raises(UsageError, match="multiple shooting"):
            odeint_mshooting(lambda t, z: field(z), x, t, "mszero", B0=torch.zeros(5, 5, 2))
        with pytest.raises(UsageError, match="multiple shooting"):
            MultipleShootingLayer(field, solver="mszero")(x, t)
        with pytest.raises(UsageError, match="AsynchronousLeapfrog"):
            odeint(moving, torch.ones(3, 4), t, AsynchronousLeapfrog())
        with pytest.raises(UsageError, match="dict"):
            odeint(lambda t, z: {"x": -z["x"]}, {"x": x}, t, Euler())
        oscillator = _Oscillator()
        with pytest.raises(UsageError, match="AsynchronousLeapfrog"):
            odeint_symplectic(oscillator, torch.ones(3, 4), t, AsynchronousLeapfrog())


class _Oscillator:
    order = 1

    def __call__(self, t: Tensor, z: Tensor) -> Tensor:
        return -z


def test_restored_after_success_and_after_exceptions(field: nn.Module, x: Tensor) -> None:
    before = MODULE._fixed_odeint, MODULE._adaptive_odeint
    model, t = NeuralODE(field, solver="rk4"), torch.linspace(0, 1, 3)
    own = model(x, t)[1]
    with replaced(TIGHT):
        model(x, t)
    with pytest.raises(RuntimeError, match="mine"), recorded():
        raise RuntimeError("mine")
    assert (MODULE._fixed_odeint, MODULE._adaptive_odeint) == before
    assert torch.equal(model(x, t)[1], own)


@pytest.mark.parametrize("sensitivity", ["autograd", "adjoint"])
def test_gradients_after_the_block_are_the_librarys(
    field: nn.Module, x: Tensor, sensitivity: str
) -> None:
    t = torch.linspace(0, 1, 5)

    def gradient() -> Tensor:
        field.zero_grad()
        model = NeuralODE(
            field, solver="rk4", sensitivity=sensitivity, atol_adjoint=1e-3, rtol_adjoint=1e-3
        )
        model(x, t)[1][-1].square().sum().backward()
        grad = field[0].weight.grad
        assert isinstance(grad, Tensor)
        return grad.clone()

    own = gradient()
    with replaced(TIGHT):
        NeuralODE(field, solver="rk4", sensitivity=sensitivity)(x, t)
    assert torch.equal(gradient(), own)


def test_unseen_solves_are_an_unknown_version(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(interception, "_tested", set())
        patch.setattr(
            "torchdyn.numerics.odeint",
            lambda f, z, t, solver: (t, torch.stack([z, 0 * z])),
            raising=True,
        )
        with pytest.raises(UsageError, match=r"torchdyn 1\.\S+ is not supported"), recorded():
            pass
    with recorded():
        pass
