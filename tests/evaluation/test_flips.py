"""Flips: counted against the exact flow."""

from __future__ import annotations

import pytest
import torch

from tests.evaluation.test_verdict import CLASSES, EULER, NUMBERS, RK4, Turn, circle, sides, turned
from trueode.data import Split
from trueode.evaluation import count_flips, evaluate, finer_solver
from trueode.evaluation.flips import compare_with_exact_flow
from trueode.models import NeuralODE
from trueode.solvers import Adaptive, FixedStep


def test_flips_are_those_of_the_known_flow() -> None:
    x = circle(200)
    model = NeuralODE(Turn(), downstream=sides())
    exact = turned(x)[:, 0] > 0
    own = model(x, EULER).argmax(1) == 0
    found = count_flips(model, Split(x, (~exact).long()), CLASSES, EULER)
    assert (found.n, found.flips) == (200, int((own != exact).sum()))
    assert found.flips > 50
    assert found.metric == 1.0, "the labels are those of the exact flow"
    assert count_flips(model, Split(x, (~exact).long()), CLASSES, RK4).flips == 0


def test_evaluations_are_those_of_both() -> None:
    x = circle(50)
    model = NeuralODE(Turn(), downstream=sides())
    split = Split(x, torch.zeros(50, dtype=torch.int64))
    own = evaluate(model, split, CLASSES, EULER, keep_outputs=True)
    exact = compare_with_exact_flow(model, split, CLASSES, EULER, own)
    assert count_flips(model, split, CLASSES, EULER).evaluations == exact.evaluations + 50


def test_where_the_solver_fails_all_flip() -> None:
    model = NeuralODE(lambda t, z: z**3, downstream=sides())
    x = 1e3 * torch.ones(4, 2)
    found = count_flips(model, Split(x, torch.zeros(4, dtype=torch.int64)), CLASSES, FixedStep("euler", n_steps=9))
    assert (found.n, found.flips) == (4, 4)


def test_constant_outputs_are_told() -> None:
    model = NeuralODE(lambda t, z: 0 * z)
    x = torch.ones(5, 2)
    assert count_flips(model, Split(x, x), NUMBERS, RK4).constant
    assert not count_flips(model, Split(torch.randn(5, 2), x), NUMBERS, RK4).constant


@pytest.mark.parametrize(
    ("solver", "n_steps", "expected"),
    [
        (FixedStep("euler", n_steps=100), 100, 100),
        (FixedStep("midpoint", n_steps=3), 3, 16),
        (FixedStep("rk4", n_steps=20), 20, 40),
        (Adaptive("dopri5", 1e-3, 1e-3), 9.5, 20),
    ],
)
def test_what_is_referred_to_is_finer(solver: FixedStep | Adaptive, n_steps: float, expected: int) -> None:
    assert finer_solver(solver, n_steps) == FixedStep("rk4", n_steps=expected)
