"""The rule ``fidelity``: the cheapest solver that is accurate enough, and a final certificate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite, isnan
from typing import Any

from trueode.adaptation.certificate import ATTEMPTS, Certificate, Certifier
from trueode.adaptation.ladder import Ladder, error_ratio
from trueode.adaptation.rule import Comparison, Extrapolated, Inspection, Progress, Refine, Signal
from trueode.evaluation import Decision
from trueode.solvers import Adaptive, Solver, from_plain, to_plain

WEIGHT = 0.2  # of a new check in the running mean
SAFE = 0.5  # a cheaper solver must keep to this share of the target
PATIENCE = 20  # checks of a trial
HALF = 2.0  # a failed attempt at a certificate divides the error by this
LONGER = 200  # iterations of training after a failed attempt
NEW_TRIAL: dict[str, Any] = {"candidate": None, "checks": 0, "total": 0.0, "saved": 0.0}


@dataclass(frozen=True)
class _State:
    """The state of the rule.

    Attributes:
        solver: the training solver.
        error: running mean of its error estimates; None: there is none yet.
        trial: the number of the method on trial.
        candidate: the cheaper solver on trial, chosen at the trial's first check.
        checks: checks of the trial so far.
        patience: checks that a trial takes.
        total: sum of the candidate's errors in the trial.
        saved: sum of the field evaluations that the candidate would have saved.
        risen: whether the last change was to a finer solver.
        attempts: the attempts at a certificate.
    """

    solver: Solver
    error: float | None = None
    trial: int = 0
    candidate: Solver | None = None
    checks: int = 0
    patience: int = PATIENCE
    total: float = 0.0
    saved: float = 0.0
    risen: bool = True
    attempts: tuple[Decision, ...] = ()


class FidelityRule:
    """Adapts the number of steps, or the tolerance, to estimates of the training solver's error.

    A check estimates the error as the difference between the training solver's results and
    extrapolated ones. The extrapolation combines these results with those of the same method at
    twice the steps (or at a tolerance 2^p times tighter, p the order).

    * **Finer by theory.** If the running mean of the error exceeds the target, the next training
      solver is the coarsest one that meets the target, assuming that errors fall with the order of
      the method; it is at most twice as fine. With ``others``, the rule takes another method
      instead if it costs less and measures well enough.
    * **Coarser by measurement.** A cheaper solver is on trial beside the training solver. The rule
      takes it if the mean of its own error over twenty checks is at most half of the target.
      Accuracy can fall off a cliff, which theory does not predict.

    The reasons for the constants: a new check has the weight 0.2 in the running mean, because a
    check of few samples is noisy, but a single one far above the target must count. Half of the
    target separates the two thresholds by the effect of one rk4 step in six, which prevents
    oscillation. Twenty checks of 64 samples measure a flip share of half a per cent with an error
    of a third; shorter trials would be decided by chance. If a coarser solver had to be given up
    again, the next trials are twice as long, which ends any oscillation. The target is the wanted
    share of flips times 0.2 + 2/q, with q = p for steps, and q = 1 for tolerances, because errors
    are proportional to them. If the error falls steeply, accuracy is cheap and a cliff is near. If
    it falls slowly, accuracy is expensive and is added at the end, if the certificate needs it.

    At the end, the model is certified against its exact flow on inputs that neither training nor
    the rule has seen (see `Certifier`). If that fails, the rule halves the error of the solver,
    independently of the number of flips. Training continues for 200 iterations, and the new model
    is judged, with at most four attempts.

    Args:
        start: the solver to start with: `FixedStep` with a number of steps, or `Adaptive`.
        fidelity: the wanted share of flips, and the margin of the certificate.
        target: converts a share of flips to a difference of the measure; None: the same number. See
            ``Task.target``.
        others: solvers of other methods; with them, the rule also chooses the method.
        ladder: limits of steps and tolerances.
    """

    def __init__(
        self,
        start: Solver,
        fidelity: float = 0.01,
        *,
        target: Callable[[float], float] | None = None,
        others: Sequence[Solver] = (),
        ladder: Ladder | None = None,
    ) -> None:
        self._state = _State(start)
        self._fidelity = fidelity
        self._target = target or float
        self._methods = (start, *others) if others else ()
        self._ladder = ladder or Ladder()
        self.signal: Signal | None = None
        self.notice = ""

    @property
    def solver(self) -> Solver:
        """The training solver."""
        return self._state.solver

    def propose(self, measure: Comparison, progress: Progress) -> Solver:
        """Refine the solver if its mean error exceeds the target, else continue the trial of a
        cheaper one.
        """
        self.notice = ""
        state = self._state
        reference = Extrapolated(state.solver)
        found = measure(state.solver, reference)
        if isnan(found.difference):
            self.notice = (
                "a check was inconclusive because its outputs are constant. The solver does not "
                "change."
            )
            return self.solver
        error, target = found.difference, self._allowed(state.solver)
        if state.error is not None:
            error = (1 - WEIGHT) * state.error + WEIGHT * error
        self.signal = Signal(error, target)
        state = replace(state, error=error)
        finer = None
        if error > target:
            finer = self._ladder.finer(state.solver, error / target)
            if finer is None:
                self.notice = (
                    f"{state.solver} is the finest allowed solver, but its error exceeds the "
                    f"target: {self._ladder.advice(state.solver)}."
                )
        if finer is not None:
            state = self._refined(state, finer, measure, reference, found.candidate_nfe)
        elif not (state.attempts and state.attempts[-1].upper > self._fidelity):
            # after a failed attempt at a certificate, the solver must not become coarser
            state = self._tried(state, measure, reference, found.candidate_nfe)
        self._state = state if isfinite(error) else replace(state, error=None)
        return self.solver

    def _allowed(self, solver: Solver) -> float:
        """The largest error that a training solver may have.

        It is the same for all methods that the rule chooses from, to favour none.
        """
        order = max(
            1 if isinstance(each, Adaptive) else each.order for each in (solver, *self._methods)
        )
        return self._target(self._fidelity * (0.2 + 2 / order))

    def _refined(
        self, state: _State, finer: Solver, measure: Comparison, reference: Extrapolated, nfe: float
    ) -> _State:
        """Take a finer solver of the same method, or a cheaper one of another method that measures
        well enough.
        """
        assert state.error is not None
        ratio = error_ratio(state.solver, finer)
        best, error = finer, state.error * ratio
        expected = nfe * ratio ** (-1 / state.solver.order)
        for method in self._methods:
            other = self._ladder.cheaper(method, expected)
            if other is None or other.name == state.solver.name:
                continue
            found = measure(other, reference)
            if found.candidate_nfe < expected and found.difference <= min(
                SAFE * self._allowed(other), error
            ):
                best, error = other, found.difference
        patience = state.patience if state.risen else 2 * state.patience
        return replace(state, solver=best, error=error, **NEW_TRIAL, patience=patience, risen=True)

    def _tried(
        self, state: _State, measure: Comparison, reference: Extrapolated, nfe: float
    ) -> _State:
        """Make one more check of the trial.

        After the last check, take the solver on trial or begin the trial of the next one.
        """
        solver = state.candidate if state.checks else self._on_trial(state, nfe)
        state = replace(state, candidate=solver, checks=state.checks + 1)
        if solver is not None:
            most = SAFE * self._allowed(solver) * state.patience  # limit of the sum of errors
            if state.total <= most:  # else the candidate has failed already
                found = measure(solver, reference)
                total, saved = (
                    state.total + found.difference,
                    state.saved + nfe - found.candidate_nfe,
                )
                state = replace(state, total=total, saved=saved)
                if state.checks == state.patience and total <= most and saved > 0:
                    return replace(
                        state,
                        solver=solver,
                        error=total / state.checks,
                        trial=0,
                        **NEW_TRIAL,
                        risen=False,
                    )
        if state.checks < state.patience:
            return state
        return replace(state, trial=(state.trial + 1) % (1 + len(self._methods)), **NEW_TRIAL)

    def _on_trial(self, state: _State, nfe: float) -> Solver | None:
        """The cheaper solver to try: a coarser one of the same method, or the finest one of another
        method that costs less.
        """
        if state.trial == 0:
            return self._ladder.coarser(state.solver)
        other = self._methods[state.trial - 1]
        return None if other.name == state.solver.name else self._ladder.cheaper(other, nfe)

    def certify(self, inspection: Inspection) -> Certificate | Refine:
        """Judge the trained model.

        Returns:
            A certificate, or the solver to train on with before the next attempt.
        """
        state = self._state
        certifier = Certifier(self._fidelity, state.attempts, inspection.source)
        n = inspection.size(certifier.number)
        answer = certifier.refuse(n) or certifier.judge(
            inspection.count(state.solver, certifier.number), state.solver
        )
        self._state = replace(state, attempts=certifier.attempts)
        if answer is not None:
            return answer
        if len(certifier.attempts) >= ATTEMPTS:
            return certifier.give_up("a longer training or a larger --fidelity may help")
        if n < certifier.needed:
            return certifier.give_up(f"another attempt needs n ≥ {certifier.needed}")
        finer = self._ladder.finer(state.solver, HALF)
        if finer is None:
            return certifier.give_up(self._ladder.advice(state.solver))
        self._state = replace(self._state, solver=finer, error=None, **NEW_TRIAL, risen=True)
        return Refine(finer, LONGER)

    def state_dict(self) -> dict[str, Any]:
        """The state as plain values."""
        state = self._state
        candidate = None if state.candidate is None else to_plain(state.candidate)
        attempts = [attempt.to_dict() for attempt in state.attempts]
        return {
            **vars(state),
            "solver": to_plain(state.solver),
            "candidate": candidate,
            "attempts": attempts,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved state."""
        attempts = tuple(Decision.from_dict(attempt) for attempt in state["attempts"])
        candidate = state["candidate"] and from_plain(state["candidate"])
        self._state = _State(
            **{
                **state,
                "solver": from_plain(state["solver"]),
                "candidate": candidate,
                "attempts": attempts,
            }
        )
