"""The certificate: a bound of the share of predictions that depend on the solver, for the model that training ended with."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from trueode.evaluation import Flips, clopper_pearson, samples_for

LEVEL = 0.05
ATTEMPTS = 4


def level_of(attempt: int) -> float:
    """The error probability that an attempt may spend, counted from 1: half of what is left, so that all share 5 %."""
    return LEVEL * 0.5**attempt


@dataclass(frozen=True)
class Attempt:
    """One attempt to certify.

    Attributes:
        solver: that the model was judged with.
        n: inputs looked at; neither training nor the rule has seen them.
        flips: those whose prediction under the exact flow is another one, or that never settle.
        level: error probability of the bound.
        upper: bound of the share of flips; the share is smaller with confidence 1 - level.
    """

    solver: str
    n: int
    flips: int
    level: float
    upper: float


@dataclass(frozen=True)
class Certificate:
    """Whether a model is an ODE, up to a share of its predictions.

    Attributes:
        status: ``"certified"``, ``"not_certified"`` or ``"cannot_certify"`` (too few inputs, or constant outputs).
        fidelity: the share of flips that is allowed.
        sentence: all of it in words.
        attempts: all that were made, the deciding one last.
    """

    status: str
    fidelity: float
    sentence: str
    attempts: tuple[Attempt, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Certificate:
        """From plain values."""
        return cls(**{**values, "attempts": tuple(Attempt(**attempt) for attempt in values["attempts"])})


class Certifier:
    """Attempts to certify models, one after another, at a level that they share.

    An attempt passes when the one-sided Clopper-Pearson upper bound of the share of flips is at most ``fidelity``. The
    k-th attempt takes the level 0.05 / 2^k: whatever the number of attempts, a run ends with a wrong certificate in at
    most 5 % of the cases (union bound). This holds for inputs that are used again as well: what follows a failure must
    not depend on the number of flips, so that the models to be judged do not depend on the inputs.

    Args:
        fidelity: the share of flips that is allowed.
        attempts: those made before.
    """

    def __init__(self, fidelity: float, attempts: tuple[Attempt, ...] = ()) -> None:
        self.fidelity = fidelity
        self.attempts = attempts

    @property
    def number(self) -> int:
        """The number of the next attempt, counted from 1."""
        return len(self.attempts) + 1

    @property
    def needed(self) -> int:
        """The number of inputs from which the next attempt can pass."""
        return samples_for(self.fidelity, 1 - level_of(self.number))

    def refuse(self, n: int) -> Certificate | None:
        """The answer when there are too few inputs for any hope, else None."""
        if n >= self.needed:
            return None
        return self._end(
            "cannot_certify",
            f"cannot certify: needs n ≥ {self.needed} inputs that training has not seen, there are {n}",
        )

    def judge(self, found: Flips) -> Certificate | None:
        """Make an attempt; None if it failed.

        Args:
            found: flips among inputs that neither training nor the rule has seen.
        """
        if found.constant:
            return self._end("cannot_certify", "cannot certify: the model's output is constant in a component")
        level = level_of(self.number)
        upper = clopper_pearson(found.flips, found.n, 1 - level)[1]
        self.attempts += (Attempt(str(found.solver), found.n, found.flips, level, upper),)
        if upper > self.fidelity:
            return None
        again = f", attempt {len(self.attempts)}" if len(self.attempts) > 1 else ""
        return self._end(
            "certified",
            f"certified: this model is an ODE with {found.solver}: {found.flips} of {found.n} unseen predictions depend on "
            f"the solver, at most {_share(upper)} of all with {_share(1 - level)} confidence{again}",
        )

    def give_up(self, why: str) -> Certificate:
        """The answer when the last attempt failed and no other is made."""
        last, made = self.attempts[-1], len(self.attempts)
        return self._end(
            "not_certified",
            f"not certified: {last.flips} of {last.n} unseen predictions depend on the solver {last.solver}, up to "
            f"{_share(last.upper)} of all where {_share(self.fidelity)} are allowed, after {made} attempt{'s' * (made > 1)}; {why}",
        )

    def _end(self, status: str, sentence: str) -> Certificate:
        return Certificate(status, self.fidelity, sentence, self.attempts)


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"
