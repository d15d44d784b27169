"""The comparisons of solvers on a batch that a rule sees during training."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trueode.adaptation import PaperStepRule, Progress
from trueode.data import Batch, Split, Unseen
from trueode.distributed import Ranks
from trueode.evaluation import Task, get_task
from trueode.models import NeuralODE
from trueode.solvers import FixedStep, Solver
from trueode.training.checks import Checks, accuracy_difference, prediction_difference

ALONE = Ranks(0, 1, torch.device("cpu"))
CLASSES, NUMBERS = get_task("classification"), get_task("regression")
COARSE, FINE = (FixedStep("euler", n_steps=n) for n in (1, 8))


def state_of(model: NeuralODE, solver: Solver, iteration: int = 50) -> Any:
    return SimpleNamespace(model=model, solver=solver, iteration=iteration)


def compare(model: NeuralODE, x: Tensor, checks: Checks, solver: Solver) -> Any:
    output, solution = model(x, solver, return_solution=True)
    y = torch.zeros(len(x), dtype=torch.int64) if checks.task is CLASSES else x
    return checks.measure(state_of(model, solver), Batch(x, y), len(x), output, solution.nfe)[0]


def paper(task: Task) -> Checks:
    return Checks(task, ALONE, accuracy_difference(task, ALONE))


def unseen(x: Tensor, size: int = 100) -> Unseen:
    """Unseen samples from ``x``; attempt k takes those of ``x`` rolled by k."""
    y = torch.zeros(len(x), dtype=torch.int64)
    return Unseen(
        Split(x, y), size, lambda attempt: Split(x.roll(attempt, 0)[:size], y[:size]), "noise"
    )


class Seeing(nn.Module):
    """A field that records the states at which it was evaluated."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        self.seen.append(z.detach().clone())
        return -self.weight * z


def test_a_solver_that_fails_is_refused_and_training_goes_on() -> None:
    """At the limit of stability, a step that is 10 % larger overflows."""
    model = NeuralODE(
        lambda t, z: -(z**3), downstream=lambda z: torch.cat([z, -z], 1), t=(0.0, 39.0)
    )
    rule = PaperStepRule("euler", 39.0, 1.95)
    larger = FixedStep("euler", step_size=2.145)
    compared = compare(model, torch.tensor([[1.0], [0.9]]), paper(CLASSES), rule.solver)
    assert compared(larger, rule.solver).difference == float("inf")
    before = rule.solver
    assert rule.propose(compared, Progress(50, 100)).step_size <= before.step_size


@pytest.mark.parametrize(
    ("difference", "nothing"), [(accuracy_difference, 0.0), (prediction_difference, float("nan"))]
)
def test_equal_outputs_are_no_evidence(difference: Any, nothing: float) -> None:
    """A single sample has no spread, to which a difference could be related."""
    model = NeuralODE(lambda t, z: -z)
    checks = Checks(NUMBERS, ALONE, difference(NUMBERS, ALONE))
    found = compare(model, torch.ones(1, 2), checks, COARSE)(COARSE, FINE).difference
    assert found == pytest.approx(nothing, nan_ok=True)
    assert compare(model, torch.randn(4, 2), checks, COARSE)(COARSE, FINE).difference > 0.9


def test_the_training_batch_costs_nothing_under_the_training_solver() -> None:
    measure = compare(NeuralODE(Seeing()), torch.randn(4, 2), paper(NUMBERS), COARSE)
    assert measure(COARSE, FINE).candidate_nfe == 1
    assert measure.nfe == 8


def test_an_output_that_was_computed_in_another_way_is_not_compared() -> None:
    model, x = NeuralODE(Seeing()), torch.randn(4, 2)
    measure, _ = paper(NUMBERS).measure(state_of(model, COARSE), Batch(x, x), len(x), None, 1)
    assert measure(COARSE, FINE).candidate_nfe == 1
    assert measure.nfe == 9


def test_held_out_inputs_are_taken_in_turn_and_counted() -> None:
    pool, field = torch.arange(10.0)[:, None] + 1, Seeing()
    checks = Checks(
        NUMBERS,
        ALONE,
        prediction_difference(NUMBERS, ALONE),
        "held_out",
        unseen(pool),
        size=4,
        interval=50,
    )
    met = []
    for iteration in (50, 100, 150):
        field.seen.clear()
        measure, n = checks.measure(
            state_of(NeuralODE(field), COARSE, iteration),
            Batch(-pool, pool),
            10,
            torch.zeros(10, 1),
            1.0,
        )
        measure(COARSE, FINE)
        assert (n, measure.nfe) == (4, 9)
        met.append(field.seen[0].flatten().tolist())
    assert met == [[5, 6, 7, 8], [9, 10, 1, 2], [3, 4, 5, 6]]


def test_ranks_share_the_held_out_inputs() -> None:
    pool = torch.arange(10.0)[:, None]
    parts = []
    for rank in range(3):
        checks = Checks(
            NUMBERS,
            Ranks(rank, 3, torch.device("cpu")),
            lambda *_: 0.0,
            "held_out",
            unseen(pool),
            size=4,
        )
        batch, n = checks._control(1)
        assert n == 4
        parts += batch.x.flatten().tolist()
    assert parts == [4, 5, 6, 7]


def test_noise_is_small_the_same_when_repeated_and_another_at_each_check() -> None:
    x = 3 * torch.randn(500, 2)
    checks = Checks(NUMBERS, ALONE, prediction_difference(NUMBERS, ALONE), "noise", seed=1)
    noise = [checks._noisy(Batch(x, x), len(x), iteration).x - x for iteration in (50, 50, 100)]
    assert torch.equal(noise[0], noise[1])
    assert not torch.equal(noise[0], noise[2])
    assert 0.25 < float(noise[0].std()) < 0.35
    single = torch.ones(1, 1)
    assert torch.equal(checks._noisy(Batch(single, single), 1, 50).x, single)
