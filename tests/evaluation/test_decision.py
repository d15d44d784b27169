"""The verdict that follows from a number of flips."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from math import ceil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.flows import Given, counted, logits
from trueode.errors import UsageError
from trueode.evaluation import Decision, Flips, Status, clopper_pearson, decide, level_of
from trueode.evaluation.decision import LEVEL, samples_needed

DRAWS = 20_000
ALLOWED = LEVEL + 4 * (LEVEL * (1 - LEVEL) / DRAWS) ** 0.5  # of wrong answers among the draws


@given(st.integers(1, 3000), st.data(), st.sampled_from([0.001, 0.01, 0.05, 0.3]))
def test_the_bounds_decide(n: int, data: st.DataObject, margin: float) -> None:
    flips = data.draw(st.integers(0, n))
    blown_up = data.draw(st.integers(0, n - flips))
    unresolved = data.draw(st.integers(0, n - flips - blown_up))
    found = decide(Flips(n, flips, blown_up, unresolved), margin)
    assert found.lower == clopper_pearson(flips + blown_up, n)[0]
    assert found.upper == clopper_pearson(flips + blown_up + unresolved, n)[1]
    assert (found.status is Status.ODE) == (found.upper <= margin)
    assert (found.status is Status.SOLVER_DEPENDENT) == (found.lower > margin)
    assert (found.status is Status.INCONCLUSIVE) == bool(found.reason)
    without = decide(Flips(n, flips, blown_up), margin)
    assert (found.status is Status.SOLVER_DEPENDENT) == (without.status is Status.SOLVER_DEPENDENT)
    written = replace(found, counts=replace(found.counts, share=0.0))  # NaN equals nothing
    assert Decision.from_dict(json.loads(json.dumps(written.to_dict()))) == written


@settings(deadline=None)
@given(
    st.integers(1, 5000), st.data(), st.sampled_from([0.01, 0.1]), st.sampled_from([0.05, 0.0125])
)
def test_as_many_samples_as_are_needed_decide(
    n: int, data: st.DataObject, margin: float, level: float
) -> None:
    flips = data.draw(st.integers(0, ceil(3 * margin * n)).filter(lambda flips: flips <= n))
    unresolved = data.draw(st.integers(0, min(n - flips, ceil(margin * n))))
    found = decide(Flips(n, flips, unresolved=unresolved), margin, level=level)
    if found.needed is not None:
        assert found.status is Status.INCONCLUSIVE
        more = [round(count / n * found.needed) for count in (flips, flips + unresolved)]
        scaled = Flips(found.needed, more[0], unresolved=more[1] - more[0])
        assert decide(scaled, margin, level=level).status is not Status.INCONCLUSIVE
        assert str(found.needed) in found.reason
        assert found.needed > n
    elif found.status is Status.INCONCLUSIVE and not unresolved:
        assert samples_needed(flips / n, margin, level) is None
        assert "too close" in found.reason


def test_more_samples_are_needed_than_there_are() -> None:
    # 12 of 542 would decide, 12 of 563 do not: the nearest whole count of flips falls and rises
    found = decide(Flips(563, 12), level=0.0125)
    assert found.status is Status.INCONCLUSIVE
    assert found.needed is not None
    assert found.needed > 563


def test_why_it_is_undecided() -> None:
    assert decide(Flips(100)).needed == 299
    assert decide(Flips(1000, 10)).needed is None
    assert "unresolved: stiff" in decide(Flips(1000, unresolved=50, trouble="stiff")).reason
    assert decide(Flips(1000, constant=True), population="all").status is Status.INCONCLUSIVE
    # the unresolved samples decide, so more samples do not help
    found = decide(Flips(1000, 5, unresolved=10))
    assert (found.needed, "unresolved" in found.reason) == (None, True)


def test_all_there_is_needs_no_bounds() -> None:
    cases = (
        (2, 0, "ode"),
        (3, 0, "solver-dependent"),
        (2, 1, "inconclusive"),
        (3, 1, "solver-dependent"),
    )
    for flips, unresolved, status in cases:
        found = decide(Flips(200, flips, unresolved=unresolved), population="all")
        assert (found.status, found.level) == (status, 0.0)
        assert (found.lower, found.upper) == (flips / 200, (flips + unresolved) / 200)


@pytest.mark.parametrize("margin", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_a_margin_is_a_share(margin: float) -> None:
    with pytest.raises(UsageError, match="margin"):
        decide(Flips(100), margin)
    with pytest.raises(UsageError, match="population"):
        decide(Flips(100), population="none")


# error probabilities if the true share equals the margin


@cache
def answers(n: int, margin: float, level: float) -> tuple[int, int]:
    """The most flips for the verdict ODE, and the fewest for solver-dependent."""
    statuses = [
        decide(Flips(n, k), margin, level=level).status
        for k in range(min(n, ceil(5 * margin * n) + 20) + 1)
    ]
    ode, dependent = (
        statuses.count(Status.ODE) - 1,
        len(statuses) - statuses.count(Status.SOLVER_DEPENDENT),
    )
    assert statuses == sorted(
        statuses, key=[Status.ODE, Status.INCONCLUSIVE, Status.SOLVER_DEPENDENT].index
    )
    return ode, dependent


@pytest.mark.parametrize(
    ("n", "margin"), [(300, 0.01), (1000, 0.01), (4000, 0.01), (100, 0.1), (37, 0.3)]
)
def test_one_look_is_wrong_in_five_per_cent_at_most(n: int, margin: float) -> None:
    flips = np.random.default_rng(n).binomial(n, margin, DRAWS)
    ode, dependent = answers(n, margin, LEVEL)
    assert (flips <= ode).mean() <= ALLOWED
    assert (flips >= dependent).mean() <= ALLOWED


@pytest.mark.parametrize("n", [150, 300, 1000])
def test_all_looks_together_are_wrong_in_five_per_cent_at_most(n: int) -> None:
    """Each look doubles the samples, earlier ones included, until the verdict is decided."""
    rng = np.random.default_rng(n)
    flips, decided = np.zeros(DRAWS, dtype=int), np.zeros(DRAWS, dtype=int)
    seen = 0
    for look in (1, 2, 3, 4):
        size = n * 2 ** (look - 1)
        flips += rng.binomial(size - seen, 0.01, DRAWS)
        seen = size
        ode, dependent = answers(size, 0.01, level_of(look))
        decided = np.where(
            decided != 0, decided, np.where(flips <= ode, 1, np.where(flips >= dependent, -1, 0))
        )
    assert 0 < (decided == 1).mean() <= ALLOWED
    assert 0 < (decided == -1).mean() <= ALLOWED


def test_predictions_of_one_sample_may_depend_on_one_another() -> None:
    """In 2 % of the samples two of four predictions change together.

    The error rates hold with one prediction drawn per sample, but not with all predictions pooled.
    """
    n, k, rng = 400, 4, np.random.default_rng(0)
    share = np.where(rng.random((DRAWS, n)) < 0.02, 0.5, 0.0)
    changed = rng.random((DRAWS, n)) < share  # whether the drawn prediction changes
    ode, dependent = answers(n, 0.01, LEVEL)
    flips = changed.sum(1)
    assert (flips <= ode).mean() <= ALLOWED
    assert (flips >= dependent).mean() <= ALLOWED
    pooled = answers(n * k, 0.01, LEVEL)
    whole = (k * share).sum(1)
    assert (whole <= pooled[0]).mean() > 0.05
    # the count uses such a draw
    rows = torch.arange(n) < 200
    own = (rows[:, None] & (torch.arange(k) < 2)).long()
    found = counted(Given(logits(own), logits(torch.zeros_like(own))))[2]
    assert (found.n, found.share) == (n, 0.25)
    assert found.flips / n == pytest.approx(0.25, abs=0.06)
