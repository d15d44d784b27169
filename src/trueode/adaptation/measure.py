"""Compares solvers on one batch, each solved once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from trueode.adaptation.rule import Evidence
from trueode.solvers import Solver

Output = TypeVar("Output")


class Measure(Generic[Output]):
    """A `Comparison` that solves each solver once and counts what it spends.

    Args:
        run: solves the batch: the output and its field evaluations.
        difference: between two outputs.

    Attributes:
        nfe: field evaluations spent so far; those of seeded outputs are not counted again.
    """

    def __init__(
        self, run: Callable[[Solver], tuple[Output, float]], difference: Callable[[Output, Output], float]
    ) -> None:
        self._run = run
        self._difference = difference
        self._known: dict[Solver, tuple[Output, float]] = {}
        self.nfe = 0.0

    def seed(self, solver: Solver, output: Output, nfe: float) -> None:
        """Hand over an output that is there already."""
        self._known[solver] = (output, nfe)

    def __call__(self, candidate: Solver, reference: Solver) -> Evidence:
        """Compare two solvers."""
        own, own_nfe = self._solve(candidate)
        other, other_nfe = self._solve(reference)
        return Evidence(self._difference(own, other), own_nfe, other_nfe)

    def _solve(self, solver: Solver) -> tuple[Output, float]:
        if solver not in self._known:
            self._known[solver] = self._run(solver)
            self.nfe += self._known[solver][1]
        return self._known[solver]
