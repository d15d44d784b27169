"""Per sample means per sample: steps, times, failures, inputs, cost."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.problems import KINDS, TanhField, parts_of, states
from trueode.catalog import METHODS
from trueode.errors import SolveError
from trueode.fields import SequentialField
from trueode.models import NeuralODE
from trueode.solvers import (
    Adaptive,
    Adjoint,
    Backprop,
    Checkpoint,
    FixedStep,
    Gradient,
    Solver,
    solve,
    step,
)
from trueode.solvers.backends import native

EMBEDDED = [name for name, method in METHODS.items() if method.kind == "adaptive"]
SOLVERS: list[Solver] = [
    FixedStep("rk4", n_steps=7),
    FixedStep("euler", step_size=0.03),
    Adaptive("dopri5", 1e-6, 1e-6),
    Adaptive("bosh3", 1e-5, 1e-5, per_sample=True),
    Adaptive("tsit5", 1e-6, 1e-6, per_sample=True),
]
GRADIENTS = [Backprop(), Checkpoint(), Adjoint()]
every_gradient = pytest.mark.parametrize("gradient", GRADIENTS, ids=lambda g: type(g).__name__)


def per_sample(method: str = "dopri5", **how: Any) -> Adaptive:
    return Adaptive(method, 1e-6, 1e-6, per_sample=True, **how)


@pytest.mark.parametrize("method", EMBEDDED)
@every_gradient
def test_a_sample_that_fails_leaves_the_others_alone(method: str, gradient: Gradient) -> None:
    """Their states, saved states and gradients are as without it; its status names the cause."""
    good = [0, 2, 3]
    z0 = torch.tensor([[0.4, 1.0], [30.0, 1.0], [-0.2, 0.3], [0.1, -1.0]], dtype=torch.float64)
    solver = Adaptive(method, 1e-4, 1e-4, per_sample=True, max_steps=2000)
    found = []
    for rows in (good, [0, 1, 2, 3]):
        w, start = (
            torch.tensor(0.9, dtype=torch.float64, requires_grad=True),
            z0[rows].clone().requires_grad_(),
        )
        solution = solve(
            lambda t, z, w=w: w * z**2,
            start,
            solver=solver,
            gradient=gradient,
            save_at=[0.5, 1.0],
            on_failure="return",
        )
        places = [i for i, row in enumerate(rows) if row in good]
        assert [solution.statuses[i] for i in places] == ["success"] * 3
        total = solution.z[places].square().sum() + solution.zs[:, places].sum()
        if not isinstance(gradient, Adjoint):  # its backward solve couples the batch
            found.append(
                [
                    solution.z[places],
                    solution.zs[:, places],
                    *torch.autograd.grad(total, [w, start]),
                ]
            )
            found[-1][-1] = found[-1][-1][places]
        else:
            found.append([solution.z[places], solution.zs[:, places]])
    assert solution.statuses[1] != "success"
    assert solution.status == solution.statuses[1]
    assert "sample 1" in solution.message
    assert bool(solution.zs[:, 1].isnan().all())
    for x, y in zip(*found, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-10)


def test_every_sample_has_a_status() -> None:
    def field(t: Tensor, z: Tensor) -> Tensor:
        return torch.where(
            z > 5, 1000 * z**3, torch.where(z < -5, torch.full_like(z, torch.nan), -z)
        )

    z0 = torch.tensor([[1.0], [6.0], [-6.0], [2.0]], dtype=torch.float64)
    solution = solve(field, z0, solver=per_sample(max_steps=300), on_failure="return")
    assert solution.statuses is not None
    assert [status == "success" for status in solution.statuses] == [True, False, False, True]
    assert solution.statuses[2] == "non_finite"
    assert torch.equal(solution.z[2], z0[2])
    with pytest.raises(SolveError, match="other sample"):
        solve(field, z0, solver=per_sample(max_steps=300))


def test_statuses_are_for_samples_alone() -> None:
    assert solve(TanhField(), states(), solver=SOLVERS[0]).statuses is None
    assert solve(TanhField(), states(), solver=per_sample()).statuses == ("success",) * 4


@pytest.mark.parametrize("method", EMBEDDED)
@every_gradient
def test_a_field_with_inputs_of_its_own_for_each_sample(method: str, gradient: Gradient) -> None:
    """The field may add, concatenate, or multiply its inputs by matrices."""
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(5, 2, generator=draw, dtype=torch.float64) * torch.tensor(
        [[0.1], [1], [8], [1], [0.1]]
    )
    matrices = torch.randn(5, 2, 2, generator=draw, dtype=torch.float64)

    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(4, 2).double()

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            moved = torch.bmm(matrices, z[:, :, None]).squeeze(2)
            return inputs - z + 0.1 * moved + self.net(torch.cat([z, inputs], 1)).tanh()

    torch.manual_seed(0)
    field = Field()
    exact = solve(field, states(5), solver=Adaptive("dopri5", 1e-10, 1e-10))
    found = solve(
        field,
        states(5),
        solver=Adaptive(method, 1e-6, 1e-6, per_sample=True, max_steps=50_000),
        gradient=gradient,
    )
    assert len(set(found.n_steps.tolist())) > 1
    torch.testing.assert_close(found.z, exact.z, rtol=2e-3, atol=2e-3)
    gradients = [torch.autograd.grad(x.z.sum(), list(field.parameters())) for x in (found, exact)]
    for x, y in zip(*gradients, strict=True):
        torch.testing.assert_close(x, y, rtol=5e-3, atol=5e-3)


def test_a_fault_of_the_field_itself_is_not_hidden() -> None:
    def field(t: Tensor, z: Tensor) -> Tensor:
        if float(z.detach().abs().max()) > 1.5:
            raise RuntimeError("of my own")
        return z

    with pytest.raises(RuntimeError, match="of my own"):
        solve(field, torch.tensor([[0.1], [1.0]]), solver=per_sample())


def irregular(batch: int, times: int) -> Tensor:
    draw = torch.Generator().manual_seed(batch)
    found = torch.rand(batch, times, generator=draw, dtype=torch.float64).sort(1).values
    found[0, -1], found[1, 0], found[2, 1] = 1.0, 0.0, torch.nan
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@every_gradient
def test_times_of_each_sample(kind: str, solver: Solver, gradient: Gradient) -> None:
    """Equal to saving every sample at all times and selecting."""
    times = irregular(3, 4)
    union = torch.unique(times[~times.isnan()])
    found = []
    for own in (True, False):
        field, z0 = KINDS[kind]()
        solution = solve(
            field, z0, solver=solver, gradient=gradient, save_at=times if own else union
        )
        picked = []
        for zs in parts_of(solution.zs):
            if own:
                assert zs.shape[:2] == (4, 3)
                assert bool(zs[1, 2].isnan().all())
                picked.append(
                    torch.stack(
                        [zs[j, i] for i in range(3) for j in range(4) if not times[i, j].isnan()]
                    )
                )
            else:
                where = [
                    (int(torch.searchsorted(union, times[i, j])), i)
                    for i in range(3)
                    for j in range(4)
                    if not times[i, j].isnan()
                ]
                picked.append(torch.stack([zs[u, i] for u, i in where]))
        total = sum(x.square().sum() for x in picked)
        found.append([*picked, *torch.autograd.grad(total, list(field.parameters()))])
    for x, y in zip(*found, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_derivatives_by_times_of_each_sample(solver: Solver) -> None:
    times = irregular(3, 4)[:, :3].nan_to_num(0.4).requires_grad_()
    field, z0 = KINDS["timed"]()
    zs = solve(field, z0, solver=solver, save_at=times).zs
    assert zs is not None
    (found,) = torch.autograd.grad(zs.sum(), times)
    slopes = torch.stack(
        [field(times.detach()[:, j : j + 1], zs[j].detach()).sum(1) for j in range(3)], 1
    )
    torch.testing.assert_close(found, slopes.detach(), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_the_cost_of_times_of_each_sample_grows_with_the_batch(
    solver: Solver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States between steps: one per time and sample."""
    computed = 0
    original = step.interpolate

    def counted(*args: Any) -> Tensor:
        nonlocal computed
        states = original(*args)
        computed += len(states.flatten(0, -2))
        return states

    monkeypatch.setattr(step, "interpolate", counted)
    z0 = states(40)
    with torch.no_grad():
        solve(TanhField(), z0, solver=solver, save_at=torch.rand(40, 25, dtype=torch.float64))
    assert computed <= 40 * 25 * (
        3 if isinstance(solver, Adaptive) else 1
    )  # rejected steps are computed too


def test_model_with_times_of_each_sample() -> None:
    """Zeros where a sample has no time, and gradients without NaN through any head."""
    torch.manual_seed(0)
    model = NeuralODE(TanhField(), None, nn.Linear(2, 3).double(), solver=SOLVERS[0])
    times = irregular(4, 5)
    outputs = model(states(), save_at=times)
    assert outputs.shape == (5, 4, 3)
    assert bool((outputs[1, 2] == 0).all())
    outputs.square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_times_of_no_time_at_all() -> None:
    times = torch.full((4, 3), math.nan)
    zs = solve(TanhField(), states(), solver=SOLVERS[0], save_at=times).zs
    assert bool(zs.isnan().all())


@pytest.mark.parametrize("name", [*native.instruction_sets(), "off"])
def test_times_of_each_sample_on_the_grid(name: str) -> None:
    """The kernel then solves layers; values and gradients are those of the portable path."""
    torch.manual_seed(0)
    layers = SequentialField(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    times = torch.tensor(
        [[0.25, 0.5, 1.0], [0.0, 0.75, math.nan], [0.5, 0.5, 0.125], [1.0, 0.25, 0.0]],
        dtype=torch.float64,
    )
    found = []
    with native.using(name):
        for field in (layers, lambda t, z: layers(t, z)):
            zs = solve(field, states(), solver=FixedStep("rk4", n_steps=8), save_at=times).zs
            assert zs is not None
            total = zs.nan_to_num().square().sum()
            found.append([zs, *torch.autograd.grad(total, list(layers.parameters()))])
    for x, y in zip(*found, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-11, equal_nan=True)
