"""The certificate: a bound of the share of predictions that depend on the solver."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from trueode.evaluation import Decision, Flips, Status, Task, decide, get_task, level_of
from trueode.solvers import Solver

ATTEMPTS = 4


@dataclass(frozen=True)
class Certificate:
    """Whether a model is an ODE, up to a share of its predictions.

    Attributes:
        decision: the answer, with its counts and bounds.
        sentence: the answer in words.
        attempts: the decisions of all attempts, the last one decisive.
    """

    decision: Decision
    sentence: str
    attempts: tuple[Decision, ...]

    @property
    def status(self) -> Status:
        """The status of the decision."""
        return self.decision.status

    @property
    def certified(self) -> bool:
        """Whether the model is certified to be an ODE."""
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
    """Attempts to certify the models of one run; all attempts share an error probability of 5 %.

    An attempt passes if the one-sided Clopper-Pearson upper bound of the share of predictions that
    change, or may change, is at most ``fidelity``; for densities, if both bounds of the mean change
    of the log density are, in bits per dimension. The k-th attempt has the level 0.05 / 2^k. Any
    number of attempts ends with a wrong certificate in at most 5 % of all runs (union bound). This
    also holds if inputs are used again, provided that the reaction to a failure does not depend on
    the number of flips: then the later models do not depend on the inputs.

    Args:
        fidelity: the share of predictions that may change.
        attempts: the decisions of earlier attempts.
        source: the origin of the inputs, in words.
        task: the task of the model, on which the number of inputs that are needed depends; None:
            classification.
    """

    def __init__(
        self,
        fidelity: float,
        attempts: tuple[Decision, ...] = (),
        source: str = "",
        task: Task | None = None,
    ) -> None:
        self.fidelity = fidelity
        self.attempts = attempts
        self.source = source
        self.task = get_task("classification") if task is None else task

    @property
    def number(self) -> int:
        """The number of the next attempt, counted from 1."""
        return len(self.attempts) + 1

    @property
    def needed(self) -> int:
        """The least number of inputs with which the next attempt can pass."""
        return self.task.fewest(self.fidelity, level_of(self.number))

    def refuse(self, n: int) -> Certificate | None:
        """The answer if there are too few inputs to pass, else None."""
        if n >= self.needed:
            return None
        reason = f"it needs at least {self.needed} inputs that training has not seen; there are {n}"
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
            counts: the counted predictions for inputs that neither training nor the rule has seen.
            solver: the solver of the model.
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
            f"certified: this model is an ODE with {solver}: {self._found(decision)}, at most "
            f"{_bound(decision, decision.most)} with {_share(1 - decision.level)} confidence"
            f"{again}",
            self.attempts,
        )

    def give_up(self, why: str) -> Certificate:
        """The answer if the last attempt failed and no other follows."""
        last, made = self.attempts[-1], len(self.attempts)
        counts = last.counts
        unresolved = f", {counts.unresolved} are unresolved" if counts.unresolved else ""
        return Certificate(
            last,
            f"not certified: {self._found(last)} with {last.solver}{unresolved}, up to "
            f"{_bound(last, last.most)} where {_bound(last, self.fidelity, '')} are allowed, after "
            f"{made} attempt{'s' * (made > 1)}; {why}",
            self.attempts,
        )

    def _found(self, decision: Decision) -> str:
        inputs, counts = f" ({self.source})" if self.source else "", decision.counts
        if counts.mean is not None:
            return (
                f"{counts.mean.name} of {counts.mean.n} unseen inputs{inputs} is "
                f"{counts.mean.told(counts.mean.estimate)}"
            )
        return (
            f"{counts.changed} of {counts.n} predictions for unseen inputs{inputs} change under "
            "the exact flow"
        )


def _bound(decision: Decision, value: float, of_all: str = " of all") -> str:
    """A bound in the units of the decision."""
    mean = decision.counts.mean
    return f"{_share(value)}{of_all}" if mean is None else mean.told(value)


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"
