"""The certificate: a bound of the share of predictions that depend on the solver, for the model
that training ended with.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from trueode.evaluation import Decision, Flips, Status, decide, level_of, samples_for
from trueode.solvers import Solver

ATTEMPTS = 4


@dataclass(frozen=True)
class Certificate:
    """Whether a model is an ODE, up to a share of its predictions.

    Attributes:
        decision: the answer.
        sentence: the same in words.
        attempts: all that were made, the deciding one last.
    """

    decision: Decision
    sentence: str
    attempts: tuple[Decision, ...]

    @property
    def status(self) -> Status:
        """The answer in a word."""
        return self.decision.status

    @property
    def certified(self) -> bool:
        """Whether the model is an ODE, with confidence."""
        return self.status is Status.ODE

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        attempts = [attempt.to_dict() for attempt in self.attempts]
        return {
            "status": self.status.value,
            "sentence": self.sentence,
            "decision": self.decision.to_dict(),
            "attempts": attempts,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Certificate:
        """From plain values."""
        attempts = tuple(Decision.from_dict(attempt) for attempt in values["attempts"])
        return cls(Decision.from_dict(values["decision"]), values["sentence"], attempts)


class Certifier:
    """Attempts to certify models, one after another, at a level that they share.

    An attempt passes when the one-sided Clopper-Pearson upper bound of the share of predictions
    that change, or may, is at most ``fidelity``. The k-th attempt takes the level 0.05 / 2^k:
    whatever the number of attempts, a run ends with a wrong certificate in at most 5 % of the cases
    (union bound). This holds for inputs that are used again as well: what follows a failure must
    not depend on the number of flips, so that the models to be judged do not depend on the inputs.

    Args:
        fidelity: the share of predictions that may change.
        attempts: those made before.
        source: where the inputs come from, in words.
    """

    def __init__(
        self, fidelity: float, attempts: tuple[Decision, ...] = (), source: str = ""
    ) -> None:
        self.fidelity = fidelity
        self.attempts = attempts
        self.source = source

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
        reason = f"it needs at least {self.needed} inputs that training has not seen, there are {n}"
        decision = Decision(
            Status.INCONCLUSIVE,
            Flips(n),
            0.0,
            1.0,
            self.fidelity,
            level_of(self.number),
            self.needed,
            reason,
        )
        return Certificate(decision, f"not certified: {reason}", self.attempts)

    def judge(self, counts: Flips, solver: Solver) -> Certificate | None:
        """Make an attempt; None if it failed and another one may pass.

        Args:
            counts: of inputs that neither training nor the rule has seen.
            solver: that the model was judged with.
        """
        decision = replace(
            decide(counts, self.fidelity, level=level_of(self.number)), solver=str(solver)
        )
        if counts.constant:
            return Certificate(decision, f"not certified: {decision.reason}", self.attempts)
        self.attempts += (decision,)
        if decision.status is not Status.ODE:
            return None
        again = f", attempt {len(self.attempts)}" if len(self.attempts) > 1 else ""
        return Certificate(
            decision,
            f"certified: this model is an ODE with {solver}: {self._found(decision)}, at most {_share(decision.upper)} of all with "
            f"{_share(1 - decision.level)} confidence{again}",
            self.attempts,
        )

    def give_up(self, why: str) -> Certificate:
        """The answer when the last attempt failed and no other is made."""
        last, made = self.attempts[-1], len(self.attempts)
        counts = last.counts
        unresolved = f", {counts.unresolved} are unresolved" if counts.unresolved else ""
        return Certificate(
            last,
            f"not certified: {self._found(last)} with {last.solver}{unresolved}, up to {_share(last.upper)} of all where "
            f"{_share(self.fidelity)} are allowed, after {made} attempt{'s' * (made > 1)}; {why}",
            self.attempts,
        )

    def _found(self, decision: Decision) -> str:
        inputs = f" ({self.source})" if self.source else ""
        return f"{decision.counts.changed} of {decision.counts.n} predictions for unseen inputs{inputs} change under the exact flow"


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"
