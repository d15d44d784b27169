"""The decision behind every verdict: from counted flips to bounds, and to an answer."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import ceil
from typing import Any

from trueode.errors import UsageError
from trueode.evaluation.flips import Flips
from trueode.evaluation.likelihood import Paired
from trueode.evaluation.statistics import FEWEST, clopper_pearson, percent, samples_for

LEVEL = 0.05
MARGIN = 0.01
MISSING = 0.01  # share of the samples that a mean may leave out
MOST = 1_000_000  # samples; if more are needed, the share is too close to the margin
POPULATIONS = ("sample", "all")


class Status(str, Enum):
    """The answer to the question whether a model is an ODE."""

    ODE = "ode"
    SOLVER_DEPENDENT = "solver-dependent"
    INCONCLUSIVE = "inconclusive"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Decision:
    """The answer to the question whether a model is an ODE, with its bounds.

    Attributes:
        status: the answer.
        counts: the counts from which it follows.
        lower: lower bound of the share of samples that flip or blow up, with confidence
            1 - ``level``. Where a mean decides (``counts.mean``), its lower bound.
        upper: upper bound of the share of samples that flip, blow up or are unresolved, with
            confidence 1 - ``level``. Where a mean decides, its upper bound.
        margin: the allowed share or mean.
        level: error probability of each bound; 0 if there are no other samples.
        needed: the number of samples that would decide if the share stays the same; None if it is
            more than a million, or if samples are not what is missing.
        reason: if inconclusive: why, and what to do.
        solver: the judged solver, in words; may be empty.
    """

    status: Status
    counts: Flips
    lower: float
    upper: float
    margin: float
    level: float = LEVEL
    needed: int | None = None
    reason: str = ""
    solver: str = ""

    @property
    def most(self) -> float:
        """Upper bound of the share, or of the size of the mean."""
        return max(self.upper, -self.lower)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**vars(self), "status": self.status.value, "counts": self.counts.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Decision:
        """From plain values."""
        return cls(
            **{
                **values,
                "status": Status(values["status"]),
                "counts": Flips.from_dict(values["counts"]),
            }
        )


def level_of(look: int | None) -> float:
    """The error probability of each bound at one of several looks at a model.

    All looks together share 5 %.

    Args:
        look: the number of the look, counted from 1; None: there is only one look.
    """
    return LEVEL if look is None else LEVEL * 0.5**look


def check_margin(margin: float) -> None:
    """Check that a margin lies between 0 and 1.

    Raises:
        UsageError: it does not.
    """
    if not 0 < margin < 1:
        raise UsageError(
            f"margin must lie between 0 and 1, got {margin!r}: 0.01 allows one prediction in a "
            "hundred to change."
        )


def decide(
    counts: Flips, margin: float = MARGIN, *, level: float = LEVEL, population: str = "sample"
) -> Decision:
    """Decide whether a model is an ODE, from the number of predictions that change.

    The answer is ``ode`` if at most the margin of the predictions change or may change, and
    ``solver-dependent`` if more than the margin change. The bounds are one-sided (Clopper &
    Pearson), each at ``level``, because the two answers exclude one another. Unresolved samples can
    prevent ``ode`` and never cause ``solver-dependent``.

    For densities, the mean change of the log density decides, and for samplers the RMS error of the
    samples. The answer is ``ode`` if both bounds of its t-interval lie within the margin, and
    ``solver-dependent`` if they exclude it. This needs 100 samples. Up to 1 % of the samples may be
    missing, with confidence; more than 1 % that blow up are ``solver-dependent``.

    Args:
        counts: the counted predictions.
        margin: the allowed share; for densities, bits per dimension.
        level: error probability of each bound.
        population: ``"sample"``; or ``"all"`` if there are no other samples, so that the share
            needs no bounds.

    Raises:
        UsageError: the margin or the population is invalid.
    """
    check_margin(margin)
    if population not in POPULATIONS:
        raise UsageError(f"population must be 'sample' or 'all', got {population!r}.")
    if counts.mean is not None and not counts.constant:
        return _by_mean(counts, counts.mean, margin, 0.0 if population == "all" else level)
    n, changed, most = counts.n, counts.changed, counts.changed + counts.unresolved
    whole = population == "all" or counts.trajectory is not None  # one trajectory has no statistics
    lower = changed / n if whole else clopper_pearson(changed, n, 1 - level)[0]
    upper = most / n if whole else clopper_pearson(most, n, 1 - level)[1]

    def ended(status: Status, needed: int | None = None, reason: str = "") -> Decision:
        return Decision(
            status, counts, lower, upper, margin, 0.0 if whole else level, needed, reason
        )

    if counts.constant:
        return ended(
            Status.INCONCLUSIVE,
            reason="an output is the same for all samples, down to rounding: no gap can be "
            "measured by it. Pass a tolerance in the units of the outputs (absolute=…), or leave "
            "that output out",
        )
    if upper <= margin:
        return ended(Status.ODE)
    if lower > margin:
        return ended(Status.SOLVER_DEPENDENT)
    if counts.unresolved and (
        whole or changed <= margin * n < most or clopper_pearson(changed, n, 1 - level)[1] <= margin
    ):
        why = f": {counts.trouble}" if counts.trouble else ""
        return ended(
            Status.INCONCLUSIVE, reason=f"{counts.unresolved} of {n} samples are unresolved{why}"
        )
    needed = samples_needed((changed if changed > margin * n else most) / n, margin, level, n)
    how = (
        f"about {needed} new samples would decide" if needed
        else "the share is too close to the margin to be told apart"
    )  # fmt: skip
    reason = (
        f"the share of predictions that change lies between {percent(lower)} and "
        f"{percent(upper)}: {how}"
    )
    return ended(Status.INCONCLUSIVE, needed, f"{reason} (allowed: {percent(margin)})")


def _by_mean(counts: Flips, mean: Paired, margin: float, level: float) -> Decision:
    """Decide by a mean over samples; at level 0 the samples are the whole population."""
    n, limit = counts.n, mean.limit(margin)
    lower, upper = mean.bounds(level)

    def ended(status: Status, needed: int | None = None, reason: str = "") -> Decision:
        return Decision(status, counts, lower, upper, limit, level, needed, reason)

    def share(count: int) -> tuple[float, float]:
        return clopper_pearson(count, n, 1 - level) if level and count else (count / n, count / n)

    missing = counts.unresolved + counts.blown_up
    if share(counts.blown_up)[0] > MISSING:
        return ended(Status.SOLVER_DEPENDENT)
    if share(missing)[1] > MISSING:
        why = f": {counts.trouble}" if counts.trouble else ""
        gone = f" and {counts.blown_up} blow up" if counts.blown_up else ""
        return ended(
            Status.INCONCLUSIVE,
            reason=f"{counts.unresolved} of {n} samples are unresolved{gone}{why}. Up to "
            f"{percent(MISSING)} may be left out of the mean, with confidence",
        )
    if mean.n < FEWEST and level:
        return ended(
            Status.INCONCLUSIVE,
            FEWEST,
            f"a mean over {mean.n} samples has no reliable bounds: {FEWEST} are needed",
        )
    if -limit <= lower and upper <= limit:
        return ended(Status.ODE)
    if lower > limit or upper < -limit:
        return ended(Status.SOLVER_DEPENDENT)
    samples = mean.needed(margin, level)
    needed = ceil(samples) if samples <= MOST else None
    how = (
        f"about {needed} new samples would decide" if needed
        else "it is too close to the margin to be told apart"
    )  # fmt: skip
    return ended(
        Status.INCONCLUSIVE,
        needed,
        f"{mean.name} lies between {mean.told(lower)} and {mean.told(upper)}: {how} (allowed: "
        f"{mean.told(limit)})",
    )


def samples_needed(share: float, margin: float, level: float = LEVEL, given: int = 0) -> int | None:
    """The number of samples, more than those given, that would decide a share that stays the same;
    None above a million.
    """

    def decided(n: int) -> bool:
        lower, upper = clopper_pearson(round(share * n), n, 1 - level)
        return upper <= margin or lower > margin

    high = max(samples_for(margin, 1 - level), given + 1)
    while not decided(high):
        if high >= MOST:
            return None
        high = min(2 * high, MOST)
    low = max(high // 2, given)
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if decided(middle) else (middle, high)
    return high
