"""Figure 3: Lady Windermere's fan on XOR, and the robustness of its parameters."""

from __future__ import annotations

from math import ceil
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

XOR: Array = np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
"""The corners of the unit square. A square around 0 would not work: the field is odd, so opposite
corners have opposite ends, and 0 lies between the ends of each class."""
LABELS = np.array([0, 0, 1, 1])
COARSE, FINE = 10**-2.5, 10**-3.5
T = 5.0
_ANGLES = np.linspace(0, 2 * np.pi, 720, endpoint=False)
_NORMALS: Array = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=-1)


class Parameters(NamedTuple):
    """Parameters of the field z' = [[alpha, 1], [-gamma |z|^delta, beta]] z.

    They are numbers, or arrays ``(n,)`` for n fields at once.
    """

    alpha: Any
    beta: Any
    gamma: Any
    delta: Any


CHOSEN = Parameters(alpha=-0.52, beta=1.39, gamma=18.1, delta=1.14)
"""Found by a random search for the effect with the largest margins and the best robustness."""


def field(z: Array, p: Parameters) -> Array:
    """The field at points ``(…, 4, 2)``; parameters ``(…, 1)``."""
    stiffness = p.gamma * np.linalg.norm(z, axis=-1) ** p.delta
    slopes: Array = np.stack(
        [p.alpha * z[..., 0] + z[..., 1], p.beta * z[..., 1] - stiffness * z[..., 0]], axis=-1
    )
    return slopes


def steps_of(h: float) -> int:
    """The number of equal steps of at most h that end exactly at T."""
    return ceil(T / h)


def euler(p: Parameters, n_steps: int, keep: int = 0) -> Array:
    """Ends ``(…, 4, 2)`` of the XOR points after ``n_steps`` Euler steps; with ``keep``, the states
    at about ``keep`` times, the ends last.
    """
    p = _columns(p)
    z = np.broadcast_to(XOR, (*np.shape(p.alpha)[:-1], *XOR.shape)).copy()
    path = [z]
    for step in range(1, n_steps + 1):
        z = z + T / n_steps * field(z, p)
        if keep and (step % max(1, n_steps // keep) == 0 or step == n_steps):
            path.append(z)
    found: Array = np.stack(path) if keep else z
    return found


def exact(p: Parameters, n_steps: int = 5000) -> Array:
    """The ends of `euler` by rk4, exact to many digits with the default number of steps."""
    p = _columns(p)
    z: Array = np.broadcast_to(XOR, (*np.shape(p.alpha)[:-1], *XOR.shape)).copy()
    h = T / n_steps
    for _ in range(n_steps):
        k1 = field(z, p)
        k2 = field(z + h / 2 * k1, p)
        k3 = field(z + h / 2 * k2, p)
        k4 = field(z + h * k3, p)
        z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return z


def _columns(p: Parameters) -> Parameters:
    return Parameters(*(np.asarray(value, dtype=float)[..., None] for value in p))


def margin(ends: Array) -> tuple[Array, Array, Array]:
    """The margin of the best line between the two classes; negative if no line separates them.

    Args:
        ends: ``(…, 4, 2)``.

    Returns:
        The largest gap ``(…)`` between the projections of the classes over all directions, with
        each component scaled to a standard deviation of 1 over the points; the normal ``(…, 2)``
        and the offset ``(…)`` of the line in the middle of the gap, ``normal · z = offset``.
    """
    size = ends.std(axis=-2)
    projected = (ends / size[..., None, :]) @ _NORMALS.T
    upper, lower = (
        projected[..., LABELS == 0, :].min(axis=-2),
        projected[..., LABELS == 1, :].max(axis=-2),
    )
    best = (upper - lower).argmax(axis=-1)[..., None]
    gap = np.take_along_axis(upper - lower, best, -1)[..., 0]
    middle = np.take_along_axis(upper + lower, best, -1)[..., 0] / 2
    return gap, _NORMALS[best[..., 0]] / size, middle


def margins(p: Parameters) -> tuple[Array, Array, Array]:
    """The margins with the coarse step, with the fine step, and under the exact flow."""
    with np.errstate(all="ignore"):  # some parameters blow up
        found = (euler(p, steps_of(COARSE)), euler(p, steps_of(FINE)), exact(p))
        coarse, fine, true = (margin(ends)[0] for ends in found)
    return coarse, fine, true


def shows(coarse: Array, fine: Array, true: Array) -> NDArray[np.bool_]:
    """Whether the ends are linearly separable with the coarse step, but neither with the fine step
    nor under the exact flow.
    """
    return (coarse > 0) & (fine < 0) & (true < 0)


def robustness(p: Parameters, within: float, n: int = 200, seed: int = 0) -> float:
    """The share of ``n`` random sets of parameters near ``p`` that show the effect.

    Each parameter differs by at most the share ``within`` of its value.
    """
    random = np.random.default_rng(seed)
    near = Parameters(*(value * (1 + within * random.uniform(-1, 1, n)) for value in p))
    return float(shows(*margins(near)).mean())
