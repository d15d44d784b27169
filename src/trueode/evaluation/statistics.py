"""Exact bounds of a share from a count."""

from __future__ import annotations

from math import log


def clopper_pearson(count: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """One-sided exact bounds of the probability of an event seen ``count`` times among ``n``.

    Each of the two holds with ``confidence`` by itself. Source: C. J. Clopper & E. S. Pearson, Biometrika 26 (1934),
    404-413.

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
