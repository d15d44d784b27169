"""Kinds of predictions: signs, tolerances, pixels, nodes, windows, a single trajectory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trueode import Adaptive, Audit, FixedStep, NeuralODE, audit, solve
from trueode.errors import DataError
from trueode.evaluation import Answer

ONCE, COARSE, FINE = (
    FixedStep("euler", n_steps=1),
    FixedStep("euler", n_steps=2),
    FixedStep("rk4", n_steps=16),
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def decay(solver: FixedStep) -> NeuralODE:
    """A model under which numbers keep their sign."""
    return NeuralODE(lambda t, z: -z, solver=solver).eval()


def test_numbers_that_move_by_per_cents_make_no_resnet_where_nothing_is_lost() -> None:
    """Labels ±1 by regression: outputs move by a tenth, the error hardly, and no sign changes."""
    x = noise(600, 1)
    x, y = x.sign() * (1 + x.abs()), x.sign() + 5 * noise(600, 1, seed=1)
    found = audit(decay(COARSE), (x, y), methods=())
    assert (found.verdict, found.performance.answer) == ("solver-dependent", Answer.SAME)
    assert "NOT an ODE" not in found.sentence
    for how in ({"decision": lambda outputs: outputs > 0}, {"tolerance": 1.0}, {"absolute": 1.0}):
        assert audit(decay(COARSE), (x, y), methods=(), **how).verdict == "ode"
    assert audit(decay(FINE), (x, y), methods=(), tolerance=1e-3).verdict == "ode"


def test_a_single_trajectory_under_an_input_that_jumps_is_no_evidence_against_an_ode() -> None:
    jumps, times = (
        torch.linspace(0.37, 9.1, 8, dtype=torch.float64),
        torch.linspace(0, 10, 11, dtype=torch.float64),
    )

    def driven(t: Tensor, z: Tensor) -> Tensor:
        return (-1.0) ** int((t > jumps).sum()) - z

    def series(tolerance: float) -> Any:
        solver = Adaptive("dopri5", tolerance, tolerance)
        return lambda x: solve(driven, x, (0.0, 10.0), solver=solver, save_at=times).zs.transpose(
            0, 1
        )

    x = torch.tensor([[0.3]], dtype=torch.float64)
    y = series(1e-9)(x)
    found = audit(series(1e-7), (x, y), task="timeseries", methods=())
    assert found.verdict != "solver-dependent"
    loose = audit(decay(COARSE), (x, y[:, :2], times[:2] / 10), task="timeseries", methods=())
    assert loose.n == 1
    assert loose.decision.counts.trajectory is not None


class Pixels(nn.Module):
    """Two logits per pixel, from states that turn: ``(n, 2, height, width)``."""

    def __init__(self, solver: FixedStep) -> None:
        super().__init__()
        self.solver = solver

    def forward(self, x: Tensor) -> Tensor:
        return solve(lambda t, z: torch.stack([-z[:, 1], z[:, 0]], 1), x, solver=self.solver).z


def test_the_class_of_a_pixel_is_a_prediction_and_an_image_a_sample() -> None:
    x = noise(320, 2, 3, 4)
    y = Pixels(FINE)(x).argmax(1)
    fine, coarse = (audit(Pixels(solver), (x, y), methods=()) for solver in (FINE, ONCE))
    assert (fine.task, fine.verdict, fine.n, fine.metric) == ("classification", "ode", 320, 1.0)
    assert (coarse.verdict, coarse.n) == ("solver-dependent", 320)
    wrong = Pixels(ONCE)(x).argmax(1) != y
    assert coarse.decision.counts.share == pytest.approx(float(wrong.double().mean()), abs=2e-3)
    assert coarse.metric == pytest.approx(1 - float(wrong.double().mean()))
    assert any("mean over samples" in note for note in coarse.notes)
    seen = audit(Pixels(ONCE), (x, y.masked_fill(wrong, 9)), methods=(), ignore_index=9)
    assert (seen.verdict, seen.metric, seen.decision.counts.share) == ("ode", 1.0, 0.0)
    assert audit(Pixels(ONCE), (x, y), methods=(), mask=~wrong).verdict == "ode"
    assert audit(Pixels(ONCE), (x, y, ~wrong), methods=(), population="all").decision.upper == 0.0


class Graph(nn.Module):
    """Diffusion on a ring, all nodes in one batch."""

    def __init__(self, nodes: int, solver: FixedStep = FINE) -> None:
        super().__init__()
        self.register_buffer(
            "mean", (torch.eye(nodes).roll(1, 0) + torch.eye(nodes).roll(-1, 0)) / 2
        )
        self.solver = solver

    def forward(self, x: Tensor) -> Tensor:
        return solve(lambda t, z: self.mean @ z - z, x, (0.0, 2.0), solver=self.solver).z


def graph(**how: Any) -> Audit:
    x = noise(360, 3)
    y = torch.full((360,), -100)
    y[300:] = torch.randint(0, 3, (60,), generator=torch.Generator().manual_seed(0))
    return audit(Graph(360), [(x, y)], methods=(), **how)


def test_only_nodes_that_have_a_target_or_are_not_masked_are_samples() -> None:
    found = graph()
    assert (found.n, found.verdict) == (60, "inconclusive")
    assert found.decision.needed == 299
    assert not next(
        each for each in found.preconditions if each.name == "independent samples"
    ).holds
    whole = graph(population="all")
    assert (whole.n, whole.verdict, whole.decision.level) == (60, "ode", 0)
    assert graph(mask=torch.arange(360) < 320).n == 20
    assert graph(groups=torch.arange(360) // 6).n == 10
    x = noise(360, 3)
    triple = audit(Graph(360), [(x, x.argmax(1), torch.arange(360) % 2 == 0)], methods=())
    assert triple.n == 180


def test_looks_that_are_planned_share_the_level() -> None:
    x = noise(400, 1)
    levels = [
        audit(decay(FINE), (x, x), methods=(), look=look).decision.level for look in (None, 1, 2)
    ]
    assert levels == [0.05, 0.025, 0.0125]
    bound = [
        audit(decay(FINE), (x, x), methods=(), look=look).decision.upper for look in (None, 1, 2)
    ]
    assert bound == sorted(bound)


def test_the_solver_of_many_blocks_is_told_in_a_line() -> None:
    def blocks(x: Tensor) -> Tensor:
        for k in range(12):
            x = solve(
                lambda t, z: -z, x, (0.0, 0.1 + 0.01 * k), solver=FixedStep("euler", n_steps=1)
            ).z
        return x

    x = noise(40, 1)
    found = audit(blocks, (x, x), methods=())
    assert "12 solves" in found.solver
    assert len(found.solver) < 100
    assert len(found.provenance["solver"]) == 12


def test_arrays_that_are_no_tensors_are_told_by_their_kind() -> None:
    class Array:
        __module__ = "jax.numpy"

        def __array__(self) -> Any:
            return np.zeros((3, 2))

    for data, told in (
        ((Array(), Array()), "JAX.*PyTorch"),
        ((np.zeros((3, 2)), np.zeros(3)), "from_numpy"),
    ):
        with pytest.raises(DataError, match=told):
            audit(decay(FINE), data)
        with pytest.raises(DataError, match=told):
            audit(decay(FINE), data[0])
