"""The sentences of verdicts."""

from __future__ import annotations

import pytest
import torch

from trueode.evaluation import Answer, Decision, Flips, Performance, Status, decide, sentence
from trueode.evaluation.decision import MARGIN
from trueode.evaluation.trajectory import Trajectory

MANY = decide(Flips(1000, 300))


def said(
    decision: Decision, answer: Answer = Answer.UNDECIDED, advice: str = "", **values: float
) -> str:
    return sentence(decision, Performance(answer, "accuracy", **values), "euler x 4", advice=advice)


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (Answer.SOLVER, "NOT an ODE"),
        (Answer.EXACT, "too coarse"),
        (Answer.SAME, "does not"),
        (Answer.UNDECIDED, "undecided"),
    ],
)
def test_only_performance_says_that_it_is_no_ode(answer: Answer, word: str) -> None:
    text = said(MANY, answer, "rk4 x 8")
    assert word in text
    assert ("NOT" in text) == (answer is Answer.SOLVER)
    assert "300 of 1000" in text
    assert ("rk4 x 8" in text) == (answer in (Answer.EXACT, Answer.SAME))


def test_what_else_is_said() -> None:
    text = said(decide(Flips(1000, 2), level=0.0125), own=0.9, exact=0.89)
    for part in (
        "behaves as an ODE",
        "2 of 1000",
        "98.75 %",
        "accuracy 90.0 % with euler x 4",
        "89.0 % under the exact",
    ):
        assert part in text
    assert "confidence" not in said(decide(Flips(1000, 2), population="all"))
    assert "between 1.0 % and 20.0 %" in said(MANY, lower=0.01, upper=0.2)
    assert "ceases to exist for 40 of 1000" in said(decide(Flips(1000, 3, 40)))
    assert decide(Flips(100)).reason in said(decide(Flips(100)))


@pytest.mark.parametrize("margin", [0.01, 0.05])
@pytest.mark.parametrize("counts", [Flips(1000, k) for k in (1, 10, 30, 300)])
def test_another_margin_than_the_usual_one_is_told(counts: Flips, margin: float) -> None:
    found = decide(counts, margin)
    told = margin != MARGIN or found.status is Status.INCONCLUSIVE
    assert said(found).count("allowed: ") == told


@pytest.mark.parametrize(
    ("horizon", "word"), [(2.0, "up to the end"), (1.0, "t = 1"), (-torch.inf, "at no time")]
)
def test_a_trajectory_has_its_horizon(horizon: float, word: str) -> None:
    times = torch.tensor([0.0, 1.0, 2.0])
    found = decide(
        Flips(1, int(horizon < 2), trajectory=Trajectory(times, times, times, horizon, 2.0))
    )
    assert word in said(found)
