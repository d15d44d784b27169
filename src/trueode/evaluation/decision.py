"""What a share of flips says at a margin: the decision behind every verdict."""

from __future__ import annotations

from dataclasses import dataclass

from trueode.evaluation.statistics import clopper_pearson, percent, samples_for

MOST = 1_000_000  # samples; where more would be needed, the share is too close to the margin


@dataclass(frozen=True)
class Decision:
    """What is decided.

    Attributes:
        verdict: ``"ode"``, ``"solver-dependent"`` or ``"inconclusive"``.
        n: samples.
        flips: predictions that differ from the reference.
        lower: bound of their share; it is larger with 95 % confidence.
        upper: bound of their share; it is smaller with 95 % confidence.
        needed: where inconclusive: the samples that would decide if the share stays; None if more than a million.
        reason: where inconclusive: why.
    """

    verdict: str
    n: int
    flips: int
    lower: float
    upper: float
    needed: int | None
    reason: str


def decide(flips: int, n: int, margin: float, unknown: int = 0) -> Decision:
    """``ode`` where the upper bound of the share of flips is at most the margin, ``solver-dependent`` where the lower one exceeds it.

    Args:
        flips: predictions that differ from the reference.
        n: samples.
        margin: share that is allowed.
        unknown: samples of which it is not known whether they do.
    """
    lower, upper = clopper_pearson(flips, n)[0], clopper_pearson(flips + unknown, n)[1]
    if upper <= margin:
        return Decision("ode", n, flips, lower, upper, None, "")
    if lower > margin:
        return Decision("solver-dependent", n, flips, lower, upper, None, "")
    needed = samples_needed(flips / n, margin)
    how_many = (
        f"about {needed} samples would decide" if needed else "the share is too close to the margin to be told apart"
    )
    reason = (
        f"the share of predictions that depend on the solver lies between {percent(lower)} and {percent(upper)}: "
        f"{how_many} at the margin of {percent(margin)}"
    )
    return Decision("inconclusive", n, flips, lower, upper, needed, reason)


def samples_needed(share: float, margin: float) -> int | None:
    """The samples from which a share is decided, if it stays as it is; None if more than a million would be."""

    def decided(n: int) -> bool:
        lower, upper = clopper_pearson(round(share * n), n)
        return upper <= margin or lower > margin

    high = samples_for(margin)
    while not decided(high):
        high *= 2
        if high > MOST:
            return None
    low = high // 2
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if decided(middle) else (middle, high)
    return high
