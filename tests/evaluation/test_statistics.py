"""Exact bounds of a share."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, linregress, t, ttest_1samp

from trueode.evaluation import clopper_pearson
from trueode.evaluation.statistics import mean_bounds, samples_for, share_difference, slope


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 3000), st.floats(0, 1))
def test_bounds_are_those_of_the_two_sided_interval_at_90_percent(n: int, part: float) -> None:
    count = round(part * n)
    exact = binomtest(count, n).proportion_ci(confidence_level=0.90, method="exact")
    assert clopper_pearson(count, n) == pytest.approx((exact.low, exact.high), rel=1e-6, abs=1e-9)


@given(st.integers(1, 500), st.data(), st.floats(0.5, 0.999))
def test_what_was_seen_is_just_as_improbable_as_allowed_at_the_bounds(
    n: int, data: st.DataObject, confidence: float
) -> None:
    count = data.draw(st.integers(0, n))
    lower, upper = clopper_pearson(count, n, confidence)
    assert 0 <= lower <= count / n <= upper <= 1
    if count:
        assert binom.sf(count - 1, n, lower) == pytest.approx(1 - confidence, rel=1e-6)
    if count < n:
        assert binom.cdf(count, n, upper) == pytest.approx(1 - confidence, rel=1e-6)


@given(st.floats(0.002, 0.9), st.floats(0.6, 0.99))
def test_samples_for_is_the_smallest_number_that_is_enough(
    margin: float, confidence: float
) -> None:
    n = samples_for(margin, confidence)
    assert clopper_pearson(0, n, confidence)[1] <= margin
    assume(n > 1)
    assert clopper_pearson(0, n - 1, confidence)[1] > margin


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 400), st.integers(0, 100), st.integers(0, 400), st.integers(0, 100))
def test_the_bounds_of_a_difference_are_those_of_both_shares(
    b: int, more: int, c: int, others: int
) -> None:
    low, high = share_difference((b, b + more), (c, c + others), 1000, 0.95)
    bounds = [binomtest(k, 1000).proportion_ci(0.95, "exact") for k in (b, c + others, b + more, c)]
    assert low == pytest.approx(bounds[0].low - bounds[1].high, rel=1e-6, abs=1e-9)
    assert high == pytest.approx(bounds[2].high - bounds[3].low, rel=1e-6, abs=1e-9)
    assert share_difference((c, c + others), (b, b + more), 1000, 0.95) == pytest.approx(
        (-high, -low)
    )


@pytest.mark.parametrize("n", [2, 100])
def test_bounds_of_a_mean_are_those_of_student(n: int) -> None:
    values = np.random.default_rng(n).normal(size=n)
    low, high = ttest_1samp(values, 0).confidence_interval(0.9)
    assert mean_bounds(values.tolist(), 0.95) == pytest.approx((values.mean(), low, high))


@pytest.mark.parametrize("n", [3, 4, 9])
def test_slope_and_its_interval_are_those_of_linear_regression(n: int) -> None:
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=n).tolist(), rng.normal(size=n).tolist()
    found = linregress(x, y)
    half = float(t.ppf(0.975, n - 2)) * found.stderr
    assert slope(x, y) == pytest.approx(
        (found.slope, found.slope - half, found.slope + half), rel=1e-9
    )
