"""The rule ``fidelity``: the cheapest solver that is accurate enough, and a final certificate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite, isnan
from typing import Any

from trueode.adaptation.certificate import ATTEMPTS, Certificate, Certifier
from trueode.adaptation.ladder import Ladder, error_ratio
from trueode.adaptation.rule import (
    Comparison,
    Evidence,
    Extrapolated,
    Inspection,
    Progress,
    Refine,
    Signal,
)
from trueode.evaluation import Decision
from trueode.solvers import Adaptive, Solver, from_plain, to_plain

WEIGHT = 0.2  # of a new check in the running mean
SAFE = 0.5  # a cheaper solver must keep to this share of the flips that the target allows
PATIENCE = 20  # checks of a trial
HALF = 2.0  # failed attempts at a certificate divide the error by this, its square, its cube
LONGER = 200  # iterations of training after a failed attempt
# With a penalty in the loss: the largest factor by which a change of solver reduces the error, the
# factor on the target, and the ratio of steps in checks, which the penalty never compares.
GENTLE, LENIENT, APART = 2.0, 3.0, 3


@dataclass(frozen=True)
class Trial:
    """A cheaper solver on trial beside the training solver.

    Attributes:
        patience: checks that the trial takes.
        bold: whether the candidate is as coarse as theory allows, not only the next coarser one.
        candidate: the solver, chosen at the first check; None: there is no cheaper one.
        checks: checks so far.
        total: sum of its errors.
        saved: sum of the field evaluations that it would have saved.
    """

    patience: int = PATIENCE
    bold: bool = False
    candidate: Solver | None = None
    checks: int = 0
    total: float = 0.0
    saved: float = 0.0

    @property
    def over(self) -> bool:
        """Whether no checks are left."""
        return self.checks >= self.patience

    def checked(self, found: Evidence, nfe: float) -> Trial:
        """The trial after one more check, at which the training solver took ``nfe`` evaluations."""
        return replace(
            self,
            checks=self.checks + 1,
            total=self.total + found.difference,
            saved=self.saved + nfe - found.candidate_nfe,
        )

    def lost(self, allowed: float) -> bool:
        """Whether the mean error of the whole trial exceeds a limit, whatever follows."""
        return not self.total <= allowed * self.patience  # also if it is NaN

    def won(self, allowed: float) -> bool:
        """Whether the candidate is accurate enough and has saved evaluations."""
        return self.over and self.saved > 0 and not self.lost(allowed)

    def to_plain(self) -> dict[str, Any]:
        """Plain values."""
        return {**vars(self), "candidate": self.candidate and to_plain(self.candidate)}

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Trial:
        """From plain values."""
        return cls(
            **{**values, "candidate": values["candidate"] and from_plain(values["candidate"])}
        )


@dataclass(frozen=True)
class _State:
    """The state of the rule.

    Attributes:
        solver: the training solver.
        error: running mean of its error estimates; None: there is none yet.
        trial: the trial of a cheaper solver.
        method: the number of its method; 0: that of the training solver.
        risen: whether the last change was to a finer solver.
        attempts: the attempts at a certificate.
    """

    solver: Solver
    error: float | None = None
    trial: Trial = Trial()
    method: int = 0
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
      takes it if the mean of its own error over the trial corresponds to at most half of the flips
      that the target allows. Accuracy can fall off a cliff, which theory does not predict.

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
    the rule has seen (see `Certifier`). If that fails, the rule divides the error of the solver by
    two, the next times by four and by eight, independently of the number of flips. Training
    continues for 200 iterations, and the new model is judged, with at most four attempts.

    **With a penalty** of discretisation errors in the loss (`DiscretisationPenalty`), the model
    follows the solver, and refining is the last resort. A finer solver halves the error at most.
    The target is three times as large, because the penalty reduces the error until the end. The
    reference of a check has three times the steps, a grid that the penalty never sees. A trial is
    bold, unless the one before failed: its candidate is as coarse as theory allows. `begin`
    measures the new model.

    Args:
        start: the solver to start with: `FixedStep` with a number of steps, or `Adaptive`.
        fidelity: the wanted share of flips, and the margin of the certificate.
        target: converts a share of flips to a difference of the measure; None: the same number. See
            ``Task.target``.
        others: solvers of other methods; with them, the rule also chooses the method.
        ladder: limits of steps and tolerances.
        penalised: whether the loss has a penalty.
        patience: checks of a trial.
    """

    def __init__(
        self,
        start: Solver,
        fidelity: float = 0.01,
        *,
        target: Callable[[float], float] | None = None,
        others: Sequence[Solver] = (),
        ladder: Ladder | None = None,
        penalised: bool = False,
        patience: int = PATIENCE,
    ) -> None:
        self._state = _State(start, trial=Trial(patience, bold=penalised))
        self._fidelity = fidelity
        self._target = target or float
        self._methods = (start, *others) if others else ()
        self._ladder = ladder or Ladder()
        self._penalised = penalised
        self.signal: Signal | None = None
        self.notice = ""

    @property
    def solver(self) -> Solver:
        """The training solver."""
        return self._state.solver

    def begin(self, measure: Comparison) -> Solver:
        """Before training: refine the solver until its error for the new model meets the target.

        Models over long times need many steps from the start: too few can spoil the weights in the
        first iterations.
        """
        while self._penalised:
            solver = self.solver
            error = measure(solver, self._reference(solver)).difference
            target = self._allowed(solver)
            finer = self._ladder.finer(solver, error / target) if error > target else None
            if finer is None:
                break
            self._state = replace(self._state, solver=finer)
        return self.solver

    def propose(self, measure: Comparison, progress: Progress) -> Solver:
        """Refine the solver if its mean error exceeds the target, else continue the trial of a
        cheaper one.
        """
        self.notice = ""
        state = self._state
        reference = self._reference(state.solver)
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
            ratio = error / target
            finer = self._ladder.finer(
                state.solver, min(ratio, GENTLE) if self._penalised else ratio
            )
            if finer is None:
                self.notice = (
                    f"{state.solver} is the finest allowed solver, but its error exceeds the "
                    f"target: {self._ladder.advice(state.solver)}."
                )
        if finer is not None:
            state = self._refined(state, finer, measure, reference, found.candidate_nfe)
        elif not (state.attempts and state.attempts[-1].most > self._fidelity):
            # after a failed attempt at a certificate, the solver must not become coarser
            state = self._tried(state, measure, reference, found.candidate_nfe)
        self._state = state if isfinite(error) else replace(state, error=None)
        return self.solver

    def _reference(self, solver: Solver) -> Extrapolated:
        """The reference of a check."""
        apart = self._penalised and not isinstance(solver, Adaptive)
        return Extrapolated(solver, APART if apart else 2)

    def _allowed(self, solver: Solver, share: float = 1.0) -> float:
        """The largest error that a training solver may have; ``share`` of its flips for a cheaper
        solver.

        It is the same for all methods that the rule chooses from, to favour none.
        """
        order = max(
            1 if isinstance(each, Adaptive) else each.order for each in (solver, *self._methods)
        )
        lenient = LENIENT if self._penalised else 1.0
        return self._target(share * lenient * self._fidelity * (0.2 + 2 / order))

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
                self._allowed(other, SAFE), error
            ):
                best, error = other, found.difference
        trial = Trial(state.trial.patience * (1 if state.risen else 2), bold=self._penalised)
        return replace(state, solver=best, error=error, trial=trial, risen=True)

    def _tried(
        self, state: _State, measure: Comparison, reference: Extrapolated, nfe: float
    ) -> _State:
        """Make one more check of the trial.

        After the last check, take the solver on trial or begin the trial of the next one.
        """
        trial = state.trial
        if not trial.checks:
            trial = replace(trial, candidate=self._candidate(state, nfe))
        solver = trial.candidate
        allowed = 0.0 if solver is None else self._allowed(solver, SAFE)
        if solver is None or trial.lost(allowed):
            trial = replace(trial, checks=trial.checks + 1)  # the next one waits its turn
        else:
            trial = trial.checked(measure(solver, reference), nfe)
        if not trial.over:
            return replace(state, trial=trial)
        new = Trial(trial.patience)
        if solver is not None and trial.won(allowed):
            new = replace(new, bold=self._penalised)
            error = trial.total / trial.checks
            return replace(state, solver=solver, error=error, trial=new, method=0, risen=False)
        return replace(state, trial=new, method=(state.method + 1) % (1 + len(self._methods)))

    def _candidate(self, state: _State, nfe: float) -> Solver | None:
        """The cheaper solver to try: a coarser one of the same method, or the finest one of another
        method that costs less.
        """
        if state.method == 0:
            assert state.error is not None
            bold = state.trial.bold and state.error > 0
            ratio = self._allowed(state.solver, SAFE) / state.error if bold else 1.0
            return self._ladder.coarser(state.solver, ratio)
        other = self._methods[state.method - 1]
        return None if other.name == state.solver.name else self._ladder.cheaper(other, nfe)

    def certify(self, inspection: Inspection) -> Certificate | Refine:
        """Judge the trained model.

        Returns:
            A certificate, or the solver to train on with before the next attempt.
        """
        state = self._state
        certifier = Certifier(self._fidelity, state.attempts, inspection.source, inspection.task)
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
        finer = self._ladder.finer(state.solver, HALF ** len(certifier.attempts))
        if finer is None:
            return certifier.give_up(self._ladder.advice(state.solver))
        trial = Trial(state.trial.patience)
        self._state = replace(self._state, solver=finer, error=None, trial=trial, risen=True)
        return Refine(finer, LONGER)

    def state_dict(self) -> dict[str, Any]:
        """The state as plain values."""
        state = self._state
        return {
            **vars(state),
            "solver": to_plain(state.solver),
            "trial": state.trial.to_plain(),
            "attempts": [attempt.to_dict() for attempt in state.attempts],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved state."""
        self._state = _State(
            **{
                **state,
                "solver": from_plain(state["solver"]),
                "trial": Trial.from_plain(state["trial"]),
                "attempts": tuple(Decision.from_dict(attempt) for attempt in state["attempts"]),
            }
        )
