"""The protocol of adaptation rules. A rule proposes solvers and never changes a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from trueode.adaptation.certificate import Certificate
from trueode.evaluation import Flips, Task
from trueode.solvers import Solver


@dataclass(frozen=True)
class Evidence:
    """The result of a comparison of two solvers.

    Attributes:
        difference: the difference between their results, as the measure defines it (in the paper:
            between their accuracies on a batch).
        candidate_nfe: field evaluations of the candidate.
        reference_nfe: field evaluations of the reference.
    """

    difference: float
    candidate_nfe: float
    reference_nfe: float


@dataclass(frozen=True)
class Progress:
    """The progress of training.

    Attributes:
        iteration: iterations done, including the current one.
        total: iterations of the whole run.
        recent_nfe: field evaluations of up to five recent training solves, the current one last.
    """

    iteration: int
    total: int
    recent_nfe: tuple[float, ...] = ()


@dataclass(frozen=True)
class Signal:
    """The error estimate of a rule.

    Attributes:
        value: the difference between the training solver and a more accurate one.
        target: the difference above which the rule refines.
    """

    value: float
    target: float


@dataclass(frozen=True)
class Refine:
    """The answer of a rule if no certificate is possible yet: train on, then ask again.

    Attributes:
        solver: the solver to train on with.
        iterations: the number of further iterations.
    """

    solver: Solver
    iterations: int


@dataclass(frozen=True)
class Extrapolated:
    """Richardson extrapolation from a solver and the same method with r times the steps.

    Let y be the result of the solver, p its order, and y' the result of `finer`. The extrapolated
    result y' + (y' - y) / (r^p - 1) is more accurate than both; its error is of the next order.
    Source: Hairer, Nørsett & Wanner, *Solving Ordinary Differential
    Equations I*, section II.4.
    """

    solver: Solver
    times: int = 2  # r

    @property
    def finer(self) -> Solver:
        """The solver with r times the steps, or at a tolerance r^p times tighter."""
        return self.solver.refined(self.times)

    @property
    def weight(self) -> float:
        """1 / (r^p - 1)."""
        return float(1 / (self.times**self.solver.order - 1))


Comparison = Callable[[Solver, Solver | Extrapolated], Evidence]
"""``measure(candidate, reference)`` compares two solvers on one fixed batch."""


class Inspection(Protocol):
    """Counts flips on inputs that neither training nor the rule has seen.

    Attributes:
        source: the origin of the inputs, in words.
        task: the task of the model.
    """

    source: str
    task: Task

    def size(self, attempt: int) -> int:
        """The number of inputs for an attempt; attempts are counted from 1."""

    def count(self, solver: Solver, attempt: int) -> Flips:
        """Count the inputs whose prediction changes between the solver and the exact flow."""


class Rule(Protocol):
    """Watches training and proposes the next solver."""

    @property
    def solver(self) -> Solver:
        """The solver of the next iteration."""

    @property
    def signal(self) -> Signal | None:
        """The error estimate behind the last proposal; None before the first."""

    @property
    def notice(self) -> str:
        """A message to the user about the last proposal; empty if there is none."""

    def propose(self, measure: Comparison, progress: Progress) -> Solver:
        """Choose the solver of the next iterations."""

    def certify(self, inspection: Inspection) -> Certificate | Refine | None:
        """Judge the trained model at the end; None if the rule gives no certificate."""

    def state_dict(self) -> dict[str, Any]:
        """The state as plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved state."""
