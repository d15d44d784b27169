"""A field in bfloat16: rounded and unrounded parts."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from trueode.fields import Autocast, build_field
from trueode.models import NeuralODE
from trueode.solvers import Adjoint, Backprop, Checkpoint, FixedStep, Gradient, solve
from trueode.solvers.backends import backend_of, native
from trueode.solvers.backends.native import layers
from trueode.solvers.problem import Problem

ROUNDING = 2.0**-8  # of bfloat16


@pytest.fixture
def field() -> nn.Module:
    torch.manual_seed(0)
    return build_field("odenet", (3, 6, 6), 8)


@pytest.fixture
def z() -> Tensor:
    return torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def gradients(field: nn.Module, z: Tensor, n: int, gradient: Gradient | None = None) -> Tensor:
    """The gradients of the weights through Euler steps."""
    field.zero_grad()
    solver = FixedStep("euler", n_steps=n)
    solve(field, z, solver=solver, gradient=gradient or Backprop()).z.square().sum().backward()
    return torch.cat([p.grad.flatten() for p in field.parameters() if p.grad is not None]).double()


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.detach() - exact.detach()).norm() / exact.detach().norm())


def test_derivatives_are_rounded_and_handed_back_in_the_type_of_the_state(
    field: nn.Module, z: Tensor
) -> None:
    value, exact = Autocast(field, torch.bfloat16)(0.0, z), field(0.0, z)
    assert value.dtype == torch.float32
    assert 0 < error(value.double(), exact.double()) < 2 * ROUNDING
    assert torch.equal(value, value.bfloat16().float())
    assert not torch.is_autocast_enabled("cpu")


def test_states_are_not_rounded(field: nn.Module, z: Tensor) -> None:
    """A thousand steps, each of them smaller than the rounding of the state."""
    exact = solve(field, z, solver=FixedStep("euler", n_steps=1000)).z
    found = solve(Autocast(field, torch.bfloat16), z, solver=FixedStep("euler", n_steps=1000)).z
    assert error(found.double(), exact.double()) < 2 * ROUNDING


def test_gradients_of_weights_are_summed_in_the_weights_type(field: nn.Module, z: Tensor) -> None:
    """Their error does not grow with the number of evaluations, as sums in bfloat16 would."""
    exact = copy.deepcopy(field).double()
    for n in (4, 256):
        found = gradients(Autocast(field, torch.bfloat16), z, n)
        assert error(found, gradients(exact, z.double(), n)) < 4 * ROUNDING, n


def test_checkpoints_give_the_gradients_of_backpropagation(field: nn.Module, z: Tensor) -> None:
    low = Autocast(field, torch.bfloat16)
    assert torch.equal(gradients(low, z, 5, Checkpoint()), gradients(low, z, 5))


def test_the_backward_solve_of_an_adjoint_is_rounded_as_well(field: nn.Module, z: Tensor) -> None:
    seen: list[torch.dtype] = []
    field.conv2.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    low = Autocast(field, torch.bfloat16)
    found = gradients(low, z, 64, Adjoint())
    assert set(seen) == {torch.bfloat16}
    assert len(seen) >= 128
    assert error(found, gradients(field, z, 64, Adjoint())) < 4 * ROUNDING


def test_a_model_takes_it_for_one_call(field: nn.Module, z: Tensor) -> None:
    model = NeuralODE(field, solver=FixedStep("euler", n_steps=2))
    low = model(z, field=Autocast(model.field, torch.bfloat16))
    assert not torch.equal(low, model(z))
    assert set(model.state_dict()) == {f"field.{name}" for name in field.state_dict()}


def test_what_the_kernel_solves_stays_in_its_own_type(field: nn.Module, z: Tensor) -> None:
    low = Autocast(field, torch.bfloat16, if_faster=True)
    solver = FixedStep("euler", n_steps=2)
    exact = solve(field, z, solver=solver).z
    if backend_of(Problem(field, z, solver=solver)) is layers:
        assert torch.equal(solve(low, z, solver=solver).z, exact)
    with native.using("off"):
        found = solve(low, z, solver=solver).z
    assert 1e-4 < error(found, exact) < 2 * ROUNDING
    assert torch.equal(low(0.0, z), Autocast(field, torch.bfloat16)(0.0, z))
    signals = Autocast(build_field("simple_odenet", (2, 5), 8), torch.bfloat16, if_faster=True)
    assert signals.layer_stack((4, 2, 5)) is None
    assert Autocast(lambda t, z: z, torch.bfloat16, if_faster=True).layer_stack((2,)) is None
