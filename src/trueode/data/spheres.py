"""Concentric spheres: an inner and an outer shell of class 0, and one between them of class 1."""

from __future__ import annotations

from typing import Any

import numpy as np

SHELLS = ((0.1, 0.15, 0), (0.25, 0.3, 1), (0.4, 0.45, 0))  # inner radius, outer radius, class
VERSION = 1  # increased if the same seed gives other points

Array = np.ndarray[Any, Any]


def concentric_spheres(n: int, d: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw ``n`` points: a quarter inner and a quarter outer (class 0), the others between them
    (class 1).

    Radius = (r_max - r_min) u^(1/d) + r_min with u uniform on [0, 1]; the direction is uniform on
    the sphere. Source: Ott, Katiyar, Hennig & Tiemann, ICLR 2021.

    Returns:
        x ``(n, 1, d)`` in float64 and labels ``(n,)``, in random order.
    """
    shell = np.repeat([0, 1, 2], [n // 4, n - 2 * (n // 4), n // 4])
    low, high, label = np.array(SHELLS).T
    radius = low[shell] + (high - low)[shell] * rng.random(n) ** (1 / d)
    direction = rng.standard_normal((n, d))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    order = rng.permutation(n)
    return (radius[:, None] * direction)[order, None], label[shell][order].astype(np.int64)
