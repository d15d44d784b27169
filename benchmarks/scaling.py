"""Measure how the cost of a solve grows with the number of steps, the batch and the width.

``python benchmarks/scaling.py SECONDS`` prints JSON. The work is a solve of Sphere2's
``simple_odenet`` by Euler steps, forward and backward, without loss and optimiser. Starting from 64
steps, a batch of 128 and 32 channels, one of the three is varied at a time. The sizes of a series
take turns.
"""

from __future__ import annotations

import json
import statistics
import sys
from typing import NamedTuple

from turns import FEWEST, TURN, timed


class Point(NamedTuple):
    """The size of a solve."""

    steps: int = 64
    batch: int = 128
    width: int = 32

    @property
    def flops(self) -> int:
        """Floating point operations of the solve and its gradient."""
        return gradient_flops(self.batch * self.steps * conv_flops(1, self.width, length=2, dim=1))


SERIES = {
    "steps": [Point(steps=16 * 2**i) for i in range(7)],
    "batch": [Point(batch=128 * 2**i) for i in range(7)],
    "width": [Point(width=32 * 2**i) for i in range(5)],
}


def conv_flops(channels: int, hidden: int, length: int, dim: int) -> int:
    """Floating point operations of the paper's convolutional field, per evaluation and sample.

    Each product counts as two; products with the padding do not count.
    """
    ends, middle = 2 * channels * hidden * length**dim, hidden**2 * (3 * length - 2) ** dim
    return 2 * (ends + middle)


def gradient_flops(forward: int) -> int:
    """Floating point operations of a forward and backward pass.

    Each matrix product of the forward pass leads to two in the backward pass.
    """
    return 3 * forward


def measure(seconds: float) -> dict[str, list[float]]:
    """Median seconds of each point of each series."""
    import torch

    from trueode import FixedStep, solve
    from trueode.fields import build_field

    def run(point: Point) -> list[float]:
        field, z = build_field("simple_odenet", (1, 2), point.width), torch.randn(point.batch, 1, 2)
        solver = FixedStep("euler", n_steps=point.steps)

        def step() -> None:
            solve(field, z, solver=solver).z.sum().backward()

        step()
        return timed(step, TURN / 2, fewest=1)

    found: dict[str, list[float]] = {}
    for name, points in SERIES.items():
        times: list[list[float]] = [[] for _ in points]
        while any(sum(taken) < seconds or len(taken) < FEWEST for taken in times):
            for point, taken in zip(points, times, strict=True):
                taken += run(point)
        found[name] = [statistics.median(taken) for taken in times]
    return found


if __name__ == "__main__":
    print(json.dumps(measure(float(sys.argv[1]))))
