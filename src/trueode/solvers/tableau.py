"""Butcher tableaux: an explicit Runge-Kutta method as data that checks itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import fsum, isclose

Coefficients = tuple[float, ...]


@dataclass(frozen=True)
class ButcherTableau:
    """An explicit Runge-Kutta method ``z_new = z + h sum_i b_i k_i``,
    ``k_i = f(t + c_i h, z + h sum_j a_ij k_j)``.

    A tableau with inconsistent coefficients, or without the order it claims (checked up to order
    4), cannot be created.

    Args:
        name: the method's name.
        order: order of the advanced solution.
        a: the rows of the strictly lower triangle: row i has i entries; the first row is empty.
        b: weights of the advanced solution.
        embedded: weights of the embedded solution of order ``embedded_order``; None for a method
            without error estimate.
        embedded_order: order of the embedded solution (0: none).
        dense: row i holds the coefficients of theta, theta^2, … of the continuous weight
            ``b_i(theta)``; None means cubic Hermite interpolation.
        source: the publication of the coefficients.

    Raises:
        ValueError: the coefficients contradict each other or the order; the message names the
            condition.
    """

    name: str
    order: int
    a: tuple[Coefficients, ...]
    b: Coefficients
    embedded: Coefficients | None = None
    embedded_order: int = 0
    dense: tuple[Coefficients, ...] | None = None
    source: str = ""

    def __post_init__(self) -> None:
        if [len(row) for row in self.a] != list(range(len(self.b))):
            raise ValueError(
                f"{self.name}: row i of `a` must have i entries for each of the {len(self.b)} "
                f"weights in `b`; the rows have {[len(row) for row in self.a]}. Only explicit "
                "methods are supported."
            )
        self._check_order("b", self.b, self.order)
        if self.embedded is not None:
            self._check_order("embedded", self.embedded, self.embedded_order)
        if self.dense is not None:
            ends = [sum(row) for row in self.dense]
            if len(ends) != self.stages or not all(
                isclose(x, y, abs_tol=1e-9) for x, y in zip(ends, self.b, strict=True)
            ):
                raise ValueError(
                    f"{self.name}: the dense weights at theta = 1 must equal `b`; they are {ends}."
                )

    def _check_order(self, label: str, weights: Sequence[float], order: int) -> None:
        if len(weights) != self.stages:
            raise ValueError(
                f"{self.name}: `{label}` has {len(weights)} weights for {self.stages} stages."
            )
        for condition, (least, lhs, rhs) in order_conditions(self.a, self.c, weights).items():
            if least <= order and not isclose(lhs, rhs, abs_tol=1e-9):
                raise ValueError(
                    f"{self.name}: `{label}` claims order {order} but {condition} = {lhs:.12g}, "
                    f"expected {rhs:.12g}."
                )

    @cached_property
    def c(self) -> Coefficients:
        """The nodes: row sums of ``a`` (the row-sum condition holds by construction)."""
        nodes = (fsum(row) for row in self.a)
        # exactly the end of a step
        return tuple(1.0 if isclose(node, 1.0, rel_tol=1e-14) else node for node in nodes)

    @property
    def stages(self) -> int:
        """The number of stages."""
        return len(self.b)

    @cached_property
    def advancing_stages(self) -> int:
        """The number of stages that the advanced solution needs, without trailing stages of weight
        zero.
        """
        return max(i + 1 for i, weight in enumerate(self.b) if weight)

    @cached_property
    def fsal(self) -> bool:
        """Whether the last stage is the field at the end of the step (first same as last)."""
        return self.b[-1] == 0 and self.a[-1] == self.b[:-1]

    @cached_property
    def continuous(self) -> tuple[Coefficients, ...]:
        """Dense output: the coefficients of theta, theta^2, … of the weights of the stages that
        advance the solution, in the last row of the field at the end of the step.

        Without ``dense``, they are those of cubic Hermite interpolation (Hairer, Nørsett &
        Wanner I, eq. II.6.7).
        """
        if self.dense is not None:
            return self.dense if self.fsal else (*self.dense, (0.0,) * len(self.dense[0]))
        rows = [[0.0, 3 * b, -2 * b] for b in self.b[: self.advancing_stages]]
        rows[0] = [x + y for x, y in zip(rows[0], (1.0, -2.0, 1.0), strict=True)]
        return (*map(tuple, rows), (0.0, -1.0, 1.0))

    @cached_property
    def stability(self) -> float:
        """The largest x such that steps of size h are stable for ``z' = -x z / h``: the real
        interval of stability.

        Source: Hairer & Wanner, Solving Ordinary Differential Equations II, 2nd ed., section IV.2.
        """

        def growth(x: float) -> float:
            stages: list[float] = []
            for row in self.a:
                stages.append(-x * (1 + sum(w * k for w, k in zip(row, stages, strict=True))))
            return abs(1 + sum(w * k for w, k in zip(self.b, stages, strict=True)))

        number = 1
        while growth(number / 100) <= 1 + 1e-9:
            number += 1
        return (number - 1) / 100

    @cached_property
    def error_weights(self) -> Coefficients:
        """``b - embedded``: the weights of the error estimate."""
        if self.embedded is None:
            raise ValueError(
                f"{self.name} has no embedded method, hence no error estimate: "
                "use it with fixed steps."
            )
        return tuple(x - y for x, y in zip(self.b, self.embedded, strict=True))


def order_conditions(
    a: Sequence[Coefficients], c: Sequence[float], b: Sequence[float]
) -> dict[str, tuple[int, float, float]]:
    """The order conditions up to order 4: name -> (order, left side, right side).

    Source: Hairer, Nørsett & Wanner, Solving Ordinary Differential Equations I, 2nd ed., Table
    II.2.1.
    """

    def dot(x: Sequence[float], y: Sequence[float]) -> float:
        return sum(p * q for p, q in zip(x, y, strict=True))

    def apply_a(x: Sequence[float]) -> list[float]:
        return [dot(row, x[: len(row)]) for row in a]

    ac, c2 = apply_a(c), [x * x for x in c]
    return {
        "sum b": (1, sum(b), 1.0),
        "b·c": (2, dot(b, c), 1 / 2),
        "b·c²": (3, dot(b, c2), 1 / 3),
        "b·Ac": (3, dot(b, ac), 1 / 6),
        "b·c³": (4, dot(b, [x**3 for x in c]), 1 / 4),
        "b·(c Ac)": (4, dot(b, [x * y for x, y in zip(c, ac, strict=True)]), 1 / 8),
        "b·Ac²": (4, dot(b, apply_a(c2)), 1 / 12),
        "b·AAc": (4, dot(b, apply_a(ac)), 1 / 24),
    }
