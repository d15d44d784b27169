"""`max_step`, and steps that end at jumps of the field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.problems import KINDS, TanhField, parts_of, states
from trueode.catalog import METHODS
from trueode.errors import UsageError
from trueode.fields import SequentialField
from trueode.solvers import (
    Adaptive,
    Adjoint,
    Backprop,
    Checkpoint,
    FixedStep,
    OnGrid,
    Solver,
    solve,
)

EMBEDDED = [name for name, method in METHODS.items() if method.kind == "adaptive"]
JUMPS = (0.37, 1.21)


def jumping(t: Tensor, z: Tensor) -> Tensor:
    """z' = c z with c = 1, then -2, then 0.5."""
    c = torch.where(t < JUMPS[0], 1.0, torch.where(t < JUMPS[1], -2.0, 0.5)).to(z)
    return c * z


def exact(t: float) -> float:
    a, b = JUMPS
    return min(t, a) - 2 * max(min(t, b) - a, 0.0) + 0.5 * max(t - b, 0.0)


def solvers(**how: Any) -> list[Solver]:
    return [
        *(FixedStep(name, step_size=0.05, **how) for name in METHODS),
        FixedStep("rk4", n_steps=30, **how),
        *(Adaptive(name, 1e-6, 1e-6, max_steps=50_000, **how) for name in EMBEDDED),
        *(
            Adaptive(name, 1e-6, 1e-6, per_sample=True, max_steps=50_000, **how)
            for name in EMBEDDED
        ),
    ]


@pytest.mark.parametrize("interval", [(0.0, 2.0), (2.0, 0.0), (0.37, 1.21), (0.5, 1.0)])
@pytest.mark.parametrize("solver", solvers(breaks=JUMPS), ids=str)
def test_a_field_that_jumps_is_solved_as_one_that_does_not(
    solver: Solver, interval: tuple[float, float]
) -> None:
    """As accurate as on smooth fields, also at saved times and at the breaks themselves."""
    start, end = interval
    times = [t for t in (0.2, 0.37, 0.8, 1.21, 1.7, end) if min(interval) <= t <= max(interval)]
    solution = solve(jumping, states(), interval, solver=solver, save_at=times)
    first_order = solver.order == 1
    tolerance = 0.2 if first_order else 1e-2 if solver.order == 2 else 1e-3
    torch.testing.assert_close(
        solution.z,
        states() * torch.tensor(exact(end) - exact(start)).double().exp(),
        rtol=tolerance,
        atol=tolerance,
    )
    for t, z in zip(times, solution.zs, strict=True):
        torch.testing.assert_close(
            z,
            states() * torch.tensor(exact(t) - exact(start)).double().exp(),
            rtol=tolerance,
            atol=tolerance,
        )
    grid = solution.grid if solution.grid.dim() == 1 else solution.grid[:, 0]
    for t in JUMPS:
        if min(interval) <= t <= max(interval):
            assert float((grid - t).abs().min()) < 1e-12
    assert len(grid) == len(set(grid.tolist())) or solution.grid.dim() == 2


def test_breaks_restore_the_order() -> None:
    errors = {}
    for breaks in ((), JUMPS):
        for n in (20, 40):
            z = solve(
                jumping, states(), (0.0, 2.0), solver=FixedStep("rk4", n_steps=n, breaks=breaks)
            ).z
            errors[breaks, n] = float(
                (z - states() * torch.tensor(exact(2.0)).double().exp()).abs().max()
            )
    assert errors[JUMPS, 20] / errors[JUMPS, 40] > 12
    assert errors[JUMPS, 40] < errors[(), 40] / 1000


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "solver", [FixedStep("rk4", n_steps=8), Adaptive("dopri5", 1e-8, 1e-8)], ids=str
)
@pytest.mark.parametrize(
    "gradient", [Backprop(), Checkpoint(), Adjoint()], ids=lambda g: type(g).__name__
)
def test_breaks_of_a_smooth_field_change_nothing(kind: str, solver: Solver, gradient: Any) -> None:
    """Except for rounding and adaptive steps; this includes all gradients."""
    found = []
    for breaks in ((), (0.25, 0.5)):
        field, z0 = KINDS[kind]()
        ends = tuple(torch.tensor(t, dtype=torch.float64, requires_grad=True) for t in (0.0, 1.0))
        times = torch.tensor([0.125, 0.3, 0.5, 0.9], dtype=torch.float64, requires_grad=True)
        how = {**vars(solver), "breaks": breaks}
        steps = type(solver)(**how)
        solution = solve(field, z0, ends, solver=steps, gradient=gradient, save_at=times)
        total = sum(x.square().sum() for x in (*parts_of(solution.z), *parts_of(solution.zs)))
        found.append(torch.autograd.grad(total, [*field.parameters(), *ends, times]))
    for x, y in zip(*found, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


def test_layers_with_breaks_are_solved_by_the_same_steps() -> None:
    torch.manual_seed(0)
    field = SequentialField(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()
    plain = solve(field, states(), solver=FixedStep("rk4", n_steps=8)).z
    broken = solve(field, states(), solver=FixedStep("rk4", n_steps=8, breaks=(0.5,))).z
    torch.testing.assert_close(plain, broken, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("solver", solvers(breaks=JUMPS), ids=str)
def test_a_replay_takes_the_same_steps(solver: Solver) -> None:
    solution = solve(jumping, states(), (0.0, 2.0), solver=solver)
    again = solve(jumping, states(), (0.0, 2.0), solver=solution.replay())
    torch.testing.assert_close(again.z, solution.z, rtol=1e-10, atol=1e-12)
    assert again.grid.shape == solution.grid.shape


def test_a_grid_without_points_at_its_breaks() -> None:
    with pytest.raises(UsageError, match="points at the breaks"):
        solve(jumping, states(), solver=OnGrid("rk4", (0.0, 0.4, 1.0), breaks=(0.5,)))


def test_breaks_outside_of_the_interval_are_no_breaks() -> None:
    found = [
        solve(TanhField(), states(), solver=FixedStep("rk4", n_steps=7, breaks=b)).z
        for b in ((), (-1.0, 3.0))
    ]
    assert torch.equal(*found)


@pytest.mark.parametrize("solver", solvers(max_step=0.013), ids=str)
@pytest.mark.parametrize("told", [True, False])
def test_no_step_is_longer_than_the_longest(solver: Solver, told: bool) -> None:
    """In the kernel and on the portable path, forwards and backwards in time."""
    torch.manual_seed(0)
    layers = SequentialField(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()
    field: Callable[..., Tensor] = layers if told else lambda t, z: layers(t, z)
    for interval in ((0.0, 1.0), (1.0, 0.7)):
        solution = solve(field, states(), interval, solver=solver)
        assert float(solution.grid.diff(dim=0).abs().max()) <= 0.013 * (1 + 1e-9)


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_longest_step_finds_a_pulse(per_sample: bool) -> None:
    def pulse(t: Tensor, z: Tensor) -> Tensor:
        return ((t > 3.0) & (t < 3.2)) * 5 * torch.ones_like(z)

    z0 = torch.zeros(2, 1, dtype=torch.float64)
    solver = Adaptive("tsit5", 1e-6, 1e-6, per_sample=per_sample, max_step=0.1)
    torch.testing.assert_close(
        solve(pulse, z0, (0.0, 8.0), solver=solver).z, z0 + 1, rtol=1e-3, atol=1e-3
    )


def test_a_failure_before_a_break_ends_the_solve() -> None:
    def field(t: Tensor, z: Tensor) -> Tensor:
        return torch.where(t > 0.3, torch.nan, 1.0) * z

    solver = Adaptive("dopri5", 1e-5, 1e-5, breaks=(0.6,))
    solution = solve(field, states(), solver=solver, save_at=[0.1, 0.9], on_failure="return")
    assert solution.status == "non_finite"
    assert bool(solution.zs[0].isfinite().all())
    assert bool(solution.zs[1].isnan().all())


def test_samples_that_fail_before_a_break_keep_their_states() -> None:
    solver = Adaptive("dopri5", 1e-5, 1e-5, per_sample=True, breaks=(0.5,))
    z0 = torch.tensor([[1.0], [torch.nan], [2.0]], dtype=torch.float64)
    solution = solve(lambda t, z: -z, z0, solver=solver, save_at=[0.2, 0.8], on_failure="return")
    assert solution.statuses == ("success", "non_finite", "success")
    torch.testing.assert_close(
        solution.z[[0, 2]],
        z0[[0, 2]] * torch.exp(torch.tensor(-1.0)).double(),
        rtol=1e-4,
        atol=1e-4,
    )
    assert bool(solution.zs[:, [0, 2]].isfinite().all())


def test_breaks_at_the_ends_leave_the_derivatives_by_them() -> None:
    """The field sees a time next to an end, which moves with it."""
    found = []
    for breaks in ((), (0.0, 1.0)):
        ends = [torch.tensor(t, dtype=torch.float64, requires_grad=True) for t in (0.0, 1.0)]
        solver = FixedStep("rk4", n_steps=3, breaks=breaks)
        z = solve(lambda t, z: torch.cos(2 * t) * z, states(), tuple(ends), solver=solver).z
        found.append(torch.stack(torch.autograd.grad(z.square().sum(), ends)))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
