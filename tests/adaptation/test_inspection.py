"""Flips on unseen inputs, for a certificate."""

from __future__ import annotations

import torch

from tests.evaluation.flows import CLASSES, EULER, NUMBERS, RK4, SERIES, Turn, circle, sides, turned
from trueode.adaptation import Certificate, FidelityRule, ModelInspection
from trueode.data import Split
from trueode.models import NeuralODE
from trueode.solvers import FixedStep


def test_it_counts_on_the_inputs_of_the_attempt() -> None:
    model = NeuralODE(Turn(), downstream=sides())
    x, asked = circle(300), []

    def inputs(attempt: int) -> torch.Tensor:
        asked.append(attempt)
        return x[: 100 * attempt]

    inspection = ModelInspection(model, inputs, CLASSES)
    assert (inspection.size(1), inspection.size(2)) == (100, 200)
    asked.clear()
    found = inspection.count(EULER, 2)
    changed = (model(x[:200], EULER).argmax(1) == 0) != (turned(x[:200])[:, 0] > 0)
    assert (found.n, found.flips) == (200, int(changed.sum()))
    assert asked == [], "the inputs of an attempt are asked for once"
    assert inspection.evaluations == found.evaluations
    inspection.count(RK4, 2)
    assert inspection.evaluations > found.evaluations + 200 * 32


def test_numbers_and_series() -> None:
    model = NeuralODE(Turn())
    x = torch.randn(80, 2)
    assert ModelInspection(model, lambda attempt: x, NUMBERS).count(EULER, 1).flips == 80
    assert ModelInspection(model, lambda attempt: x, NUMBERS).count(RK4, 1).flips == 0
    times = torch.linspace(0, 1, 5)
    split = Split(x, torch.zeros(80, 5, 2), times)
    assert ModelInspection(model, lambda attempt: split, SERIES).count(RK4, 1).flips == 0


def test_a_rule_certifies_a_model_in_any_loop() -> None:
    x = circle(1000)
    inspection = ModelInspection(
        NeuralODE(Turn(), downstream=sides()), lambda attempt: x, CLASSES, source="of noise"
    )
    answer = FidelityRule(FixedStep("rk4", n_steps=8), 0.01).certify(inspection)
    assert isinstance(answer, Certificate)
    assert answer.certified
    assert "of noise" in answer.sentence
