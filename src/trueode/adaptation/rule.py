"""The protocol of adaptation rules: a rule proposes solvers and never touches a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from trueode.solvers import Solver


@dataclass(frozen=True)
class Evidence:
    """What a comparison of two solvers found.

    Attributes:
        difference: between their results, as the measure defines it (the paper: between their accuracies on a batch).
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
        recent_nfe: field evaluations of the last training solves (up to five), the current one last.
    """

    iteration: int
    total: int
    recent_nfe: tuple[float, ...] = ()


Comparison = Callable[[Solver, Solver], Evidence]
"""``measure(candidate, reference)``: compares two solvers on one fixed batch."""


class Rule(Protocol):
    """Watches training and proposes the next solver."""

    @property
    def solver(self) -> Solver:
        """The solver of the next iteration."""

    @property
    def notice(self) -> str:
        """What the user should know since the last proposal; empty if nothing."""

    def propose(self, measure: Comparison, progress: Progress) -> Solver:
        """Choose the solver of the next iterations."""

    def state_dict(self) -> dict[str, Any]:
        """The state as plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved state."""
