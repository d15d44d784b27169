"""Compare solvers on one batch; each solver runs once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from trueode.adaptation.rule import Evidence, Extrapolated
from trueode.solvers import Solver

Output = TypeVar("Output")


class Measure(Generic[Output]):
    """A `Comparison` that runs each solver once and counts field evaluations.

    Args:
        run: solves the batch with a solver, and returns the output and the number of field
            evaluations. The output supports arithmetic, as a tensor does; None if the solver
            failed.
        difference: computes the difference between two outputs. If one is None, the difference is
            infinite.

    Attributes:
        nfe: field evaluations spent so far, without those of seeded outputs.
    """

    def __init__(
        self,
        run: Callable[[Solver], tuple[Output | None, float]],
        difference: Callable[[Output, Output], float],
    ) -> None:
        self._run = run
        self._difference = difference
        self._known: dict[Solver, tuple[Output | None, float]] = {}
        self.nfe = 0.0

    def seed(self, solver: Solver, output: Output, nfe: float) -> None:
        """Provide the output of a solver that is known already."""
        self._known[solver] = (output, nfe)

    def __call__(self, candidate: Solver, reference: Solver | Extrapolated) -> Evidence:
        """Compare two solvers."""
        own, own_nfe = self._solve(candidate)
        other, other_nfe = (
            self._extrapolate(reference)
            if isinstance(reference, Extrapolated)
            else self._solve(reference)
        )
        difference = float("inf") if own is None or other is None else self._difference(own, other)
        return Evidence(difference, own_nfe, other_nfe)

    def _solve(self, solver: Solver) -> tuple[Output | None, float]:
        if solver not in self._known:
            self._known[solver] = self._run(solver)
            self.nfe += self._known[solver][1]
        return self._known[solver]

    def _extrapolate(self, reference: Extrapolated) -> tuple[Output | None, float]:
        coarse: Any
        fine: Any
        coarse, coarse_nfe = self._solve(reference.solver)
        fine, fine_nfe = self._solve(reference.finer)
        better = (
            None if coarse is None or fine is None else fine + reference.weight * (fine - coarse)
        )
        return better, coarse_nfe + fine_nfe
