"""A damped pendulum: the built-in time series."""

from __future__ import annotations

from typing import Any

import numpy as np

from trueode.data.minima import rk4

DAMPING = 0.1
INTERVAL = 0.25  # seconds between two observations
DURATION = 10.0  # seconds
SUBSTEPS = 50  # rk4 steps between two observations: the error is below 1e-9
VERSION = 1  # increased if the same seed gives other trajectories

Array = np.ndarray[Any, Any]


def pendulum(n: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Draw ``n`` trajectories of x'' = -sin x - 0.1 x' (radians, seconds) with x(0) in [-2, 2] and
    x'(0) in [-1, 1].

    Returns:
        The initial states (x, x') ``(n, 1, 2)``, the states ``(n, times, 1, 2)`` and the times
        ``(times,)``, every 0.25 s from 0 to 10 s.
    """

    def field(z: Array) -> Array:
        return np.stack([z[1], -np.sin(z[0]) - DAMPING * z[1]])

    z = rng.uniform((-2.0, -1.0), (2.0, 1.0), (n, 2)).T
    count = round(DURATION / INTERVAL)
    states = [z]
    for _ in range(count):
        states.append(rk4(field, states[-1], INTERVAL / SUBSTEPS, SUBSTEPS))
    path = np.moveaxis(np.stack(states), -1, 0)[:, :, None]
    return path[:, 0].copy(), path, np.arange(count + 1) * INTERVAL
