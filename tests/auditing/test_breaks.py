"""Jumps and longest steps that the user names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.auditing.test_replacement import FOUND, decay, problem
from trueode import Adaptive, FixedStep, OnGrid, audit, solve
from trueode.auditing.replacement import replace_by
from trueode.errors import UsageError

X = torch.randn(320, 2, generator=torch.Generator().manual_seed(2))
JUMP, SPEED = 0.4271, 10.0
TURN = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])


class Jumping(nn.Module):
    """Rotates one way, and after a given time ten times as fast the other way."""

    def __init__(self, span: tuple[float, float] = (0.0, 1.0)) -> None:
        super().__init__()
        self.span = span

    def forward(self, x: Tensor) -> Tensor:
        def field(t: Tensor, z: Tensor) -> Tensor:
            return torch.where(t < JUMP, 1.0, -SPEED) * (z @ TURN.to(z))

        return solve(field, x, self.span, solver=FixedStep("euler", n_steps=64)).z


@pytest.mark.parametrize("span", [(0.0, 1.0), (1.0, 0.0)], ids=["forwards", "backwards"])
def test_a_field_that_jumps_at_a_time_that_is_given_has_an_exact_flow(
    span: tuple[float, float],
) -> None:
    found = audit(Jumping(span), (X, X), methods=(), breaks=[JUMP])
    assert found.exact is not None
    assert (found.n, found.decision.counts.unresolved, found.verdict) == (
        320,
        0,
        "solver-dependent",
    )
    angle = torch.tensor((span[1] - span[0]) * (JUMP - SPEED * (1 - JUMP)), dtype=torch.float64)
    exact = X.double() @ torch.linalg.matrix_exp(angle * TURN.double())
    torch.testing.assert_close(found.exact.outputs, exact, rtol=0, atol=2e-3)


@pytest.mark.parametrize("span", [(0.0, 1.0), (1.0, 0.0)], ids=["forwards", "backwards"])
def test_trajectories_that_are_drawn_see_the_jump(span: tuple[float, float]) -> None:
    angles = []
    for breaks in ([], [JUMP]):
        found = audit(Jumping(span), (X, (X[:, 0] > 0).long()), methods=("euler",), breaks=breaks)
        assert found.paths is not None
        first, last = (
            torch.view_as_complex(found.paths.exact[k].double().contiguous()) for k in (0, -1)
        )
        angles.append((last / first).angle().double())
    exact = torch.tensor((span[1] - span[0]) * (JUMP - SPEED * (1 - JUMP)), dtype=torch.float64)
    exact = torch.remainder(exact + torch.pi, 2 * torch.pi) - torch.pi
    assert float((angles[1] - exact).abs().max()) < 5e-3
    assert float((angles[0] - exact).abs().max()) > 1e-2


def test_the_training_solver_is_audited_as_it_is() -> None:
    how: dict[str, Any] = {
        "solver": FixedStep("euler", n_steps=2),
        "methods": (),
        "task": "regression",
    }
    plain, told = (
        audit(Jumping(), X[:20], **how, breaks=(JUMP,)),
        audit(Jumping(), X[:20], **how, breaks=(JUMP,), max_step=0.1),
    )
    assert plain.own.nfe == told.own.nfe == 2
    assert told.own.outputs.equal(plain.own.outputs)


@pytest.mark.parametrize(
    "solver", [FixedStep("euler", n_steps=2), OnGrid("euler", (0.0, 0.9, 1.0))]
)
@pytest.mark.parametrize(("breaks", "times"), [((0.3, 7.0), [0.0, 1.0]), ((0.7,), [-1.0, 0.0])])
def test_steps_end_at_breaks_and_none_is_too_long(
    solver: FixedStep | OnGrid, breaks: tuple[float, ...], times: list[float]
) -> None:
    seen = list[float]()

    def field(t: Tensor, z: Tensor) -> Tensor:
        seen.append(float(t) - times[0])
        return -z

    replace_by(solver, breaks=breaks, max_step=0.25)(problem(field, times))
    assert any(t == pytest.approx(0.3, abs=1e-12) for t in seen)
    ends = torch.tensor([*seen, 1.0])
    assert float(ends.diff().max()) <= 0.25 + 1e-6


def test_a_longest_step_of_adaptive_solvers() -> None:
    def steps(**how: Any) -> float:
        _, solved = replace_by(Adaptive("dopri5", 1e-2, 1e-2), **how)(problem(decay, [0.0, 1.0]))
        assert solved.found is FOUND
        return solved.n_steps

    assert steps() < 10
    assert steps(max_step=0.05) >= 20


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"breaks": (float("nan"),)}, "breaks must be finite times"),
        ({"breaks": ("soon",)}, "breaks must be times"),
        ({"max_step": 0}, "max_step must be a positive number"),
        ({"max_step": float("inf")}, "max_step must be a positive number"),
    ],
)
def test_what_is_no_time_and_no_step_is_refused(how: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        audit(Jumping(), (X, X), **how)
