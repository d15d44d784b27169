"""Cheaper and finer solvers of the same method, and their errors by theory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from trueode.errors import UsageError
from trueode.solvers import Adaptive, FixedStep, Solver

DOUBLING = 2  # largest factor on the number of steps at once: theory is not trusted further
LOOSER = 2.0  # factor by which a tolerance is loosened


@dataclass(frozen=True)
class Ladder:
    """The solvers of a method, from coarse to fine: numbers of steps, or tolerances.

    Args:
        max_steps: the largest number of steps.
        loosest: the loosest tolerance; with a looser one, an error control accepts every step.
        tightest: the tightest tolerance of the reference at twice the steps; below it, rounding
            dominates.
        least: the fewest field evaluations of a solver with fixed steps.
    """

    max_steps: int = 500
    loosest: float = 3e-3
    tightest: float = 1e-7
    least: int = 1

    def coarser(self, solver: Solver, ratio: float = 1.0) -> Solver | None:
        """The next coarser solver; None if there is none.

        It takes one step less, or about a tenth less of many steps, or has twice the tolerance. If
        its error may be ``ratio`` times larger, it takes as few steps as this allows by theory, at
        least half as many.
        """
        if isinstance(solver, Adaptive):
            tol = min(LOOSER * solver.rtol, self.loosest)
            return replace(solver, rtol=tol, atol=tol) if tol > 1.01 * solver.rtol else None
        fixed, n = _fixed(solver)
        exact = n / min(max(ratio, 1.0) ** (1 / solver.order), DOUBLING)
        return self._enough(fixed, min(n - 1, ceil(n / 1.1), ceil(exact - 1e-9 * exact)))

    def finer(self, solver: Solver, ratio: float) -> Solver | None:
        """The solver whose error is ``ratio`` times smaller by theory, at most twice as fine; None
        if the limit is reached.
        """
        if isinstance(solver, Adaptive):
            tol = max(
                solver.rtol / min(ratio, DOUBLING**solver.order),
                self.tightest * DOUBLING**solver.order,
            )
            return replace(solver, rtol=tol, atol=tol) if tol < solver.rtol else None
        fixed, n = _fixed(solver)
        exact = n * min(ratio ** (1 / solver.order), DOUBLING)
        wanted = ceil(exact - 1e-9 * exact)
        wanted = min(max(wanted, n + 1), self.max_steps)
        return replace(fixed, n_steps=wanted) if wanted > n else None

    def cheaper(self, solver: Solver, nfe: float) -> Solver | None:
        """The finest solver of the same method that takes less than ``nfe`` field evaluations; None
        if there is none.

        An adaptive solver is returned unchanged, because its cost depends on the problem.
        """
        if isinstance(solver, Adaptive):
            return solver
        fixed, _ = _fixed(solver)
        n = min(ceil(nfe / solver.tableau.advancing_stages) - 1, self.max_steps)
        return self._enough(fixed, n)

    def _enough(self, solver: FixedStep, n: int) -> FixedStep | None:
        """The solver with ``n`` steps; None if these are too few."""
        enough = n >= 1 and n * solver.tableau.advancing_stages >= self.least
        return replace(solver, n_steps=n) if enough else None

    def advice(self, solver: Solver) -> str:
        """Advice for the user if `finer` returns None."""
        if isinstance(solver, Adaptive):
            return (
                f"rounding dominates below {self.tightest:.3g}, the tolerance of its reference; "
                "--precision float64 lowers the limit"
            )
        return (
            f"--max_steps {self.max_steps} is the limit; raise it, or take a method of higher order"
        )


def error_ratio(solver: Solver, other: Solver) -> float:
    """The error of ``other`` relative to that of ``solver`` by theory.

    Both have the same method. Errors fall with the order, or are proportional to the tolerance.
    """
    if isinstance(solver, Adaptive):
        assert isinstance(other, Adaptive)
        return other.rtol / solver.rtol
    return float((_fixed(solver)[1] / _fixed(other)[1]) ** solver.order)


def _fixed(solver: Solver) -> tuple[FixedStep, int]:
    """A fixed-step solver and its number of steps."""
    if not isinstance(solver, FixedStep) or solver.n_steps is None:
        raise UsageError(f"{solver}: FidelityRule takes FixedStep(method, n_steps=…) or Adaptive.")
    return solver, solver.n_steps
