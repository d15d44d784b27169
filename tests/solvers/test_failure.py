"""Failures name their cause."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.problems import states
from trueode.catalog import METHODS
from trueode.solvers import Adaptive, FixedStep, get_tableau, solve

EMBEDDED = [name for name, method in METHODS.items() if method.kind == "adaptive"]
BOTH = pytest.mark.parametrize("per_sample", [False, True])
STIFF = "stiff"


def message(
    field: Any, z0: Tensor, solver: Any, t: tuple[float, float] = (0.0, 1.0)
) -> tuple[str, str]:
    solution = solve(field, z0, t, solver=solver, on_failure="return")
    return solution.status, solution.message


@BOTH
@pytest.mark.parametrize("method", EMBEDDED)
@pytest.mark.parametrize(
    "field",
    [
        lambda t, z: -1e6 * (z - torch.cos(t)),  # Prothero and Robinson
        lambda t, z: torch.stack(
            [z[:, 1], 1e5 * (1 - z[:, 0] ** 2) * z[:, 1] - z[:, 0]], 1
        ),  # van der Pol
        lambda t, z: z @ torch.tensor([[-1e5, 3.0], [0.0, -1.0]], dtype=z.dtype),
    ],
)
def test_a_stiff_problem_is_named(field: Any, method: str, per_sample: bool) -> None:
    z0 = torch.tensor([[2.0, 0.0], [1.5, 0.1]], dtype=torch.float64)
    solver = Adaptive(method, 1e-3, 1e-3, per_sample=per_sample, max_steps=300)
    status, text = message(field, z0, solver, (0.0, 5.0))
    assert status == "max_steps"
    assert STIFF in text
    assert "Radau" in text


@BOTH
@pytest.mark.parametrize("method", EMBEDDED)
@pytest.mark.parametrize(
    "field",
    [
        lambda t, z: 1e4 * torch.stack([z[:, 1], -z[:, 0]], 1),  # fast, not decaying
        lambda t, z: torch.cos(1e4 * t) * torch.ones_like(z),
        lambda t, z: z**2,  # infinite within the interval
        lambda t, z: torch.sign(torch.sin(50 * t)) * z,  # jumps
    ],
)
def test_what_is_not_stiff_is_not_called_so(field: Any, method: str, per_sample: bool) -> None:
    z0 = torch.tensor([[2.0, 0.1], [1.5, 0.1]], dtype=torch.float64)
    solver = Adaptive(method, 1e-9, 1e-9, per_sample=per_sample, max_steps=200)
    status, text = message(field, z0, solver, (0.0, 5.0))
    assert status != "success"
    assert STIFF not in text


@pytest.mark.parametrize("method", METHODS)
def test_fixed_steps_beyond_stability_are_named(method: str) -> None:
    rate = 1e4
    stable = get_tableau(method).stability / rate

    def field(t: Tensor, z: Tensor) -> Tensor:
        return -rate * z

    def run(step: float) -> tuple[str, str]:
        return message(field, states(), FixedStep(method, step_size=step), (0.0, 2000 * step))

    assert run(0.97 * stable)[0] == "success"
    status, text = run(2 * stable)
    assert status == "non_finite"
    assert f"above {stable:.2g}" in text


def test_intervals_of_stability_are_those_of_the_literature() -> None:
    """Hairer & Wanner II, section IV.2: Euler 2, order two 2, order three 2.51, rk4 2.79, Dormand
    and Prince 3.31.
    """
    known = {
        "euler": 2.0,
        "midpoint": 2.0,
        "heun2": 2.0,
        "bosh3": 2.51,
        "rk4": 2.78,
        "rk4_38": 2.78,
        "dopri5": 3.3,
    }
    for name, limit in known.items():
        assert get_tableau(name).stability == pytest.approx(limit, abs=0.02)


@BOTH
@pytest.mark.parametrize(
    ("dtype", "tol"),
    [(torch.float16, 1e-5), (torch.bfloat16, 1e-4), (torch.float32, 1e-9), (torch.float64, 1e-18)],
)
def test_a_tolerance_below_rounding_is_named(
    dtype: torch.dtype, tol: float, per_sample: bool
) -> None:
    def field(t: Tensor, z: Tensor) -> Tensor:
        return torch.sin(3 * z) - 2 * z

    z0 = torch.tensor([[1.0, -0.5], [0.3, 2.0]], dtype=dtype)
    status, text = message(
        field, z0, Adaptive("dopri5", tol, 0.0, per_sample=per_sample, max_steps=200)
    )
    if status != "success":
        assert status in ("max_steps", "step_underflow")
        assert "rounding" in text
        assert "not finite" not in text


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_with_tolerances_that_it_can_hold(
    dtype: torch.dtype, per_sample: bool
) -> None:
    """Norms are float32: an absolute tolerance may round to zero in half precision."""
    z0 = torch.tensor([[300.0, -2.0], [1e-3, 40.0]], dtype=dtype)
    for tol in (
        Adaptive("bosh3", 1e-1, 1e-8, per_sample=per_sample),
        Adaptive("bosh3", 1e-1, 0.0, per_sample=per_sample),
    ):
        z = solve(lambda t, z: -z, z0, solver=tol).z
        torch.testing.assert_close(z, z0 * math.exp(-1), rtol=0.1, atol=1e-3)


@BOTH
def test_a_zero_tolerance_at_a_zero_of_the_state(per_sample: bool) -> None:
    """A scale of zero is no failure of the field."""
    z0 = torch.zeros(2, 1)
    solution = solve(
        lambda t, z: torch.zeros_like(z),
        z0,
        solver=Adaptive("dopri5", 1e-6, 0.0, per_sample=per_sample),
    )
    assert torch.equal(solution.z, z0)
    status, text = message(
        lambda t, z: torch.cos(t) * torch.ones_like(z),
        z0,
        Adaptive("dopri5", 1e-6, 0.0, per_sample=per_sample, max_steps=50),
    )
    assert status == "success" or "not finite" not in text
