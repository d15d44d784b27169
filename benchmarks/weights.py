"""Weights and inputs that all sides have in common, whatever their library: steps of adaptive
solvers depend on them.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float32]


def layers(shapes: Iterable[tuple[int, int]]) -> list[tuple[Numbers, Numbers]]:
    """Matrices ``(fan_in, fan_out)`` and biases, uniform up to one over the root of the fan-in, as
    PyTorch draws them.

    The rows of a convolution are its taps, and in each the channels that come in.
    """
    random = np.random.default_rng(0)
    drawn = [
        random.uniform(-1, 1, (n + 1, m)).astype(np.float32) / np.float32(n**0.5) for n, m in shapes
    ]
    return [(each[:-1], each[-1]) for each in drawn]


def points(n: int) -> Numbers:
    """Points of a plane, ``(n, 2)``."""
    return np.random.default_rng(1).standard_normal((n, 2), dtype=np.float32)
