"""What a number of flips says at a margin: the decision behind every verdict."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from trueode.errors import UsageError
from trueode.evaluation.flips import Flips
from trueode.evaluation.statistics import clopper_pearson, percent, samples_for

LEVEL = 0.05
MARGIN = 0.01
MOST = 1_000_000  # samples; where more would be needed, the share is too close to the margin
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
    """What is decided.

    Attributes:
        status: the answer.
        counts: what it follows from.
        lower: bound of the share of samples that flip or blow up; it is larger with confidence 1 -
            ``level``.
        upper: bound of the share of those that do, or may; it is smaller with confidence 1 -
            ``level``.
        margin: share that is allowed.
        level: error probability of each bound; 0 where all there is has been looked at.
        needed: where inconclusive for want of samples: those that would decide if the share stays;
            None if more than a million.
        reason: where inconclusive: why, and what to do.
        solver: what is judged, in words; empty where it is clear.
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

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**vars(self), "status": self.status.value, "counts": self.counts.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Decision:
        """From plain values."""
        return cls(
            **{**values, "status": Status(values["status"]), "counts": Flips(**values["counts"])}
        )


def level_of(look: int | None) -> float:
    """The error probability of each bound at a look, counted from 1, of several at one model: all
    looks share 5 %.

    None is the only look there will be.
    """
    return LEVEL if look is None else LEVEL * 0.5**look


def check_margin(margin: float) -> None:
    """Check that a margin is a share.

    Raises:
        UsageError: it is not.
    """
    if not 0 < margin < 1:
        raise UsageError(
            f"margin must lie between 0 and 1, got {margin!r}: 0.01 allows one prediction in a hundred to change."
        )


def decide(
    counts: Flips, margin: float = MARGIN, *, level: float = LEVEL, population: str = "sample"
) -> Decision:
    """``ode`` where at most a margin of the predictions change or may change, ``solver-dependent``
    where more do.

    The bounds are one-sided, each at ``level`` (Clopper & Pearson): the two answers exclude one
    another. Unresolved samples may prevent ``ode``; they never make ``solver-dependent``.

    Args:
        counts: of the samples.
        margin: share that is allowed.
        level: error probability of each bound.
        population: ``"sample"``, or ``"all"``: there are no other samples, and shares need no
            bounds.

    Raises:
        UsageError: a margin or population that is none.
    """
    check_margin(margin)
    if population not in POPULATIONS:
        raise UsageError(f"population must be 'sample' or 'all', got {population!r}.")
    n, changed, most = counts.n, counts.changed, counts.changed + counts.unresolved
    whole = population == "all" or counts.trajectory is not None  # a single trajectory is no sample
    lower = changed / n if whole else clopper_pearson(changed, n, 1 - level)[0]
    upper = most / n if whole else clopper_pearson(most, n, 1 - level)[1]

    def ended(status: Status, needed: int | None = None, reason: str = "") -> Decision:
        return Decision(
            status, counts, lower, upper, margin, 0.0 if whole else level, needed, reason
        )

    if counts.constant:
        return ended(
            Status.INCONCLUSIVE,
            reason="an output is the same for all samples, down to rounding: no gap can be measured by it. Give a tolerance in the "
            "units of the outputs (absolute=…), or leave that output out",
        )
    if upper <= margin:
        return ended(Status.ODE)
    if lower > margin:
        return ended(Status.SOLVER_DEPENDENT)
    if counts.unresolved and (
        whole or changed <= margin * n < most or clopper_pearson(changed, n, 1 - level)[1] <= margin
    ):
        return ended(
            Status.INCONCLUSIVE,
            reason=f"{counts.unresolved} of {n} samples are unresolved{counts.trouble and f': {counts.trouble}'}",
        )
    needed = samples_needed((changed if changed > margin * n else most) / n, margin, level)
    how = (
        f"about {needed} samples would decide, ones that have not been looked at" if needed
        else "the share is too close to the margin to be told apart"
    )  # fmt: skip
    reason = f"the share of predictions that change lies between {percent(lower)} and {percent(upper)}: {how}"
    return ended(Status.INCONCLUSIVE, needed, f"{reason} (allowed: {percent(margin)})")


def samples_needed(share: float, margin: float, level: float = LEVEL) -> int | None:
    """The samples from which a share is decided, if it stays as it is; None if more than a million
    would be.
    """

    def decided(n: int) -> bool:
        lower, upper = clopper_pearson(round(share * n), n, 1 - level)
        return upper <= margin or lower > margin

    high = samples_for(margin, 1 - level)
    while not decided(high):
        high *= 2
        if high > MOST:
            return None
    low = high // 2
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if decided(middle) else (middle, high)
    return high
