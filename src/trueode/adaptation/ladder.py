"""Cheaper and finer solvers of the same method, and what theory says of their errors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from trueode.errors import UsageError
from trueode.solvers import Adaptive, FixedStep, Solver

DOUBLING = 2  # a solver is refined to at most so many times the steps at once: theory is not trusted further
LOOSER = 2.0  # a tolerance is loosened by this factor


@dataclass(frozen=True)
class Ladder:
    """The solvers of a method, from coarse to fine: numbers of steps, or tolerances.

    Args:
        max_steps: most steps.
        loosest: loosest tolerance; with a looser one an error control idles, it accepts whatever
            step it tries.
        tightest: tightest tolerance, of the reference at twice the steps; below it rounding
            decides.
    """

    max_steps: int = 500
    loosest: float = 3e-3
    tightest: float = 1e-7

    def coarser(self, solver: Solver) -> Solver | None:
        """The next coarser solver: a step less, about a tenth where there are many; twice the
        tolerance; None: no such.
        """
        if isinstance(solver, Adaptive):
            tol = min(LOOSER * solver.rtol, self.loosest)
            return replace(solver, rtol=tol, atol=tol) if tol > 1.01 * solver.rtol else None
        fixed, n = _fixed(solver)
        return replace(fixed, n_steps=min(n - 1, ceil(n / 1.1))) if n > 1 else None

    def finer(self, solver: Solver, ratio: float) -> Solver | None:
        """The solver whose error is ``ratio`` times smaller by theory, or half the step; None: the
        limit is reached.
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
        """The finest fixed-step solver of the method of ``solver`` that takes less than ``nfe``
        evaluations; None: no such.

        What an adaptive solver takes depends on the problem: it is returned as it is.
        """
        if isinstance(solver, Adaptive):
            return solver
        fixed, _ = _fixed(solver)
        n = min(ceil(nfe / solver.tableau.advancing_stages) - 1, self.max_steps)
        return replace(fixed, n_steps=n) if n >= 1 else None

    def advice(self, solver: Solver) -> str:
        """What to do when `finer` finds none."""
        if isinstance(solver, Adaptive):
            return f"rounding decides below {self.tightest:.3g}, which it is compared with; --precision float64 lowers the limit"
        return (
            f"--max_steps {self.max_steps} is the limit; raise it, or take a method of higher order"
        )


def error_ratio(solver: Solver, other: Solver) -> float:
    """The error of ``other`` relative to that of ``solver``, the same method: by order, or as the
    tolerance.
    """
    if isinstance(solver, Adaptive):
        assert isinstance(other, Adaptive)
        return other.rtol / solver.rtol
    return float((_fixed(solver)[1] / _fixed(other)[1]) ** solver.order)


def _fixed(solver: Solver) -> tuple[FixedStep, int]:
    """A fixed-step solver that is given by its number of steps, and this number."""
    if not isinstance(solver, FixedStep) or solver.n_steps is None:
        raise UsageError(
            f"{solver}: a rule of fidelity takes FixedStep(method, n_steps=…) or Adaptive."
        )
    return solver, solver.n_steps
