"""All solvers check what a field returns and changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.problems import KINDS, parts_of, states
from trueode.errors import UsageError
from trueode.solvers import (
    Adaptive,
    Adjoint,
    Backprop,
    Checkpoint,
    FixedStep,
    Gradient,
    Solver,
    solve,
)

SOLVERS: list[Solver] = [
    FixedStep("euler", n_steps=3),
    FixedStep("rk4", n_steps=1),
    Adaptive("dopri5", 1e-4, 1e-4),
    Adaptive("bosh3", 1e-4, 1e-4, per_sample=True),
]
GRADIENTS = [Backprop(), Checkpoint(), Adjoint()]
every_solver = pytest.mark.parametrize("solver", SOLVERS, ids=str)
every_gradient = pytest.mark.parametrize("gradient", GRADIENTS, ids=lambda g: type(g).__name__)


class OneArgument(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return -z


@every_solver
@every_gradient
@pytest.mark.parametrize(
    ("field", "message"),
    [
        (lambda t, z: None, "None"),
        (lambda t, z: 0.5, "float"),
        (lambda t, z: (-z).detach().numpy(), "ndarray"),
        (lambda t, z: [-z], "list"),
        (lambda t, z: z.sum(), r"shape \(\)"),
        (lambda t, z: torch.complex(z, z), "complex"),
        (lambda t, z: torch.empty_like(z, device="meta"), "meta"),
        (lambda z: -z, "time and state"),
        (OneArgument(), "time and state"),
    ],
)
def test_what_is_no_derivative_of_the_state(
    field: Callable[..., Any], message: str, gradient: Gradient, solver: Solver
) -> None:
    with pytest.raises(UsageError, match=message):
        solve(field, states(), solver=solver, gradient=gradient)


def test_a_fault_of_the_fields_own_stays_what_it_is() -> None:
    def field(t: Tensor, z: Tensor) -> Tensor:
        raise TypeError("of my own")

    with pytest.raises(TypeError, match="of my own"):
        solve(field, states(), solver=SOLVERS[0])


@every_solver
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
    "change",
    [lambda z: z.mul_(0.5), lambda z: z[:, 0].zero_(), lambda z: nn.Hardtanh(inplace=True)(z)],
)
def test_a_field_that_changes_its_input(
    change: Callable[[Tensor], Any], mode: Any, solver: Solver
) -> None:
    """The user's state stays unchanged."""
    z0 = 2 * states()
    before = z0.clone()

    def field(t: Tensor, z: Tensor) -> Tensor:
        change(z)
        return -z

    with mode(), pytest.raises(UsageError, match="in place"):
        solve(field, z0, solver=solver)
    assert torch.equal(z0, before)


def test_a_part_of_a_tuple_changed_in_place() -> None:
    def field(t: Tensor, z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return -z[0], z[1].abs_()

    parts = states(3), -states(2).abs()
    with torch.no_grad(), pytest.raises(UsageError, match="in place"):
        solve(field, parts, solver=SOLVERS[1])
    assert bool((parts[1] < 0).all())


@every_solver
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_field_that_writes_into_what_it_returned(mode: Any, solver: Solver) -> None:
    room = torch.empty(4, 2, dtype=torch.float64)

    def field(t: Tensor, z: Tensor) -> Tensor:
        return torch.mul(z, -1.5, out=room[: len(z)])

    with mode(), pytest.raises(UsageError, match="returned before"):
        solve(field, states(), solver=solver)


@every_solver
@every_gradient
def test_a_field_may_return_its_input_or_a_constant(gradient: Gradient, solver: Solver) -> None:
    speed = torch.ones(4, 2, dtype=torch.float64)
    z = solve(lambda t, z: speed[: len(z)], states(), solver=solver, gradient=gradient).z
    torch.testing.assert_close(z, states() + 1)
    grown = solve(
        lambda t, z: z, states(), solver=FixedStep("rk4", n_steps=50), gradient=gradient
    ).z
    torch.testing.assert_close(grown, states() * torch.e, rtol=1e-6, atol=0)


@every_solver
@every_gradient
@pytest.mark.parametrize("kind", KINDS)
def test_results_share_no_memory(kind: str, gradient: Gradient, solver: Solver) -> None:
    """Changing results in place affects neither arguments nor gradients."""
    found = []
    for spoil in (False, True):
        field, z0 = KINDS[kind]()
        before = [x.clone() for x in parts_of(z0)]
        solution = solve(field, z0, solver=solver, gradient=gradient, save_at=[0.0, 0.4, 1.0])
        total = sum(x.sum() for x in (*parts_of(solution.z), *parts_of(solution.zs)))
        if spoil:
            for x in (*parts_of(solution.z), *parts_of(solution.zs)):
                with torch.no_grad():
                    x.fill_(99.0)
        assert all(map(torch.equal, parts_of(z0), before))
        found.append(torch.autograd.grad(total, list(field.parameters())))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("interval", [(0.5, 0.5), (0.0, 1.0)])
@every_solver
def test_no_result_is_the_initial_state(solver: Solver, interval: tuple[float, float]) -> None:
    z0 = states()
    solution = solve(lambda t, z: 0 * z, z0, interval, solver=solver, save_at=[interval[0]])
    solution.z.fill_(7.0)
    solution.zs.fill_(8.0)
    assert torch.equal(z0, states())


def test_the_memory_format_of_images_is_kept() -> None:
    shapes = []

    def field(t: Tensor, z: Tensor) -> Tensor:
        shapes.append(z.is_contiguous(memory_format=torch.channels_last))
        return -z

    z0 = torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    solve(field, z0, solver=SOLVERS[1])
    assert all(shapes)
