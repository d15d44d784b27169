"""What a number of flips decides."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trueode.evaluation import clopper_pearson
from trueode.evaluation.decision import decide, samples_needed


@given(st.integers(1, 3000), st.data(), st.sampled_from([0.001, 0.01, 0.05, 0.3]))
def test_the_bounds_decide(n: int, data: st.DataObject, margin: float) -> None:
    flips = data.draw(st.integers(0, n))
    found = decide(flips, n, margin)
    assert (found.lower, found.upper) == clopper_pearson(flips, n)
    assert (found.verdict == "ode") == (found.upper <= margin)
    assert (found.verdict == "solver-dependent") == (found.lower > margin)
    assert (found.verdict == "inconclusive") == bool(found.reason)


@pytest.mark.parametrize(
    ("flips", "n", "verdict"), [(0, 298, "inconclusive"), (0, 299, "ode"), (30, 1000, "solver-dependent")]
)
def test_at_one_per_cent(flips: int, n: int, verdict: str) -> None:
    assert decide(flips, n, 0.01).verdict == verdict


@pytest.mark.parametrize("share", [0.0, 0.002, 0.005, 0.02, 0.04, 0.5, 1.0])
def test_as_many_samples_as_are_needed_decide(share: float) -> None:
    needed = samples_needed(share, 0.01)
    assert needed is not None
    assert decide(round(share * needed), needed, 0.01).verdict != "inconclusive"


def test_a_share_at_the_margin_is_never_decided() -> None:
    assert samples_needed(0.01, 0.01) is None
    assert "too close to the margin" in decide(10, 1000, 0.01).reason
    assert decide(0, 100, 0.01).needed == 299


def test_samples_of_which_nothing_is_known_count_against_either() -> None:
    assert decide(0, 1000, 0.01, unknown=50).verdict == "inconclusive"
    assert decide(30, 1000, 0.01, unknown=900).verdict == "solver-dependent"
    assert decide(1, 1000, 0.01, unknown=1).verdict == "ode"
