"""The gradient written by hand equals that of autograd."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.problems import states
from trueode.catalog import ACTIVATIONS, METHODS
from trueode.fields import build_field
from trueode.layers import Layer, LayerStack
from trueode.solvers import Adaptive, Adjoint, Backprop, Checkpoint, FixedStep, Solver, solve
from trueode.solvers.backends import native
from trueode.solvers.gradients import tape
from trueode.solvers.stack import ACTIVATIONS as FUNCTIONS
from trueode.solvers.stack import _reach, stack_field

PATHS = [*native.instruction_sets(), "off"]


@pytest.fixture(autouse=True, params=PATHS)
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """The portable path, where the tape is, and the compiled kernels, which obey the same laws."""
    with native.using(request.param):
        yield request.param


class Stack(nn.Module):
    """A dense field that tells its layers, or keeps them to itself."""

    def __init__(self, activation: str = "tanh", timed: bool = False, tells: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        widths = [2, 6, 5, 2]
        self.weights = nn.ParameterList(torch.randn(b, a).double() / 2 for a, b in itertools.pairwise(widths))
        self.biases = nn.ParameterList(torch.randn(b).double() / 2 for b in widths[1:])
        self.time_weight = nn.Parameter(torch.randn(6).double()) if timed else None
        self.activation, self.tells = activation, tells

    def stack(self) -> LayerStack:
        names = [self.activation, self.activation, "identity"]
        times = [self.time_weight, None, None]
        return LayerStack(tuple(map(Layer, self.weights, self.biases, names, times)))

    def layer_stack(self, shape: torch.Size) -> LayerStack | None:
        return self.stack() if self.tells else None

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return stack_field(self.stack())(t, z)


def gradients(field: Stack, solver: Solver, gradient: Backprop | Checkpoint, **options: object) -> list[Tensor]:
    z0 = (2 * states(7)).requires_grad_()
    solution = solve(field, z0, (0.5, 2.0), solver=solver, gradient=gradient, **options)  # type: ignore[arg-type]
    total = solution.z.square().sum() + (0 if solution.zs is None else solution.zs.sum())
    return [solution.z.detach(), *torch.autograd.grad(total, [z0, *field.parameters()])]


def near(solver: Solver) -> dict[str, float]:
    """What rounding may do; the first step of an adaptive solver comes of a difference of near numbers."""
    return {"rtol": 1e-9, "atol": 1e-10} if isinstance(solver, Adaptive) else {"rtol": 1e-11, "atol": 1e-12}


SOLVERS = [FixedStep(name, n_steps=3) for name in METHODS]
SOLVERS += [FixedStep("euler", step_size=0.04), FixedStep("rk4", step_size=0.1)]  # more stages than a chunk of the tape
SOLVERS += [Adaptive(name, 1e-3, 1e-3) for name, method in METHODS.items() if method.kind == "adaptive"]
SOLVERS += [Adaptive("dopri5", 1e-7, 1e-7, first_step=1.0), Adaptive("bosh3", 1e-3, 1e-3, per_sample=True)]


@pytest.mark.parametrize("timed", [False, True], ids=["autonomous", "timed"])
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_equals_autograd_for_every_method(solver: Solver, timed: bool) -> None:
    expected = gradients(Stack(timed=timed, tells=False), solver, Backprop())
    for gradient in (Backprop(), Checkpoint()):
        found = gradients(Stack(timed=timed), solver, gradient)
        for x, y in zip(found, expected, strict=True):
            torch.testing.assert_close(x, y, **near(solver))


@pytest.mark.parametrize("timed", [False, True], ids=["autonomous", "timed"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_equals_autograd_for_every_activation(activation: str, timed: bool) -> None:
    for solver in (FixedStep("rk4", n_steps=3), Adaptive("dopri5", 1e-4, 1e-4)):
        expected = gradients(Stack(activation, timed, tells=False), solver, Backprop())
        for gradient in (Backprop(), Checkpoint()):
            for x, y in zip(gradients(Stack(activation, timed), solver, gradient), expected, strict=True):
                torch.testing.assert_close(x, y, **near(solver))


def test_every_activation_is_known() -> None:
    assert set(FUNCTIONS) == {*ACTIVATIONS, "identity"}


@pytest.mark.parametrize("solver", [s for s in SOLVERS if isinstance(s, FixedStep)], ids=str)
def test_saved_states_on_the_grid(solver: FixedStep, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In any order, more than once, both ends among them."""
    fractions = solver.fractions(1.5)
    chosen = [fractions[-1], fractions[1], fractions[0], fractions[1], fractions[len(fractions) // 2]]
    save_at = torch.tensor([0.5 + 1.5 * x for x in chosen], dtype=torch.float64)
    expected = gradients(Stack(timed=True, tells=False), solver, Backprop(), save_at=save_at)
    taped: list[int] = []
    original = tape.TapeStepper.backward
    monkeypatch.setattr(tape.TapeStepper, "backward", lambda *args: (taped.append(1), original(*args))[1])
    for gradient in (Backprop(), Checkpoint()):
        found = gradients(Stack(timed=True), solver, gradient, save_at=save_at)
        for x, y in zip(found, expected, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-12)
    assert len(taped) == (2 if path == "off" else 0)


def test_saved_states_inside_of_steps_go_the_ordinary_way() -> None:
    for solver in (FixedStep("rk4", n_steps=3), Adaptive("dopri5", 1e-4, 1e-4)):
        found = gradients(Stack(timed=True), solver, Backprop(), save_at=[0.7, 2.0])
        expected = gradients(Stack(timed=True, tells=False), solver, Backprop(), save_at=[0.7, 2.0])
        for x, y in zip(found, expected, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-12)


def test_statistics_are_the_same() -> None:
    for solver in SOLVERS:
        told, kept = (solve(Stack(tells=tells), states(), solver=solver) for tells in (True, False))
        assert told.nfe == kept.nfe
        assert torch.equal(torch.as_tensor(told.n_steps), torch.as_tensor(kept.n_steps))


@pytest.mark.parametrize("gradient", [Backprop(), Checkpoint()], ids=["backprop", "checkpoint"])
def test_gradients_of_gradients(gradient: Backprop | Checkpoint) -> None:
    field, z0 = Stack(timed=True), states(2).requires_grad_()
    solver = FixedStep("rk4", n_steps=2)

    def flow(z: Tensor, *_: Tensor) -> Tensor:
        return solve(field, z, solver=solver, gradient=gradient).z

    def path(z: Tensor, *_: Tensor) -> Any:
        return solve(field, z, solver=solver, gradient=gradient, save_at=[0.5, 0.0, 1.0]).zs

    for function in (flow, path):
        assert torch.autograd.gradcheck(function, (z0, *field.parameters()))
        assert torch.autograd.gradgradcheck(function, (z0, *field.parameters()))


def test_backward_twice_through_a_kept_graph() -> None:
    field, z0 = Stack(), states().requires_grad_()
    z = solve(field, z0, solver=FixedStep("rk4", n_steps=3)).z
    first, second = (torch.autograd.grad(z.sum(), z0, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_a_weight_changed_before_backward_is_an_error() -> None:
    field = Stack()
    z = solve(field, states(), solver=FixedStep("euler", n_steps=3)).z
    with torch.no_grad():
        field.weights[0].add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_ends_of_time_that_need_gradients() -> None:
    found = []
    for tells in (True, False):
        end = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
        z = solve(Stack(timed=True, tells=tells), states(), (0.0, end), solver=FixedStep("rk4", n_steps=4)).z
        found.append(torch.autograd.grad(z.sum(), end)[0])
    torch.testing.assert_close(*found)


def test_function_transforms_take_the_ordinary_way() -> None:
    field, z0, solver = Stack(timed=True), states(), FixedStep("rk4", n_steps=3)
    found = torch.func.jacrev(lambda z: solve(field, z, solver=solver).z.sum(0))(z0)
    z0.requires_grad_()
    rows = [torch.autograd.grad(solve(field, z0, solver=solver).z.sum(0)[i], z0)[0] for i in range(2)]
    torch.testing.assert_close(found, torch.stack(rows))


def test_adjoint_takes_the_ordinary_way() -> None:
    field, z0, solver = Stack(), states(), FixedStep("rk4", n_steps=3)
    expected = solve(field, z0, solver=solver).z
    torch.testing.assert_close(solve(field, z0, solver=solver, gradient=Adjoint()).z, expected)


def test_empty_batch() -> None:
    field = Stack()
    z = solve(field, states(0).requires_grad_(), solver=FixedStep("rk4", n_steps=3)).z
    z.sum().backward()
    assert all(bool((p.grad == 0).all()) for p in field.parameters() if p.grad is not None)


def test_states_that_are_not_contiguous() -> None:
    for z0 in (states(5).t().contiguous().t(), states(1).expand(5, 2)):
        found = []
        for tells in (True, False):
            field = Stack(tells=tells)
            z = solve(field, z0, solver=FixedStep("rk4", n_steps=2)).z
            found.append(torch.autograd.grad(z.sum(), list(field.parameters())))
        for x, y in zip(*found, strict=True):
            torch.testing.assert_close(x, y)


def test_many_gradients_at_once() -> None:
    z0 = states(2).requires_grad_()
    z = solve(Stack(), z0, solver=FixedStep("rk4", n_steps=2)).z
    basis = torch.eye(4, dtype=z.dtype).view(4, 2, 2)
    (found,) = torch.autograd.grad(z, z0, basis, is_grads_batched=True, retain_graph=True)
    for row, direction in zip(found, basis, strict=True):
        torch.testing.assert_close(row, torch.autograd.grad(z, z0, direction, retain_graph=True)[0])


def test_evaluations_of_second_gradients_are_counted() -> None:
    z0 = states(2).requires_grad_()
    solution = solve(Stack(), z0, solver=FixedStep("rk4", n_steps=2))
    torch.autograd.grad(solution.z.sum(), z0, create_graph=True)
    assert solution.nfe_backward == 8


def test_nothing_kept_from_inference_mode_disturbs_training() -> None:
    field = build_field("simple_odenet", (1, 3), 5)
    _reach.cache_clear()
    with torch.inference_mode():
        solve(field, torch.randn(4, 1, 3), solver=FixedStep("euler", n_steps=2))
    solve(field, torch.randn(4, 1, 3), solver=FixedStep("euler", n_steps=2)).z.sum().backward()
    assert field.conv2.weight.grad is not None
