"""Flips, counted against the exact flow."""

from __future__ import annotations

from collections.abc import Callable
from math import pi

import pytest
import torch

from tests.evaluation.flows import (
    ANGLE,
    NUMBERS,
    RK4,
    Given,
    circle,
    counted,
    logits,
    on,
    sides,
    turn,
    turned,
)
from tests.problems import states
from trueode.evaluation import Evaluation, count_flips, get_task
from trueode.evaluation.runnable import Part
from trueode.solvers import Adaptive, FixedStep, Solver


def test_flips_are_those_of_the_known_flow() -> None:
    """One Euler step turns by arctan(angle) instead of the angle."""
    own, exact, found = counted(turn(400))
    share = float(torch.tensor(ANGLE) - torch.tensor(ANGLE).atan()) / pi
    truth = own.outputs.argmax(1) != sides()(turned(circle(400))).argmax(1)
    assert (found.n, found.flips, found.unresolved, found.blown_up) == (400, int(truth.sum()), 0, 0)
    assert found.share == found.flips / 400 == pytest.approx(share, abs=0.02)
    assert found.evaluations >= exact.evaluations
    assert counted(turn(400, RK4))[2].flips == 0


def test_what_only_single_precision_changes_is_rounding() -> None:
    exact = torch.tensor([0, 0, 1, 1])
    own, in_double = torch.tensor([1, 1, 1, 0]), torch.tensor([0, 1, 1, 1])
    found = counted(Given(logits(own).float(), logits(exact), in_double=logits(in_double)))[2]
    assert (found.flips, found.rounding, found.changed, found.unresolved, found.share) == (
        1,
        2,
        1,
        0,
        0.25,
    )
    # a model whose rounding errors, but not the errors of its solver, reach the class boundary
    x, shift = torch.linspace(0.5, 2, 300)[:, None], 1e6

    def downstream(z: torch.Tensor) -> torch.Tensor:
        moved = (z + shift) - shift - 0.7
        return torch.cat([moved, -moved], 1)

    found = counted(
        on(lambda t, z: -z, x, downstream=downstream, solver=FixedStep("rk4", n_steps=20))
    )[2]
    assert (found.flips, found.unresolved) == (0, 0)
    assert found.rounding > 0


def test_samples_for_which_the_training_solver_fails_are_unresolved() -> None:
    exact = logits(torch.tensor([0, 1, 0]))
    own = torch.cat([exact[:1], exact[1:2] * torch.nan, exact[1:2]])
    found = counted(Given(own, exact))[2]
    assert (found.flips, found.unresolved) == (1, 1)
    found = counted(turn(30, Adaptive("dopri5", 1e-6, 1e-6, max_steps=2)))[2]
    assert (found.changed, found.unresolved) == (0, 30)
    assert "training solver fails" in found.trouble


def test_blow_ups_are_told_apart() -> None:
    x = torch.linspace(-1.0, 0.2, 100, dtype=torch.float64)[:, None]
    x[:10] = 3.0
    found = counted(on(lambda t, z: z * z, x, downstream=lambda z: torch.cat([z + 10, -z], 1)))[2]
    assert (found.flips, found.blown_up, found.changed, found.share) == (0, 10, 10, 0.1)
    # blow-ups do not hide the gaps of other samples
    found = counted(on(lambda t, z: z * z, x, task=NUMBERS))[2]
    assert (found.blown_up, found.unresolved, found.flips > 40) == (10, 0, True)
    x = torch.tensor([[3.0], [-1.0]], dtype=torch.float64)  # the second ends on the boundary
    found = counted(on(lambda t, z: z * z, x, downstream=lambda z: torch.cat([z, -z - 1], 1)))[2]
    assert (found.blown_up, found.unresolved, "do not agree" in found.trouble) == (1, 1, True)


def test_steps_that_a_batch_shares_are_taken_again_by_whole_batches() -> None:
    whole = []
    for solver in (Adaptive("bosh3", 0.3, 0.3), FixedStep("euler", n_steps=1)):
        runnable = turn(40, solver, batch_size=16)
        own, exact, _ = counted(runnable)
        run = runnable.run

        def noted(
            solver: Solver | None, part: Part, run: Callable[..., Evaluation] = run
        ) -> Evaluation:
            whole.append(part.whole)
            return run(solver, part)

        runnable.run = noted
        count_flips(runnable, None, own, exact)
    assert whole == [True, False]


def test_the_share_is_the_mean_over_samples() -> None:
    """One of two predictions of sample 1 changes, none of sample 2, the only one of sample 3."""
    exact = torch.zeros(4, 2, dtype=torch.int64)
    own = torch.tensor([[1, 0], [0, 0], [1, 1], [1, 1]])
    y = torch.tensor([[0, 0], [0, 0], [0, -100], [-100, -100]])
    runnable = Given(logits(own), logits(exact), y=y)
    found = counted(runnable)[2]
    assert (found.n, found.share) == (3, 0.5)
    assert found.flips == int((own != exact).flatten()[found.drawn].sum())
    runnable.groups = torch.tensor([0, 0, 0, 1])
    found = counted(runnable)[2]
    assert (found.n, found.share) == (1, pytest.approx(2 / 5))


def test_constant_outputs_cannot_be_judged() -> None:
    equal, half = torch.ones(5, 2), torch.cat([states(5), torch.full((5, 1), 3.0)], 1)
    for x, task, constant in (
        (equal, NUMBERS, True),
        (half, NUMBERS, True),
        (states(5), NUMBERS, False),
        (equal, get_task("regression", absolute=0.1), False),
    ):
        assert counted(Given(x, x, task=task))[2].constant is constant
