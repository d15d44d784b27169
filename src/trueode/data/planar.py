"""Densities in the plane: moons, rings and a checkerboard."""

from __future__ import annotations

from typing import Any

import numpy as np

VERSION = 1  # increased if the same seed gives other points

Array = np.ndarray[Any, Any]


def moons(n: int, rng: np.random.Generator) -> Array:
    """Two half circles of radius 2, one around (-1, -1/2) open below and one around (1, 1/2) open
    above, with normal noise of standard deviation 0.2: ``(n, 2)``.
    """
    angle, side = np.pi * rng.random(n), rng.integers(0, 2, n) * 2 - 1
    arc = np.stack([2 * np.cos(angle) - 1, 2 * np.sin(angle) - 0.5], axis=1)
    points: Array = side[:, None] * arc + 0.2 * rng.standard_normal((n, 2))
    return points


def rings(n: int, rng: np.random.Generator) -> Array:
    """Circles of radius 1, 2 and 3, equally likely, with normal noise of standard deviation 0.15:
    ``(n, 2)``.
    """
    angle, radius = 2 * np.pi * rng.random(n), rng.integers(1, 4, n)
    circle = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    points: Array = circle + 0.15 * rng.standard_normal((n, 2))
    return points


def checkerboard(n: int, rng: np.random.Generator) -> Array:
    """Uniform on the eight black fields of a 4 x 4 board on [-2, 2]², where the log density is
    -log 8: ``(n, 2)``.
    """
    column, row = rng.integers(0, 4, n), rng.integers(0, 2, n)
    corner = np.stack([column, 2 * row + column % 2], axis=1) - 2
    points: Array = corner + rng.random((n, 2))
    return points


GENERATORS = {"moons": moons, "rings": rings, "checkerboard": checkerboard}


def planar(name: str, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw ``n`` points of a name of `GENERATORS`.

    Returns:
        x ``(n, 1, 2)`` in float64, and no targets, ``(n, 0)``.
    """
    return GENERATORS[name](n, rng)[:, None], np.empty((n, 0))
