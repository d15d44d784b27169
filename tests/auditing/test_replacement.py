"""Our solvers as replacements for those of libraries."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from trueode.auditing.problem import Field, ForeignProblem, FoundSolver
from trueode.auditing.replacement import replace_by
from trueode.errors import UsageError
from trueode.solvers import Adaptive, FixedStep, OnGrid, solve

FOUND = FoundSolver("torchdiffeq", "euler", {"step_size": 0.125}, False, 1, "euler")
EULER = replace_by(FixedStep("euler", n_steps=4))


def problem(
    field: Field, times: list[float], breaks: tuple[float, ...] = (), z0: Tensor | None = None
) -> ForeignProblem:
    start = torch.ones(3, 2, dtype=torch.float64) if z0 is None else z0
    return ForeignProblem(
        field, start, torch.tensor(times, dtype=torch.float64), breaks, True, FOUND
    )


def decay(t: Tensor, z: Tensor) -> Tensor:
    return -z * torch.cos(t)


@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4", "dopri5"])
def test_equal_steps_are_those_of_solve(method: str) -> None:
    posed = problem(decay, [0.0, 1.0])
    states, solved = replace_by(FixedStep(method, n_steps=5))(posed)
    solution = solve(decay, posed.z0, (0.0, 1.0), solver=FixedStep(method, n_steps=5))
    assert torch.equal(states[0], posed.z0)
    torch.testing.assert_close(states[-1], solution.z, rtol=1e-14, atol=0)
    assert (solved.nfe, solved.n_steps, solved.n_rejected) == (solution.nfe, 5, 0)
    assert (solved.length, solved.status, solved.found) == (1.0, "success", FOUND)


@pytest.mark.parametrize(
    ("solver", "times", "steps"),
    [
        (FixedStep("euler", n_steps=10), torch.linspace(0, 1, 11).tolist(), 10),
        (FixedStep("euler", step_size=0.1), torch.linspace(0, 1, 11).tolist(), 10),
        (FixedStep("euler", n_steps=20), torch.linspace(0, 1, 11).tolist(), 20),
        (FixedStep("euler", n_steps=7), torch.linspace(0, 1, 11).tolist(), 10),
        (FixedStep("euler", n_steps=4), [0.0, 0.3, 1.0], 2 + 3),
        (FixedStep("euler", step_size=0.4), [2.0, 2.1, 3.0], 1 + 3),
        (FixedStep("euler", n_steps=3000), torch.linspace(5, 8, 1001).tolist(), 3000),
        (OnGrid("euler", (0.0, 0.25, 0.5, 1.0)), [0.0, 0.5, 0.75, 1.0], 4),
    ],
)
def test_steps_end_at_the_times_and_no_state_is_interpolated(
    solver: FixedStep | OnGrid, times: list[float], steps: int
) -> None:
    posed = problem(lambda t, z: torch.ones_like(z) * t, times)
    states, solved = replace_by(solver)(posed)
    assert (solved.n_steps, solved.nfe) == (steps, steps)
    # Euler up to one of the times alone reaches the same state
    for i, end in enumerate(times[1:], 1):
        alone, _ = replace_by(
            solver if len(times) < 3 else OnGrid("euler", _ends(solver, times, end))
        )(problem(posed.field, [times[0], end]))
        torch.testing.assert_close(states[i], alone[-1], rtol=1e-12, atol=1e-12)
        if i > 20:
            break


def _ends(solver: FixedStep | OnGrid, times: list[float], end: float) -> tuple[float, ...]:
    """The grid up to ``end``, as fractions of the interval up to it."""
    length = times[-1] - times[0]
    if isinstance(solver, OnGrid):
        points = {*times, *(times[0] + x * length for x in solver.grid if isinstance(x, float))}
    else:
        h = solver.step_size or length / (solver.n_steps or 1)
        points = {times[0]}
        for a, b in pairwise(times):
            n = max(1, math.ceil((b - a) / h - 1e-3))
            points |= {a + (b - a) * i / n for i in range(1, n)} | {b}
    inside = sorted(p for p in points if p <= end)
    return tuple((p - times[0]) / (end - times[0]) for p in inside)


def test_adaptive_solves_once_with_states_between() -> None:
    times = [0.0, 0.1, 0.7, 2.0]
    states, solved = replace_by(Adaptive("dopri5", 1e-10, 1e-10, per_sample=True))(
        problem(decay, times)
    )
    exact = torch.tensor(times, dtype=torch.float64).sin().neg().exp()
    torch.testing.assert_close(states, exact.view(-1, 1, 1).expand(-1, 3, 2), rtol=1e-8, atol=1e-8)
    alone = solve(
        decay,
        torch.ones(3, 2, dtype=torch.float64),
        (0.0, 2.0),
        solver=Adaptive("dopri5", 1e-10, 1e-10),
        save_at=times,
    )
    assert (solved.n_steps, solved.n_rejected, solved.nfe) == (
        alone.n_steps,
        alone.n_rejected,
        alone.nfe,
    )


@pytest.mark.parametrize(
    "solver",
    [
        FixedStep("rk4", n_steps=8),
        FixedStep("bosh3", n_steps=40),
        Adaptive("dopri5", 1e-9, 1e-9),
        Adaptive("tsit5", 1e-9, 1e-9),
    ],
)
@pytest.mark.parametrize("right", [True, False], ids=["t >= 0.3 jumps", "t > 0.3 jumps"])
def test_steps_end_at_breaks_and_see_one_side_of_the_jump(
    solver: FixedStep | Adaptive, right: bool
) -> None:
    def jumping(t: Tensor, z: Tensor) -> Tensor:
        after = t >= 0.3 if right else t > 0.3
        return torch.where(after, -3.0, 1.0) * torch.ones_like(z)

    states, solved = replace_by(solver)(problem(jumping, [0.0, 0.3, 0.5, 1.0], breaks=(0.3, 5.0)))
    wanted = (
        torch.tensor([1.0, 1.3, 0.7, -0.8], dtype=torch.float64).view(-1, 1, 1).expand(-1, 3, 2)
    )
    torch.testing.assert_close(states, wanted, rtol=1e-12, atol=1e-12)
    assert solved.n_rejected == 0


def test_a_break_between_times_is_no_state() -> None:
    states, solved = replace_by(FixedStep("euler", n_steps=2))(
        problem(decay, [0.0, 1.0], breaks=(0.25,))
    )
    assert states.shape == (2, 3, 2)
    assert solved.n_steps == 1 + 2


@pytest.mark.parametrize("solver", [FixedStep("euler", n_steps=3), Adaptive("dopri5", 1e-3, 1e-3)])
def test_intervals_without_length(solver: FixedStep | Adaptive) -> None:
    for times in ([2.0], [2.0, 2.0]):
        states, solved = replace_by(solver)(problem(decay, times))
        assert torch.equal(states, torch.ones(len(times), 3, 2, dtype=torch.float64))
        assert (solved.nfe, solved.n_steps, solved.length) == (0, 0, 0.0)


def test_failures_are_noted_and_states_are_nan_from_there() -> None:
    def exploding(t: Tensor, z: Tensor) -> Tensor:
        return z**2

    times = [0.0, 0.5, 2.0]
    states, solved = replace_by(Adaptive("dopri5", 1e-6, 1e-6, max_steps=60))(
        problem(exploding, times)
    )
    assert solved.status in ("max_steps", "step_underflow", "non_finite")
    assert solved.message
    assert states[:2].isfinite().all()
    torch.testing.assert_close(
        states[1], torch.full((3, 2), 2.0, dtype=torch.float64), rtol=1e-5, atol=0
    )
    assert states[2].isnan().all()
    states, solved = replace_by(FixedStep("euler", n_steps=50, max_steps=20))(problem(decay, times))
    assert solved.status == "max_steps"
    assert states[1:].isnan().all()
    assert solved.nfe == 0
    after = problem(lambda t, z: torch.where(t > 0.7, math.nan, 1.0) * z, times, breaks=(1.0, 1.5))
    states, solved = replace_by(FixedStep("euler", n_steps=20))(after)
    assert solved.status == "non_finite"
    assert states.shape == (3, 3, 2)
    assert states[2].isnan().all()


def test_what_cannot_stand_in_is_refused() -> None:
    with pytest.raises(UsageError, match="grid for each sample"):
        replace_by(OnGrid("euler", ((0.0, 0.0), (1.0, 1.0))))
    with pytest.raises(UsageError, match="complex"):
        EULER(problem(decay, [0.0, 1.0], z0=torch.ones(3, 2, dtype=torch.complex64)))
