"""Our adaptation: the cheapest solver whose results a finer one hardly changes, and a certificate
in the end.
"""

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
SAFE = 0.5  # share of the target that a cheaper solver must keep to
PATIENCE = 20  # checks
HALF = 2.0  # a failed certificate divides the error by it
LONGER = 200  # iterations of training after a failed certificate
NEW_TRIAL: dict[str, Any] = {"candidate": None, "checks": 0, "total": 0.0, "saved": 0.0}


@dataclass(frozen=True)
class _State:
    """What a rule remembers.

    Attributes:
        solver: the training solver.
        error: running mean of its error; None: nothing is known of it yet.
        trial: which method is on trial.
        candidate: the cheaper solver on trial, chosen at the trial's first check.
        checks: of the trial so far.
        patience: checks that a trial takes.
        total: the sum of the errors that the trial found.
        saved: the sum of the evaluations that the candidate would have saved.
        risen: whether the last change was to a finer solver.
        attempts: at a certificate.
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
    """Adapts the number of steps, or the tolerance, to the error that a solver of half the step
    shows.

    A check estimates the error of the training solver: how much its results differ from the
    extrapolated ones of itself and of the same method at twice the steps (a tolerance 2^p times
    tighter, p the order).

    * **Finer by theory.** When the running mean of the error exceeds the target, the next training
      solver is the coarsest one that meets it if errors fall with the order of the method; at most
      twice as fine. Where other methods are at choice, one that costs less than that and is
      measured to be good enough is taken instead.
    * **Coarser by measurement.** A cheaper solver is on trial beside the training solver: it is
      taken when its own error, mean over twenty checks, is at most half of the target. Convergence
      may be a cliff, which theory would step over.

    The constants, and why. A new check has the weight 0.2 in the running mean: what the few samples
    of a check tell is noisy, and yet a single one counts where it lies far above the target. Half
    of the target keeps the two thresholds apart by what one step of rk4 among six changes, and so
    the solver at rest; twenty checks of 64 samples see a share of flips of half a per cent with an
    error of a third, shorter trials are decided by chance. Trials that follow a decrease which had
    to be taken back are twice as long as those before: this ends any oscillation. The target is the
    share of flips that is wanted, times 0.2 + 2/q, with q = p for steps and q = 1 for tolerances,
    to which errors are proportional: where the error falls steeply, accuracy is cheap and a cliff
    is near; where it falls slowly, it is bought in the end, where a certificate needs it.

    In the end the model is certified on inputs that neither training nor the rule has seen, against
    its exact flow (see `Certifier`). Where that fails, the error of the solver is halved, whatever
    the number of flips, training goes on for 200 iterations, and the new model is judged, four
    times at most.

    Args:
        start: the solver to start with: `FixedStep` of a number of steps, or `Adaptive`.
        fidelity: the share of flips that is wanted, and that the certificate allows.
        target: from a share of flips to the difference, as the measure tells it, that goes with it;
            None: the same number. See ``Task.target``.
        others: solvers of other methods: with them the rule chooses the method as well.
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
        """Refine when the mean error exceeds the target, else go on with the trial of a cheaper
        solver.
        """
        self.notice = ""
        state = self._state
        reference = Extrapolated(state.solver)
        found = measure(state.solver, reference)
        if isnan(found.difference):
            self.notice = "a check told nothing: the outputs that it compared are constant. The solver stays as it is."
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
                    f"{state.solver} is as fine as allowed, and still its error is larger than wanted: "
                    f"{self._ladder.advice(state.solver)}."
                )
        if finer is not None:
            state = self._refined(state, finer, measure, reference, found.candidate_nfe)
        elif not (
            state.attempts and state.attempts[-1].upper > self._fidelity
        ):  # else only finer solvers will do
            state = self._tried(state, measure, reference, found.candidate_nfe)
        self._state = state if isfinite(error) else replace(state, error=None)
        return self.solver

    def _allowed(self, solver: Solver) -> float:
        """The error that a training solver may have; where the method is chosen as well, none is
        favoured.
        """
        order = max(
            1 if isinstance(each, Adaptive) else each.order for each in (solver, *self._methods)
        )
        return self._target(self._fidelity * (0.2 + 2 / order))

    def _refined(
        self, state: _State, finer: Solver, measure: Comparison, reference: Extrapolated, nfe: float
    ) -> _State:
        """Take a finer solver of the same method, or one of another method that costs less and has
        been measured.
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
        """One more check of the trial; at its end the solver on trial is taken, or the next one
        comes on trial.
        """
        solver = state.candidate if state.checks else self._on_trial(state, nfe)
        state = replace(state, candidate=solver, checks=state.checks + 1)
        if solver is not None:
            most = SAFE * self._allowed(solver) * state.patience  # of the sum of errors
            if state.total <= most:  # else it has failed already
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
        """The cheaper solver on trial: of the same method, or the finest of another one that costs
        less.
        """
        if state.trial == 0:
            return self._ladder.coarser(state.solver)
        other = self._methods[state.trial - 1]
        return None if other.name == state.solver.name else self._ladder.cheaper(other, nfe)

    def certify(self, inspection: Inspection) -> Certificate | Refine:
        """Judge the trained model: a certificate, or with which solver to train on before the next
        attempt.
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
