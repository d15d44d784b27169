"""Exact bounds of a share, bounds of paired differences, and the slope of a line."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum, log, nan, sqrt

FEWEST = 100  # values that a t-interval needs


def clopper_pearson(count: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """One-sided exact bounds of the probability of an event seen ``count`` times among ``n``.

    Each of the two bounds holds with ``confidence``. Source: C. J. Clopper & E. S. Pearson,
    Biometrika 26 (1934), 404-413.

    Returns:
        The lower and the upper bound.
    """
    from scipy.special import betaincinv

    alpha = 1 - confidence
    lower = float(betaincinv(count, n - count + 1, alpha)) if count else 0.0
    upper = float(betaincinv(count + 1, n - count, confidence)) if count < n else 1.0
    return lower, upper


def samples_for(margin: float, confidence: float = 0.95) -> int:
    """The number of samples without an event from which the upper bound is at most ``margin``."""
    n = int(log(1 - confidence) / log(1 - margin))
    while clopper_pearson(0, n, confidence)[1] > margin:
        n += 1
    return n


def share_difference(
    first: tuple[int, int], second: tuple[int, int], n: int, confidence: float
) -> tuple[float, float]:
    """Bounds of the difference of two probabilities, from counts among the same ``n`` samples.

    Each bound holds with ``confidence``. A count is given as its least and largest value. Each
    probability has Clopper-Pearson bounds at half of the error (union bound), so the two events may
    depend on each other.
    """
    half = (1 + confidence) / 2
    low = clopper_pearson(first[0], n, half)[0] - clopper_pearson(second[1], n, half)[1]
    high = clopper_pearson(first[1], n, half)[1] - clopper_pearson(second[0], n, half)[0]
    return low, high


def mean_bounds(values: Sequence[float], confidence: float) -> tuple[float, float, float]:
    """The mean of two or more values, and the bounds of its t-interval.

    Each bound holds with ``confidence``.
    """
    mean, deviation = mean_deviation(values)
    return mean, *t_bounds(mean, deviation, len(values), confidence)


def mean_deviation(values: Sequence[float]) -> tuple[float, float]:
    """The mean and the standard deviation; NaN if there are too few values."""
    n = len(values)
    mean = fsum(values) / n if n else nan
    return mean, sqrt(fsum((x - mean) ** 2 for x in values) / (n - 1)) if n > 1 else nan


def t_bounds(mean: float, deviation: float, n: int, confidence: float) -> tuple[float, float]:
    """The bounds of a mean from a sample of two or more, each with ``confidence``."""
    half = t_quantile(n, confidence) * deviation / sqrt(n)
    return mean - half, mean + half


def t_quantile(n: int, confidence: float) -> float:
    """The quantile of Student's t for a mean of ``n`` values."""
    from scipy.special import stdtrit

    return float(stdtrit(n - 1, confidence))


def slope(
    x: Sequence[float], y: Sequence[float], confidence: float = 0.95
) -> tuple[float, float, float]:
    """The slope of the least squares line through three or more points, and the bounds of its
    two-sided t-interval.
    """
    from scipy.special import stdtrit

    n = len(x)
    mean_x, mean_y = sum(x) / n, sum(y) / n
    sxx = sum((a - mean_x) ** 2 for a in x)
    b = sum((a - mean_x) * (c - mean_y) for a, c in zip(x, y, strict=True)) / sxx
    residual = sum((c - mean_y - b * (a - mean_x)) ** 2 for a, c in zip(x, y, strict=True))
    half = float(stdtrit(n - 2, 0.5 + confidence / 2)) * sqrt(residual / (n - 2) / sxx)
    return b, b - half, b + half


def percent(share: float) -> str:
    """A share in per cent, with one decimal place."""
    return f"{100 * share:.1f} %"


def rough_percent(share: float) -> str:
    """A share in per cent, with two digits."""
    return f"{float(f'{100 * share:.2g}'):g} %"
