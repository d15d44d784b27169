"""Three minima: the class of a point is the minimum where a damped particle from there comes to
rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

MINIMA = (-0.850, 0.269, 1.839)  # the stable zeros of dV/dx, to three digits
VERSION = 1  # increased if the same seed gives other points
DAMPING = 0.2
SLOPE = (1.2, -2.5, -0.768, 2.364, 0.176, -0.192)  # coefficients of dV/dx, highest power first

Array = np.ndarray[Any, Any]


def slope(x: Array) -> Array:
    """The slope of the potential, V'(x) = 1.2x⁵ - 2.5x⁴ - 0.768x³ + 2.364x² + 0.176x - 0.192."""
    value = np.full_like(x, SLOPE[0])
    for coefficient in SLOPE[1:]:
        value *= x
        value += coefficient
    return value


def rk4(field: Callable[[Array], Array], z: Array, step: float, n_steps: int) -> Array:
    """The state after ``n_steps`` classical Runge-Kutta steps of an autonomous field."""
    for _ in range(n_steps):
        k1 = field(z)
        k2 = field(z + step / 2 * k1)
        k3 = field(z + step / 2 * k2)
        k4 = field(z + step * k3)
        z = z + step / 6 * (k1 + 2 * (k2 + k3) + k4)
    return z


def resting_place(z: Array, t_end: float = 100.0, step: float = 0.02) -> Array:
    """Where particles from ``z = (x, v)``, shape ``(2, n)``, rest: x' = v, v' = -V'(x) - 0.2 v.

    Returns:
        The index of the minimum nearest to x at ``t_end``, ``(n,)``.
    """

    def field(z: Array) -> Array:
        return np.stack([z[1], -slope(z[0]) - DAMPING * z[1]])

    x = rk4(field, z, step, round(t_end / step))[0]
    nearest: Array = np.abs(x[:, None] - np.array(MINIMA)).argmin(axis=1)
    return nearest


def three_minima(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw ``n`` points (x, v), uniform on [-1, 2] x [-2, 2].

    Labels by rk4 with step 0.02 to t = 100. Source: Ott, Katiyar, Hennig & Tiemann, ICLR 2021,
    supplement.

    Returns:
        x ``(n, 1, 2)`` in float64 and labels 0, 1, 2 ``(n,)`` of the minima from left to right.
    """
    z = rng.uniform((-1.0, -2.0), (2.0, 2.0), (n, 2))
    return z[:, None], resting_place(np.ascontiguousarray(z.T)).astype(np.int64)
