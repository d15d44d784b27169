"""Solves on a GPU, which is pretended: the results of the CPU, and few waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.pretend import CUDA, Device, pretend
from trueode.errors import SolveError
from trueode.fields import ConvField, DenseField
from trueode.solvers import (
    TABLEAUS,
    Adaptive,
    Adjoint,
    Backprop,
    Checkpoint,
    FixedStep,
    Gradient,
    OnGrid,
    Solver,
    get_tableau,
    solve,
)
from trueode.solvers.backends import native

FIELDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dense": (lambda: DenseField(2, 8, act="tanh", time_dependent=True), (5, 2)),
    "signal": (lambda: ConvField(1, 4, dim=1), (3, 1, 2)),
    "images": (lambda: ConvField(2, 3, dim=2, time_dependent=True), (2, 2, 4, 4)),
}
FIXED: list[Solver] = [
    FixedStep("euler", n_steps=4),
    FixedStep("rk4", step_size=0.3),
    OnGrid(get_tableau("midpoint"), (0.0, 0.3, 1.0)),
]
ADAPTIVE = [name for name, tableau in TABLEAUS.items() if tableau.embedded is not None]
GRADIENTS: list[Gradient] = [Backprop(), Checkpoint(), Adjoint()]
POINTS = [None, [0.0, 0.4, 1.0], [0.7, 0.1]]


@pytest.fixture
def device() -> Iterator[Device]:
    with pretend() as found:
        yield found


def made(name: str) -> tuple[nn.Module, Tensor]:
    make, shape = FIELDS[name]
    torch.manual_seed(0)
    return make(), torch.randn(shape, device="cpu")


def solved(field: Any, z: Tensor, **how: Any) -> tuple[Any, list[Tensor]]:
    """A solution, and its states and gradients on the CPU."""
    z = z.clone().requires_grad_()
    found = solve(field, z, **how)
    states = [found.z, *([] if found.zs is None else [found.zs])]
    gradients = torch.autograd.grad(sum(x.square().sum() for x in states), [z, *field.parameters()])  # type: ignore[arg-type]
    return found, [x.detach().cpu() for x in (*states, *gradients)]


def agree(name: str, **how: Any) -> Any:
    """Solve on the CPU, by calling the field, and on the device; the solution there."""
    field, z = made(name)
    with native.using("off"):
        _, wanted = solved(field, z, **how)
    with pretend():
        solution, found = solved(field.to(CUDA), z.to(CUDA), **how)
        assert solution.status == "success"
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    return solution


@pytest.mark.parametrize("solver", FIXED, ids=str)
@pytest.mark.parametrize("name", FIELDS)
def test_fixed_steps_give_the_same_as_on_the_cpu(name: str, solver: Solver) -> None:
    for gradient, points in zip(GRADIENTS, POINTS, strict=True):
        agree(name, solver=solver, gradient=gradient, save_at=points)


@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize("per_sample", [False, True])
def test_adaptive_steps_give_the_same_as_on_the_cpu(method: str, per_sample: bool) -> None:
    solver = Adaptive(method, rtol=1e-3, atol=1e-4, per_sample=per_sample)
    kinds = zip(("images", "signal", "dense"), GRADIENTS, (POINTS[2], None, POINTS[1]), strict=True)
    for name, gradient, points in kinds:
        agree(name, solver=solver, gradient=gradient, save_at=points)


def test_times_of_each_sample() -> None:
    times = torch.tensor([[0.1, 0.5], [0.2, 1.0], [0.3, float("nan")]], device="cpu")
    for solver in (FIXED[0], Adaptive("dopri5", 1e-4, 1e-4)):
        field, z = made("signal")
        wanted = solve(field, z, solver=solver, save_at=times).zs
        with pretend():
            found = solve(field.to(CUDA), z.to(CUDA), solver=solver, save_at=times).zs
        torch.testing.assert_close(found.inner, wanted, equal_nan=True)


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("points", POINTS, ids=str)
def test_fixed_steps_wait_for_nothing(device: Device, name: str, points: Any) -> None:
    field, z = made(name)
    field, z = field.to(CUDA), z.to(CUDA)
    for solver, gradient in product(FIXED, GRADIENTS):
        device.reset()
        found = solve(field, z, solver=solver, gradient=gradient, save_at=points)
        (found.z if points is None else found.zs).sum().backward()
        assert not device.waits, f"{solver}, {gradient}: {device}"
        assert found.status == "success"
        assert device.waits.total() == 1


@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize("points", POINTS, ids=str)
def test_adaptive_steps_wait_once_an_attempt(device: Device, method: str, points: Any) -> None:
    """And once for the first step; the gradients do not wait."""
    field, z = made("dense")
    field, z = field.to(CUDA), (3 * z).to(CUDA)
    for gradient in GRADIENTS[:2]:
        device.reset()
        solver = Adaptive(method, rtol=1e-2, atol=1e-3)
        found = solve(field, z, solver=solver, gradient=gradient, save_at=points)
        assert device.waits.total() <= 1 + found.n_steps + found.n_rejected, str(device)
        device.reset()
        (found.z if points is None else found.zs).sum().backward()
        assert not device.waits, str(device)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_steps_of_each_sample_wait_once_an_attempt(device: Device, method: str) -> None:
    """And three times a solve: to begin, and for the statistics."""
    z = torch.tensor([[0.1], [1.0], [2.0], [30.0], [90.0]], device="cpu").to(CUDA).requires_grad_()
    solver = Adaptive(method, rtol=1e-3, atol=1e-3, per_sample=True)
    device.reset()
    found = solve(lambda t, z: -z.abs() * z, z, solver=solver)
    attempts = int((found.n_steps + found.n_rejected).max())
    assert int(found.n_steps.min()) < int(found.n_steps.max())
    assert device.waits.total() <= 3 + attempts, str(device)
    device.reset()
    found.z.sum().backward()
    assert not device.waits, str(device)


def test_a_state_that_is_not_finite_is_found_when_someone_asks(device: Device) -> None:
    field, z = made("dense")
    field, z = field.to(CUDA), (z * float("inf")).to(CUDA)
    device.reset()
    found = solve(field, z, solver=FIXED[0])
    assert "non_finite" not in repr(found)
    assert not device.waits
    assert found.status == "non_finite"
    assert "not finite" in found.message
    assert "non_finite" in repr(found)
    with torch.no_grad(), pytest.raises(SolveError):
        solve(field, z, solver=FIXED[0])


def test_a_training_step_of_the_paper_launches_no_more_than_before(device: Device) -> None:
    field = DenseField(2, 32).to(CUDA)
    z = torch.randn(128, 2, device="cpu").to(CUDA)
    device.reset()
    solve(field, z, solver=FixedStep("euler", n_steps=40)).z.sum().backward()
    assert device.launches.total() <= 1003
