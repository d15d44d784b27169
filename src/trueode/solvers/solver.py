"""Solvers as frozen values: which method, and how its steps are chosen."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from math import ceil, inf, isfinite
from numbers import Real
from typing import Any

from trueode.errors import SolveError, UsageError
from trueode.solvers.methods import get_tableau
from trueode.solvers.tableau import ButcherTableau

# The limit without `max_steps`: a longer grid would fill the memory before the first step.
MOST_STEPS = 10_000_000


def _is_number(value: Any) -> bool:
    return type(value) is not bool and isinstance(value, Real) and isfinite(value)


def _positive(name: str, value: Any) -> None:
    if not (_is_number(value) and value > 0):
        raise UsageError(f"{name} must be a positive number, got {value!r}.")


def _whole(name: str, value: Any) -> int:
    if not (_is_number(value) and value >= 1 and int(value) == value):
        raise UsageError(f"{name} must be a whole number of at least 1, got {value!r}.")
    return int(value)


@dataclass(frozen=True)
class _Method:
    method: str | ButcherTableau
    breaks: tuple[float, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        get_tableau(self.method)
        try:
            object.__setattr__(self, "breaks", tuple(map(float, self.breaks)))
        except (TypeError, ValueError):
            raise UsageError(
                f"breaks must be times, such as (0.5, 2.0), got {self.breaks!r}."
            ) from None
        if not all(map(isfinite, self.breaks)):
            raise UsageError(f"breaks must be finite times, got {self.breaks!r}.")

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
        step_size: the step size. If it does not divide the interval, the last step is shorter and
            ends exactly at the end of the interval.
        n_steps: the number of equal steps, instead of ``step_size``.
        max_steps: a solve that would take more steps fails before it starts; None: 10 million.
        max_step: the longest step; more than ``n_steps`` steps are taken if necessary.
        breaks: times at which the field may jump. Steps end there, and each step uses the values
            of the field on its own side.

    Raises:
        UsageError: neither or both of ``step_size`` and ``n_steps`` are given, or a number is out
            of range.
    """

    step_size: float | None = None
    n_steps: int | None = None
    max_steps: int | None = None
    max_step: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.step_size is None) == (self.n_steps is None):
            raise UsageError("FixedStep takes exactly one of step_size and n_steps.")
        if self.step_size is not None:
            _positive("step_size", self.step_size)
        if self.max_step is not None:
            _positive("max_step", self.max_step)
        for name in ("n_steps", "max_steps"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, _whole(name, value))

    def count(self, length: float) -> int:
        """The number of steps taken on an interval of this length (0 when the length is 0)."""
        length = abs(length)
        if length == 0:
            return 0
        least = 1 if self.n_steps is None else self.n_steps
        for step in (self.step_size, self.max_step):
            if step is not None:
                ratio = length / step
                if ratio == inf:
                    raise SolveError(
                        f"A step of {step:g} is too small for an interval of {length:g}.",
                        "step_underflow",
                    )
                least = max(least, ceil(ratio - 1e-9 * ratio))
        return least

    def fractions(self, length: float) -> tuple[float, ...]:
        """The grid as fractions of the interval, from 0.0 to 1.0. Rounding does not accumulate."""
        n = self.count(length)
        most = MOST_STEPS if self.max_steps is None else self.max_steps
        if n > most:
            raise SolveError(
                f"{self.name} would need {n} steps on an interval of length {abs(length):g}, "
                f"more than max_steps = {most}: take a larger step or raise max_steps.",
                "max_steps",
            )
        if self.step_size is None or n <= 1 or (self.max_step or inf) < self.step_size:
            return tuple(i / n for i in range(n + 1)) if n else (0.0,)
        return (*(i * self.step_size / abs(length) for i in range(n)), 1.0)

    def scaled(self, factor: float) -> FixedStep:
        """The same method with ``factor`` times the step size."""
        _positive("factor", factor)
        longest = None if self.max_step is None else self.max_step * factor
        if self.step_size is not None:
            return replace(self, step_size=self.step_size * factor, max_step=longest)
        assert self.n_steps is not None
        ratio = self.n_steps / factor
        return replace(self, n_steps=max(1, ceil(ratio - 1e-9 * ratio)), max_step=longest)

    def refined(self, times: float = 2) -> FixedStep:
        """The same method with ``times`` as many steps."""
        return self.scaled(1 / times)

    def __str__(self) -> str:
        return (
            f"{self.name}, h = {self.step_size:.6g}"
            if self.step_size is not None
            else f"{self.name} x {self.n_steps}"
        )


@dataclass(frozen=True)
class Adaptive(_Method):
    """Steps chosen so that the estimated local error stays below ``atol + rtol |z|``.

    Args:
        method: a name or tableau with an embedded method.
        rtol: relative tolerance.
        atol: absolute tolerance.
        per_sample: control each sample (first dimension of the state) separately, so that its
            result does not depend on the others. Otherwise all samples take the same steps, chosen
            by the root mean square error over the whole batch.
        first_step: the first step; None: chosen by the rule of Hairer, Nørsett & Wanner I, p. 169.
        max_steps: the largest number of attempted steps.
        max_step: the longest step, which keeps steps from missing features of the field that last
            longer.
        breaks: times at which the field may jump. Steps end there, and each step uses the values
            of the field on its own side.

    Raises:
        UsageError: the method has no error estimate, or a number is out of range.
    """

    rtol: float
    atol: float
    per_sample: bool = False
    first_step: float | None = None
    max_steps: int = 10_000
    max_step: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        tableau = get_tableau(self.method)
        if tableau.embedded is None:
            raise UsageError(
                f"{tableau.name} has no error estimate and cannot be adaptive: use "
                f"FixedStep({tableau.name!r}, …), or an embedded method such as 'dopri5'."
            )
        if not (_is_number(self.rtol) and _is_number(self.atol)):
            raise UsageError(
                f"rtol and atol must be numbers, got {self.rtol!r} and {self.atol!r}. For a "
                "different tolerance for each component, scale the components of the state."
            )
        if min(self.rtol, self.atol) < 0 or self.rtol + self.atol == 0:
            raise UsageError(
                "rtol and atol must not be negative, and not both zero, got "
                f"{self.rtol!r} and {self.atol!r}."
            )
        for name in ("first_step", "max_step"):
            if (value := getattr(self, name)) is not None:
                _positive(name, value)
        object.__setattr__(self, "max_steps", _whole("max_steps", self.max_steps))

    def longest(self, length: float) -> float:
        """The longest step as a fraction of an interval, with room for the remainder of a
        ten-thousandth that the last step may absorb.
        """
        return inf if self.max_step is None else self.max_step / (1.0001 * abs(length))

    def scaled(self, factor: float) -> Adaptive:
        """The same method with ``factor`` times the tolerances."""
        _positive("factor", factor)
        return replace(self, rtol=self.rtol * factor, atol=self.atol * factor)

    def refined(self, times: float = 2) -> Adaptive:
        """The same method with tolerances divided by ``times ** order``, which takes about
        ``times`` as many steps.
        """
        return self.scaled(times**-self.order)

    def __str__(self) -> str:
        tolerance = (
            f"{self.rtol:.3g}"
            if self.rtol == self.atol
            else f"{self.rtol:.3g} (rel), {self.atol:.3g} (abs)"
        )
        return f"{self.name}, tol = {tolerance}{', per sample' if self.per_sample else ''}"


@dataclass(frozen=True)
class OnGrid(_Method):
    """Steps of a method on a given time grid, such as the one that an adaptive solve chose.

    Args:
        method: a name or tableau.
        grid: fractions of the interval, ascending from 0 to 1. For one grid per sample: a tuple
            for each grid point, with the fractions of all samples.
        breaks: times at which the field may jump; the grid must have points there.
    """

    grid: tuple[float, ...] | tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len({len(row) if isinstance(row, tuple) else 0 for row in self.grid}) != 1:
            raise UsageError("A grid needs points, each with the fractions of the same samples.")
        columns = zip(*self.grid, strict=True) if self.per_sample else [self.grid]
        for column in columns:
            ascending = all(x <= y for x, y in itertools.pairwise(column))
            if len(column) < 2 or column[0] != 0 or column[-1] != 1 or not ascending:
                raise UsageError("The fractions of a grid must ascend from 0 to 1.")

    @property
    def per_sample(self) -> bool:
        """Whether each sample has its own grid."""
        return isinstance(self.grid[0], tuple)

    def fractions(self, length: float) -> tuple[float, ...] | tuple[tuple[float, ...], ...]:
        """The grid as fractions of the interval."""
        return self.grid

    def scaled(self, factor: float) -> FixedStep:
        """Equal steps, ``factor`` times the mean step."""
        return FixedStep(self.method, n_steps=len(self.grid) - 1, breaks=self.breaks).scaled(factor)

    def refined(self, times: float = 2) -> FixedStep:
        """Equal steps, ``times`` as many."""
        return self.scaled(1 / times)

    def __str__(self) -> str:
        return f"{self.name} on {len(self.grid) - 1} given steps"


Solver = FixedStep | Adaptive | OnGrid


def to_plain(solver: Solver) -> dict[str, Any]:
    """A solver as plain values, its method by name.

    Raises:
        UsageError: the solver is an `OnGrid`.
    """
    if isinstance(solver, OnGrid):
        raise UsageError(f"{solver} cannot be written as plain values: use FixedStep or Adaptive.")
    return {**{f.name: getattr(solver, f.name) for f in fields(solver)}, "method": solver.name}


def from_plain(
    values: Mapping[str, Any], method: str | ButcherTableau | None = None
) -> FixedStep | Adaptive:
    """The solver that `to_plain` described; pass ``method`` if it is your own tableau."""
    kind: type[FixedStep | Adaptive] = Adaptive if "rtol" in values else FixedStep
    return kind(**{**values, "method": method or values["method"]})
