"""Arguments are checked before they are used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.problems import states
from trueode.errors import UsageError
from trueode.solvers import Adaptive, Adjoint, Checkpoint, FixedStep, OnGrid, solve

HEUN = FixedStep("heun2", n_steps=4)


def decay(t: Any, z: Any) -> Any:
    return -z


@pytest.mark.parametrize(
    "attempt",
    [
        lambda z: solve(decay, z, 2.0, solver=HEUN),
        lambda z: solve(decay, z, torch.tensor([1.0]), solver=HEUN),
        lambda z: solve(decay, z, (0.0, None), solver=HEUN),
        lambda z: solve(decay, z, ("0", "1"), solver=HEUN),
        lambda z: solve(decay, z, (0.0, 1.0 + 0.0j), solver=HEUN),
        lambda z: solve(decay, z, (0.0, torch.ones(2)), solver=HEUN),
        lambda z: solve(decay, z, (0.0, torch.tensor(1j)), solver=HEUN),
        lambda z: solve(decay, z, (float("nan"), 1.0), solver=HEUN),
        lambda z: solve(decay, [z], solver=HEUN),
        lambda z: solve(decay, (z, 1.0), solver=HEUN),
        lambda z: solve(decay, z.numpy(), solver=HEUN),
        lambda z: solve(decay, z.bool(), solver=HEUN),
        lambda z: solve("decay", z, solver=HEUN),
        lambda z: solve(None, z, solver=HEUN),
        lambda z: solve(decay, z, solver=FixedStep),
        lambda z: solve(decay, z, solver=HEUN, gradient="checkpoint"),
        lambda z: solve(decay, z, solver=HEUN, gradient=Checkpoint),
        lambda z: solve(decay, z, solver=HEUN, gradient=None),
        lambda z: solve(decay, z, solver=HEUN, save_at=0.5),
        lambda z: solve(decay, z, solver=HEUN, save_at=["0.5"]),
        lambda z: solve(decay, z, solver=HEUN, save_at={"t": 0.5}),
        lambda z: solve(decay, z, solver=HEUN, save_at=[0.1, float("nan")]),
        lambda z: solve(decay, z, solver=HEUN, save_at=[[0.1], [0.2, 0.3]]),
        lambda z: solve(decay, z, solver=HEUN, save_at=torch.rand(3, 5)),
        lambda z: solve(decay, z[0, 0], solver=HEUN, save_at=torch.rand(1, 5)),
        lambda z: solve(decay, z, solver=HEUN, save_at=torch.tensor([0.5], dtype=torch.complex64)),
        lambda z: solve(decay, z, solver=HEUN, on_failure=True),
        lambda z: FixedStep(4, n_steps=2),
        lambda z: FixedStep([], n_steps=2),
        lambda z: FixedStep("rk4"),
        lambda z: FixedStep("rk4", step_size=0.1, n_steps=2),
        lambda z: FixedStep("rk4", n_steps=2.5),
        lambda z: FixedStep("rk4", n_steps=True),
        lambda z: FixedStep("rk4", step_size=torch.ones(2)),
        lambda z: FixedStep("rk4", step_size="h"),
        lambda z: FixedStep("rk4", n_steps=2, max_step=0.0),
        lambda z: FixedStep("rk4", n_steps=2, max_steps="9"),
        lambda z: FixedStep("rk4", n_steps=2, breaks=0.5),
        lambda z: FixedStep("rk4", n_steps=2, breaks=("noon",)),
        lambda z: FixedStep("rk4", n_steps=2, breaks=(float("inf"),)),
        lambda z: Adaptive("dopri5", [1e-3, 1e-4], 1e-3),
        lambda z: Adaptive("dopri5", "1e-3", 1e-3),
        lambda z: Adaptive("dopri5", None, 1e-3),
        lambda z: Adaptive("dopri5", 1e-3, 1e-3, max_step=-1.0),
        lambda z: Adaptive("dopri5", 1e-3, 1e-3, max_steps=1.5),
        lambda z: Adaptive("dopri5", 1e-3, 1e-3, first_step="small"),
        lambda z: Adjoint(solver="dopri5"),
        lambda z: Adjoint(params=3),
        lambda z: Adjoint(params=["w"]),
    ],
)
def test_a_wrong_argument_is_a_usage_error(attempt: Callable[[Any], Any]) -> None:
    with pytest.raises(UsageError):
        attempt(states())


@pytest.mark.parametrize(
    "t",
    [
        (0, 1),
        [0.0, 1.0],
        np.array([0.0, 1.0]),
        (np.float32(0.0), np.int64(1)),
        torch.tensor([0.0, 1.0]),
        (torch.tensor(0), torch.tensor(1)),
        (torch.zeros(1), torch.ones(1)),
    ],
)
@pytest.mark.parametrize(
    "save_at",
    [
        [0.5, 1],
        (0.5, 1.0),
        np.array([0.5, 1.0]),
        torch.tensor([0.5, 1.0]),
        [torch.tensor(0.5), 1.0],
    ],
)
def test_times_of_any_kind(t: Any, save_at: Any) -> None:
    expected = solve(decay, states(), solver=HEUN, save_at=[0.5, 1.0])
    found = solve(decay, states(), t, solver=HEUN, save_at=save_at)
    assert torch.equal(found.z, expected.z)
    assert torch.equal(found.zs, expected.zs)


def test_wrong_times_are_told_before_the_field_is_called() -> None:
    def field(t: Any, z: Any) -> Any:
        raise AssertionError("called")

    with pytest.raises(UsageError, match="outside of the interval"):
        solve(field, states(), solver=HEUN, save_at=[3.0])


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize(
    "solver",
    [
        FixedStep("rk4", n_steps=100),
        OnGrid("rk4", tuple(i / 100 for i in range(101))),
        Adaptive("dopri5", 1e-6, 1e-6),
        Adaptive("tsit5", 1e-6, 1e-6, per_sample=True),
        Adaptive("bosh3", 1e-6, 1e-6),
    ],
    ids=str,
)
@pytest.mark.parametrize("gradient", [None, Checkpoint(), Adjoint()])
def test_complex_states(dtype: torch.dtype, solver: Any, gradient: Any) -> None:
    """z' = i w z, z = z0 exp(i w t), with derivatives by w (real), z0 and the end."""
    w, end = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.7, 1.5))
    z0 = torch.tensor([[1.0 + 0.5j], [-2.0 + 0.1j]], dtype=dtype, requires_grad=True)
    how = {} if gradient is None else {"gradient": gradient}
    solution = solve(lambda t, z: 1j * w * z, z0, (0.0, end), solver=solver, save_at=[0.6], **how)
    exact = z0 * torch.exp(1j * w * end)
    inside = z0 * torch.exp(0.6j * w)
    tolerance = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(solution.z, exact.to(dtype), **tolerance)
    torch.testing.assert_close(solution.zs[0], inside.to(dtype), **tolerance)
    found = torch.autograd.grad(
        (solution.z * (1 + 2j)).real.sum() + solution.zs.imag.sum(), (w, z0, end)
    )
    expected = torch.autograd.grad((exact * (1 + 2j)).real.sum() + inside.imag.sum(), (w, z0, end))
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, **tolerance)
