"""The protocol of adaptation rules: a rule proposes solvers and never touches a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from trueode.adaptation.certificate import Certificate
from trueode.evaluation import Flips
from trueode.solvers import Solver


@dataclass(frozen=True)
class Evidence:
    """What a comparison of two solvers found.

    Attributes:
        difference: between their results, as the measure defines it (the paper: between their
            accuracies on a batch).
        candidate_nfe: field evaluations of the candidate's solve.
        reference_nfe: field evaluations of the reference's solve.
    """

    difference: float
    candidate_nfe: float
    reference_nfe: float


@dataclass(frozen=True)
class Progress:
    """Where training is.

    Attributes:
        iteration: iterations done, the current one included.
        total: iterations of the whole run.
        recent_nfe: field evaluations of the last training solves (up to five), the current one
            last.
    """

    iteration: int
    total: int
    recent_nfe: tuple[float, ...] = ()


@dataclass(frozen=True)
class Signal:
    """What a rule has looked at.

    Attributes:
        value: the difference that it found between the training solver and a better one.
        target: the difference above which it refines.
    """

    value: float
    target: float


@dataclass(frozen=True)
class Refine:
    """The answer of a rule whose certificate failed: train on with this solver, then ask again.

    Attributes:
        solver: to train on with.
        iterations: how many.
    """

    solver: Solver
    iterations: int


@dataclass(frozen=True)
class Extrapolated:
    """A reference better than any of its two solves: a solver and the same at half the step,
    extrapolated (Richardson).

    With results y of the solver, of order p, and y' of `finer`: y' + (y' - y) / (2^p - 1), whose
    error is of the next order. Source: Hairer, Nørsett & Wanner, *Solving Ordinary Differential
    Equations I*, section II.4.
    """

    solver: Solver

    @property
    def finer(self) -> Solver:
        """The solver at twice the steps, or at a tolerance 2^p times tighter."""
        return self.solver.refined(2)

    @property
    def weight(self) -> float:
        """1 / (2^p - 1)."""
        return float(1 / (2**self.solver.order - 1))


Comparison = Callable[[Solver, Solver | Extrapolated], Evidence]
"""``measure(candidate, reference)``: compares two solvers on one fixed batch."""


class Inspection(Protocol):
    """Counts flips on inputs that neither training nor the rule has seen.

    Attributes:
        source: where the inputs come from, in words.
    """

    source: str

    def size(self, attempt: int) -> int:
        """The number of inputs that there are for an attempt; attempts are counted from 1."""

    def count(self, solver: Solver, attempt: int) -> Flips:
        """How many of them have another prediction under the exact flow than under the solver."""


class Rule(Protocol):
    """Watches training and proposes the next solver."""

    @property
    def solver(self) -> Solver:
        """The solver of the next iteration."""

    @property
    def signal(self) -> Signal | None:
        """What the last proposal was made from; None before the first."""

    @property
    def notice(self) -> str:
        """What the user should know since the last proposal; empty if nothing."""

    def propose(self, measure: Comparison, progress: Progress) -> Solver:
        """Choose the solver of the next iterations."""

    def certify(self, inspection: Inspection) -> Certificate | Refine | None:
        """Judge the trained model, at the end; None where the rule promises nothing."""

    def state_dict(self) -> dict[str, Any]:
        """The state as plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved state."""
