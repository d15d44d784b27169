"""Solvers as frozen values: which method, and how its steps are chosen."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from math import ceil, inf, isfinite
from typing import Any

from trueode.errors import SolveError, UsageError
from trueode.solvers.methods import get_tableau
from trueode.solvers.tableau import ButcherTableau


def _positive(name: str, value: float) -> None:
    if not (isfinite(value) and value > 0):
        raise UsageError(f"{name} must be a positive number, got {value!r}.")


@dataclass(frozen=True)
class _Method:
    method: str | ButcherTableau

    @property
    def tableau(self) -> ButcherTableau:
        """The method's coefficients."""
        return get_tableau(self.method)

    @property
    def name(self) -> str:
        """The method's name."""
        return self.tableau.name

    @property
    def order(self) -> int:
        """The order of the method."""
        return self.tableau.order


@dataclass(frozen=True)
class FixedStep(_Method):
    """Equal steps of a Runge-Kutta method.

    Args:
        method: a name of ``catalog.METHODS`` or a tableau.
        step_size: the step; where it does not divide the interval, the last step is shorter and ends exactly at its end.
        n_steps: instead of ``step_size``: the number of equal steps.
        max_steps: a solve that would take more steps fails before it starts.

    Raises:
        UsageError: neither or both of ``step_size`` and ``n_steps`` are given, or one is not positive.
    """

    step_size: float | None = None
    n_steps: int | None = None
    max_steps: int | None = None

    def __post_init__(self) -> None:
        get_tableau(self.method)
        if (self.step_size is None) == (self.n_steps is None):
            raise UsageError("FixedStep takes exactly one of step_size and n_steps.")
        if self.step_size is not None:
            _positive("step_size", self.step_size)
        if self.n_steps is not None and (self.n_steps < 1 or int(self.n_steps) != self.n_steps):
            raise UsageError(f"n_steps must be a whole number of at least 1, got {self.n_steps!r}.")
        if self.n_steps is not None:
            object.__setattr__(self, "n_steps", int(self.n_steps))

    def count(self, length: float) -> int:
        """The number of steps taken on an interval of this length (0 when the length is 0)."""
        length = abs(length)
        if length == 0:
            return 0
        if self.n_steps is not None:
            return self.n_steps
        assert self.step_size is not None
        ratio = length / self.step_size
        if ratio == inf:
            raise SolveError(
                f"A step of {self.step_size:g} is too small for an interval of {length:g}.", "step_underflow"
            )
        return max(1, ceil(ratio - 1e-9 * ratio))

    def fractions(self, length: float) -> tuple[float, ...]:
        """The grid as fractions of the interval, from 0.0 to 1.0: no rounding accumulates."""
        n = self.count(length)
        if self.max_steps is not None and n > self.max_steps:
            raise SolveError(
                f"{self.name} would need {n} steps on an interval of length {abs(length):g}, more than "
                f"max_steps = {self.max_steps}: take a larger step or raise max_steps.",
                "max_steps",
            )
        if self.n_steps is not None or n <= 1:
            return tuple(i / n for i in range(n + 1)) if n else (0.0,)
        assert self.step_size is not None
        return (*(i * self.step_size / abs(length) for i in range(n)), 1.0)

    def scaled(self, factor: float) -> FixedStep:
        """The same method with ``factor`` times the step size."""
        _positive("factor", factor)
        if self.step_size is not None:
            return replace(self, step_size=self.step_size * factor)
        assert self.n_steps is not None
        ratio = self.n_steps / factor
        return replace(self, n_steps=max(1, ceil(ratio - 1e-9 * ratio)))

    def refined(self, times: int = 2) -> FixedStep:
        """The same method with ``times`` as many steps."""
        return self.scaled(1 / times)

    def __str__(self) -> str:
        return (
            f"{self.name}, h = {self.step_size:.6g}" if self.step_size is not None else f"{self.name} x {self.n_steps}"
        )


@dataclass(frozen=True)
class Adaptive(_Method):
    """Steps chosen so that the estimated local error stays below ``atol + rtol |z|``.

    Args:
        method: a name or tableau with an embedded method.
        rtol: relative tolerance.
        atol: absolute tolerance.
        per_sample: control each sample (first dimension of the state) by itself, so that its result does not depend on
            the others; otherwise one step for all, from the root mean square error over the whole batch.
        first_step: the first step; None chooses it (Hairer, Nørsett & Wanner I, p. 169).
        max_steps: most attempted steps.

    Raises:
        UsageError: the method has no error estimate, or a number is out of range.
    """

    rtol: float
    atol: float
    per_sample: bool = False
    first_step: float | None = None
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        tableau = get_tableau(self.method)
        if tableau.embedded is None:
            raise UsageError(
                f"{tableau.name} has no error estimate and cannot be adaptive: use FixedStep({tableau.name!r}, …), "
                "or an embedded method such as 'dopri5'."
            )
        if (
            not (isfinite(self.rtol) and isfinite(self.atol))
            or min(self.rtol, self.atol) < 0
            or self.rtol + self.atol == 0
        ):
            raise UsageError(f"rtol and atol must not be negative nor both zero, got {self.rtol!r} and {self.atol!r}.")
        if self.first_step is not None:
            _positive("first_step", self.first_step)
        if self.max_steps < 1:
            raise UsageError(f"max_steps must be at least 1, got {self.max_steps!r}.")

    def scaled(self, factor: float) -> Adaptive:
        """The same method with ``factor`` times the tolerances."""
        _positive("factor", factor)
        return replace(self, rtol=self.rtol * factor, atol=self.atol * factor)

    def refined(self, times: int = 2) -> Adaptive:
        """The tolerances at which about ``times`` as many steps are taken: divided by ``times ** order``."""
        return self.scaled(float(times) ** -self.order)

    def __str__(self) -> str:
        tolerance = f"{self.rtol:.3g}" if self.rtol == self.atol else f"{self.rtol:.3g} (rel), {self.atol:.3g} (abs)"
        return f"{self.name}, tol = {tolerance}{', per sample' if self.per_sample else ''}"


@dataclass(frozen=True)
class OnGrid(_Method):
    """Steps of a method at given fractions of the interval: any grid, or the replay of an adaptive solve.

    Args:
        method: a name or tableau.
        fractions: ascending from 0 to 1; for a grid per sample, one tuple of the samples' fractions per grid point.
    """

    grid: tuple[float, ...] | tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        get_tableau(self.method)
        columns = zip(*self.grid, strict=True) if self.per_sample else [self.grid]
        for column in columns:
            ascending = all(x <= y for x, y in itertools.pairwise(column))
            if len(column) < 2 or column[0] != 0 or column[-1] != 1 or not ascending:
                raise UsageError("The fractions of a grid must ascend from 0 to 1.")

    @property
    def per_sample(self) -> bool:
        """Whether every sample has a grid of its own."""
        return isinstance(self.grid[0], tuple)

    def fractions(self, length: float) -> tuple[float, ...] | tuple[tuple[float, ...], ...]:
        """The grid as fractions of the interval."""
        return self.grid

    def scaled(self, factor: float) -> FixedStep:
        """Equal steps, ``factor`` times the mean step."""
        return FixedStep(self.method, n_steps=len(self.grid) - 1).scaled(factor)

    def refined(self, times: int = 2) -> FixedStep:
        """Equal steps, ``times`` as many."""
        return self.scaled(1 / times)

    def __str__(self) -> str:
        return f"{self.name} on {len(self.grid) - 1} given steps"


Solver = FixedStep | Adaptive | OnGrid


def to_plain(solver: Solver) -> dict[str, Any]:
    """A solver as plain values, its method by name.

    Raises:
        UsageError: a given grid has no such form.
    """
    if isinstance(solver, OnGrid):
        raise UsageError(f"{solver} cannot be written as plain values: use FixedStep or Adaptive.")
    return {**{f.name: getattr(solver, f.name) for f in fields(solver)}, "method": solver.name}


def from_plain(values: Mapping[str, Any], method: str | ButcherTableau | None = None) -> FixedStep | Adaptive:
    """The solver of `to_plain`; ``method`` stands for the name, where it is a tableau of your own."""
    kind: type[FixedStep | Adaptive] = Adaptive if "rtol" in values else FixedStep
    return kind(**{**values, "method": method or values["method"]})
