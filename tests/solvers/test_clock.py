"""Times keep their precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.problems import TanhField, states
from trueode.errors import UsageError
from trueode.fields import DenseField
from trueode.solvers import Adaptive, FixedStep, Solver, solve

SOLVERS: list[Solver] = [
    FixedStep("rk4", n_steps=40),
    Adaptive("dopri5", 1e-7, 1e-7),
    Adaptive("dopri5", 1e-7, 1e-7, per_sample=True),
]
every_solver = pytest.mark.parametrize("solver", SOLVERS, ids=str)


@every_solver
@pytest.mark.parametrize("origin", [0.0, 2019.0, 1.7e9, -4e8])
def test_a_shift_of_time_changes_nothing_in_double_precision(origin: float, solver: Solver) -> None:
    """Also for saved times, including those within rounding of an end."""

    def field(t: Tensor, z: Tensor) -> Tensor:
        return torch.cos(t - origin) * z

    times = [origin + x for x in (0.0, 0.3, 2.0)]
    found = solve(field, states(), (origin, origin + 2.0), solver=solver, save_at=times)
    exact = states() * math.exp(math.sin(2.0))
    torch.testing.assert_close(found.z, exact, rtol=1e-5, atol=1e-6)
    assert torch.equal(found.zs[-1], found.z)
    inside = states() * math.exp(math.sin(0.3))
    torch.testing.assert_close(found.zs[1], inside, rtol=1e-5, atol=1e-6)


@every_solver
@pytest.mark.parametrize(
    ("dtype", "start", "length"),
    [
        (torch.float32, 1.6e9, 60.0),
        (torch.float32, 5e5, 3.0),
        (torch.float16, 3000.0, 20.0),
        (torch.float16, 0.0, 1e5),
        (torch.bfloat16, 365.0, 7.0),
        (torch.float64, 1e15, 0.5),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_times_that_the_field_could_not_tell_apart(
    dtype: torch.dtype, start: float, length: float, solver: Solver, sign: int
) -> None:
    ends = (start, start + length)[::sign]
    with pytest.raises(UsageError, match=r"subtract the first time|exceeds the range"):
        solve(lambda t, z: -z, torch.ones(2, 1, dtype=dtype), ends, solver=solver)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("end", [1e-3, 1.0, 50.0, 1000.0])
def test_intervals_from_zero_are_never_too_coarse(dtype: torch.dtype, end: float) -> None:
    z = solve(
        lambda t, z: 0 * z,
        torch.ones(2, 1, dtype=dtype),
        (0.0, end),
        solver=FixedStep("euler", n_steps=100),
    ).z
    assert torch.equal(z, torch.ones(2, 1, dtype=dtype))


@every_solver
def test_years_in_single_precision(solver: Solver) -> None:
    """Times as in a data set; the last one is the end, whichever way it was rounded."""
    times = torch.linspace(2019.1, 2019.9, 9)
    z0 = torch.ones(3, 2)
    solution = solve(lambda t, z: -z, z0, (2019.1, 2019.9), solver=solver, save_at=times)
    assert torch.equal(solution.zs[-1], solution.z)
    exact = torch.exp(-(times.double() - 2019.1)).float().view(-1, 1, 1).expand(9, 3, 2)
    torch.testing.assert_close(solution.zs, exact, rtol=1e-3, atol=1e-3)


def test_a_field_of_layers_is_told_the_same() -> None:
    with pytest.raises(UsageError, match="subtract the first time"):
        solve(DenseField(2, 4), torch.ones(3, 2), (1.7e9, 1.7e9 + 10), solver=SOLVERS[0])


@every_solver
def test_an_end_given_as_a_number_beside_one_that_is_learnt_keeps_its_precision(
    solver: Solver,
) -> None:
    end = torch.tensor(1.1, dtype=torch.float64, requires_grad=True)
    moving = solve(TanhField(), states(), (0.1, end), solver=solver).z
    still = solve(TanhField(), states(), (0.1, 1.1), solver=solver).z
    torch.testing.assert_close(moving, still, rtol=1e-14, atol=1e-15)
