"""One trajectory: how far it follows its exact flow."""

from __future__ import annotations

from math import pi

import pytest
import torch

from tests.evaluation.flows import NUMBERS, Given, Turn, counted, on
from trueode.evaluation import Status, decide, get_task
from trueode.files import plain
from trueode.solvers import FixedStep

SERIES = get_task("timeseries", absolute=0.05)


def test_one_that_follows_to_the_end_is_an_ode() -> None:
    times, x = (
        torch.linspace(0, 2 * pi, 41, dtype=torch.float64),
        torch.tensor([[1.0, 0.0]], dtype=torch.float64),
    )
    how = {"task": SERIES, "end": 2 * pi, "solver": FixedStep("rk4", n_steps=60)}
    found = counted(on(Turn(1.0).double(), x, torch.zeros(1, 41, 2), times, **how))[2]
    path, decided = found.trajectory, decide(found)
    assert (path.horizon, path.predictable, path.end) == (path.end, path.end, pytest.approx(2 * pi))
    assert float(path.error.max()) < 1
    torch.testing.assert_close(path.growth, torch.ones(41).double(), rtol=1e-3, atol=0)
    assert (decided.status, decided.level, decided.lower, decided.upper) == (
        Status.ODE,
        0.0,
        0.0,
        0.0,
    )


def test_the_horizon_is_where_the_error_exceeds_what_is_allowed() -> None:
    """Euler on a rotation spirals out: after t = n h its radius is (1 + h²)^(n/2)."""
    h, times = 0.02, torch.linspace(0, 10, 41, dtype=torch.float64)
    x, how = torch.tensor([[1.0, 0.0]], dtype=torch.float64), {"task": SERIES, "end": 10.0}
    how["solver"] = FixedStep("euler", step_size=h)
    found = counted(on(Turn(1.0).double(), x, torch.zeros(1, 41, 2), times, **how))[2]
    turned = torch.polar(
        (1 + h * h) ** (times / h / 2), times / h * torch.tensor(h, dtype=torch.float64).atan()
    )
    gap = (turned - torch.polar(torch.ones_like(times), times)).abs() / 2**0.5 / 0.05
    path = found.trajectory
    torch.testing.assert_close(path.error, gap, rtol=0.02, atol=0.002)
    assert path.horizon == float(times[gap <= 1][-1])
    assert (found.n, found.flips) == (1, 1)
    assert decide(found).status is Status.SOLVER_DEPENDENT


@pytest.mark.parametrize(
    ("wrong", "grown", "status"),
    [
        (10, 10, "ode"), (9, 5, "inconclusive"), (5, 5, "inconclusive"), (4, 5, "solver-dependent"),
        (0, 10, "solver-dependent"), (10, 0, "ode"),
    ],
)  # fmt: skip
def test_beyond_the_horizon_of_a_perturbation_nothing_is_said(
    wrong: int, grown: int, status: str
) -> None:
    """From one time on the error is too large, from another a perturbation of 1e-9."""
    exact, number = torch.ones(1, 10, 1, dtype=torch.float64), torch.arange(10.0)
    own = exact + 0.06 * (number >= wrong)[:, None]
    growth = torch.where(number >= grown, 6e7, 1.0)[:, None]
    found = counted(Given(own, exact, task=SERIES, growth=growth, t=number / 2))[2]
    path, known = found.trajectory, [(n - 1) / 2 if n else -torch.inf for n in (wrong, grown)]
    assert [path.horizon, path.predictable, path.end] == [*known, 4.5]
    assert decide(found).status == status
    assert plain(path)["times"] == (number / 2).tolist()


def test_only_a_single_series_is_a_trajectory() -> None:
    """Windows of one series are one sample, but no trajectory; nor are numbers."""
    windows = torch.randn(6, 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = counted(Given(windows, windows, task=SERIES, groups=torch.zeros(6, dtype=torch.int64)))[
        2
    ]
    assert (found.n, found.trajectory) == (1, None)
    assert counted(Given(windows[:1, 0], windows[:1, 0], task=NUMBERS))[2].trajectory is None
