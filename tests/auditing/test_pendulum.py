"""A damped pendulum learned by a coarse and a fine solver, which the error may not reveal."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trueode import Adaptive, Audit, FixedStep, NeuralODE, audit, solve

torchdiffeq = pytest.importorskip("torchdiffeq")

TIMES = torch.linspace(0, 10, 41)
INTERVAL, END = 0.25, 10.0
TRAINED, TESTED, ITERATIONS = 64, 300, 100
SMALL, ROTATING = (
    1.0,
    3.0,
)  # largest angle and angular velocity at the start: swinging, or also turning over


def pendulum(t: Tensor, z: Tensor) -> Tensor:
    """x'' = -sin x - 0.1 x'."""
    x, v = z.unbind(-1)
    return torch.stack([v, -x.sin() - 0.1 * v], -1)


@cache
def trajectories(n: int, size: float, seed: int) -> Tensor:
    """``(n, times, 2)``."""
    generator = torch.Generator().manual_seed(seed)
    start = size * (2 * torch.rand(n, 2, generator=generator, dtype=torch.float64) - 1)
    states = solve(
        pendulum, start, (0.0, END), solver=Adaptive("dopri5", 1e-9, 1e-9), save_at=TIMES
    ).zs
    return states.transpose(0, 1).float()


class Field(nn.Module):
    """MLP 2-50-50-2, as torchdiffeq's examples write it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 2)
        )

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        derivative: Tensor = self.net(y)
        return derivative


@cache
def learned(method: str, size: float) -> Field:
    """A field fitted such that one step of a method leads from each sampled state to the next."""
    torch.manual_seed(0)
    field, states = Field(), trajectories(TRAINED, size, 1)
    before, after = states[:, :-1].flatten(0, 1), states[:, 1:].flatten(0, 1)
    optimizer = torch.optim.Adam(field.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=ITERATIONS)
    for _ in range(ITERATIONS):
        step = solve(field, before, (0.0, INTERVAL), solver=FixedStep(method, n_steps=1)).z
        optimizer.zero_grad()
        ((step - after) / INTERVAL).square().mean().backward()
        optimizer.step()
        schedule.step()
    return field


def ours(method: str, size: float) -> NeuralODE:
    return NeuralODE(
        learned(method, size), solver=FixedStep(method, step_size=INTERVAL), t=(0.0, END)
    )


def data(size: float) -> tuple[Tensor, Tensor, Tensor]:
    states = trajectories(TESTED, size, 2)
    return states[:, 0], states, TIMES


@cache
def audited(method: str, size: float) -> Audit:
    return audit(ours(method, size), data(size), methods=(method,))


@pytest.mark.parametrize("size", [SMALL, ROTATING], ids=["swinging", "rotating"])
def test_euler_at_the_sampling_interval_learns_the_steps_and_not_the_ode(size: float) -> None:
    found = audited("euler", size)
    assert (found.verdict, found.exit_code, found.task) == ("solver-dependent", 3, "timeseries")
    assert found.decision.lower > 0.8  # not 1: any method solves a pendulum at rest
    assert found.rows[0].output_error > 0.1
    assert (found.rows[0].n_steps, found.rows[0].nfe) == (40, 40)
    assert "torchdiffeq" not in found.solver


def test_where_the_model_is_good_the_metric_tells_as_well() -> None:
    found = audited("euler", SMALL)
    assert found.metric_exact > 5 * found.metric
    assert "NOT an ODE" in found.sentence


def test_where_the_error_of_the_model_dominates_the_metric_hides_it() -> None:
    found = audited("euler", ROTATING)
    assert 0.5 < found.metric_exact / found.metric < 2
    assert found.verdict == "solver-dependent"
    assert "NOT an ODE" not in found.sentence


@pytest.mark.parametrize("size", [SMALL, ROTATING], ids=["swinging", "rotating"])
def test_rk4_learns_an_ode(size: float) -> None:
    found = audited("rk4", size)
    assert (found.verdict, found.exit_code, found.flips) == ("ode", 0, 0)
    assert found.metric_exact == pytest.approx(found.metric, rel=1e-3)
    assert found.rows[0].output_error < 1e-3
    assert not any(note.startswith("vacuous") for note in found.notes)


def rollout(field: nn.Module, batch: Any, method: str) -> Tensor:
    """As in torchdiffeq's README: states at all times, times first."""
    states: Tensor = torchdiffeq.odeint(field, batch.x, batch.t, method=method)
    return states.transpose(0, 1)


def test_the_same_weights_in_torchdiffeq_have_the_same_audit() -> None:
    own = audited("euler", SMALL)
    found = audit(
        learned("euler", SMALL),
        data(SMALL),
        call=lambda field, batch: rollout(field, batch, "euler"),
        methods=(),
    )
    assert found.solver == "torchdiffeq euler, h = 0.25"
    assert (found.verdict, found.decision) == (own.verdict, own.decision)
    assert [row.n_steps for row in own.rows] == [40, 80, 160]  # no fewer: steps end at all times
    assert found.metric == pytest.approx(own.metric, rel=1e-4)
    assert found.metric_exact == pytest.approx(own.metric_exact, rel=1e-3)
    assert found.rows[0].output_error == pytest.approx(own.rows[0].output_error, rel=1e-3)
    assert found.provenance["solver"][0]["settings"]["n_times"] == len(TIMES)


def test_rk4_in_torchdiffeq_is_an_ode() -> None:
    """Its rk4 is the 3/8 rule, which is as accurate on weights learned with rk4."""
    found = audit(
        learned("rk4", SMALL),
        data(SMALL),
        call=lambda field, batch: rollout(field, batch, "rk4"),
        methods=(),
    )
    assert (found.verdict, found.flips) == ("ode", 0)
    assert found.rows[0].method == "rk4_38"


def test_as_many_samples_as_times() -> None:
    """Shared times are not mistaken for one time per sample."""
    x, y, t = data(SMALL)
    n = len(t)
    found = audit(ours("euler", SMALL), (x[:n], y[:n], t), methods=())
    assert (found.verdict, found.n) == ("solver-dependent", n)
