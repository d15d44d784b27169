"""Weights and inputs that all libraries share, because they determine the steps of solvers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float32]


def layers(shapes: Iterable[tuple[int, int]]) -> list[tuple[Numbers, Numbers]]:
    """Matrices ``(fan_in, fan_out)`` and biases with PyTorch's default distribution.

    They are uniform within one over the root of the fan-in. The rows of a convolution are ordered
    by tap, then by input channel.
    """
    random = np.random.default_rng(0)
    drawn = [
        random.uniform(-1, 1, (n + 1, m)).astype(np.float32) / np.float32(n**0.5) for n, m in shapes
    ]
    return [(each[:-1], each[-1]) for each in drawn]


def points(n: int) -> Numbers:
    """Random points of the plane, ``(n, 2)``."""
    return np.random.default_rng(1).standard_normal((n, 2), dtype=np.float32)
