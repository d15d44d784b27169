"""Does performance depend on the solver?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ttest_1samp
from torch import Tensor

from tests.evaluation.flows import CLASSES, NUMBERS, Given, counted, logits
from trueode.evaluation import Answer, Performance, performance
from trueode.evaluation.statistics import mean_bounds, share_difference
from trueode.files import plain


def compared(
    own: Tensor, exact: Tensor, y: Tensor | None, other: Tensor | None = None, **fields: Any
) -> Performance:
    runnable = Given(own, exact, other, NUMBERS if own.shape[1] == 1 else CLASSES, y=y, **fields)
    return performance(runnable, *counted(runnable))


def labelled(n: int, b: int, c: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits and labels; b predictions are right only under the training solver, c only exactly.

    Returns:
        Logits under the training solver, logits under the exact flow, labels.
    """
    own, exact = torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.int64)
    own[b : b + c], exact[:b] = 1, 1
    return logits(own), logits(exact), torch.zeros(n, dtype=torch.int64)


@pytest.mark.parametrize(
    ("b", "c", "answer"),
    [
        (60, 0, Answer.SOLVER),
        (0, 60, Answer.EXACT),
        (2, 2, Answer.SAME),
        (30, 30, Answer.UNDECIDED),
        (15, 0, Answer.UNDECIDED),
    ],
)
def test_accuracy_is_better_with_the_solver_or_not(b: int, c: int, answer: Answer) -> None:
    found = compared(*labelled(1000, b, c))
    assert (found.answer, found.name, found.margin) == (answer, "accuracy", 0.01)
    assert (found.own, found.exact) == (1 - c / 1000, 1 - b / 1000)
    assert found.gain == pytest.approx((b - c) / 1000)
    assert (found.lower, found.upper) == share_difference((b, b), (c, c), 1000, 0.95)
    assert plain(found)["answer"] == answer.value


def test_what_is_unresolved_widens_the_bounds() -> None:
    own, exact, y = labelled(1000, 60, 20)
    other = exact.clone()
    other[50:70] = 1 - exact[50:70]  # unresolved: ten of each kind
    found = compared(own, exact, y, other)
    assert found.gain == pytest.approx(0.04)
    assert (found.lower, found.upper) == share_difference((50, 60), (10, 20), 1000, 0.95)
    other[500:520] = 1 - exact[500:520]  # unresolved, otherwise right in both
    assert compared(own, exact, y, other).upper > found.upper
    own[0:9] = torch.nan  # the training solver fails: these are wrong
    found = compared(own, exact, y)
    assert (found.lower, found.upper) == share_difference((51, 51), (20, 29), 1000, 0.95)


@pytest.mark.parametrize(("p", "q"), [(0.03, 0.01), (0.1, 0.1), (0.002, 0.0)])
def test_bounds_of_the_gain_hold(p: float, q: float) -> None:
    rng, n = np.random.default_rng(0), 500
    counts = rng.multinomial(n, (p, q, 1 - p - q), 20_000)[:, :2]
    pairs, times = np.unique(counts, axis=0, return_counts=True)
    bounds = np.array([share_difference((b, b), (c, c), n, 0.95) for b, c in pairs.tolist()])
    within = (bounds[:, 0] <= p - q) & (p - q <= bounds[:, 1])
    assert times[within].sum() / 20_000 >= 0.95


def test_blow_ups_are_wrong_and_drawn_predictions_count() -> None:
    own, exact, y = labelled(500, 0, 0)
    exact[:50] = torch.inf
    runnable = Given(own, exact, y=y)
    ran, flow, counts = counted(runnable)
    flow.blown_up[:50] = True
    counts = type(counts)(
        500, blown_up=50, drawn=counts.drawn, doubtful=torch.zeros(500, 1, dtype=torch.bool)
    )
    found = performance(runnable, ran, flow, counts)
    assert (found.own, found.exact, found.gain, found.answer) == (1.0, 0.9, 0.1, Answer.SOLVER)
    y = torch.zeros(200, 3, dtype=torch.int64)  # the drawn predictions count
    y[:, 2] = -100
    own, exact = torch.zeros(200, 3), torch.zeros(200, 3)
    exact[:, 0], exact[:, 2] = 1, 1
    found = compared(logits(own), logits(exact), y)
    assert (found.own, found.exact) == (1.0, 0.5)
    assert found.gain == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize(
    ("n", "share", "answer"),
    [
        (100, 0.5, Answer.SOLVER),
        (100, -0.5, Answer.EXACT),
        (100, 0.01, Answer.SAME),
        (100, 0.1, Answer.UNDECIDED),
        (99, 0.5, Answer.UNDECIDED),
    ],
)
def test_squared_errors(n: int, share: float, answer: Answer) -> None:
    errors = torch.rand(n, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    own, exact, y = errors.sqrt(), ((1 + share) * errors).sqrt(), torch.zeros(n, 1)
    found = compared(own, exact, y)
    assert (found.answer, found.name, found.margin) == (answer, "mse", 0.1)
    assert (found.own, found.exact) == pytest.approx(
        [float(x.square().mean()) for x in (own, exact)]
    )
    if n >= 100:
        gains = ((exact.square() - own.square()) / own.square().mean())[:, 0].tolist()
        assert (found.gain, found.lower, found.upper) == pytest.approx(mean_bounds(gains, 0.975))
        low, high = ttest_1samp(gains, 0).confidence_interval(0.95)
        assert (found.lower, found.upper) == pytest.approx((low, high))
        exact[0] += 1
        assert (
            compared(own, exact, y, exact - torch.eye(n)[0][:, None]).answer is Answer.UNDECIDED
        ), "one is unresolved"


def test_only_held_out_targets_and_known_metrics_decide() -> None:
    own, exact, y = labelled(1000, 90, 0)
    assert compared(own, exact, y, held_out=False) == Performance(
        Answer.UNDECIDED, "accuracy", 1.0, 0.91
    )
    runnable = Given(own, exact, y=y)
    found = performance(runnable, *counted(runnable), population="all")
    assert (found.lower, found.upper, found.answer) == (0.09, 0.09, Answer.SOLVER)
    found = compared(own, exact, None)
    assert (found.answer, found.own != found.own) == (Answer.UNDECIDED, True)

    def right(outputs: Tensor, y: Tensor) -> Tensor:
        return (outputs.argmax(1) == y).double()

    assert compared(own, exact, y, metric=right) == Performance(
        Answer.UNDECIDED, "right", 1.0, 0.91
    )
    pixels = torch.stack([y, y], 1)  # one value per sample, although each has two predictions
    found = compared(
        logits(pixels),
        logits(1 - pixels),
        pixels,
        metric=lambda outputs, y: right(outputs, y).mean(1),
    )
    assert (found.own, found.exact) == (1.0, 0.0)
