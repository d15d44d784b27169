"""Means over samples by which a solver is judged: of log densities, and of errors of samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import ceil, inf, nan, sqrt

import torch
from torch import Tensor

from trueode.evaluation.density import Density
from trueode.evaluation.statistics import (
    FEWEST,
    mean_deviation,
    rough_percent,
    t_bounds,
    t_quantile,
)

DIRECTIONS = 128  # of the projections in a sliced distance


@dataclass(frozen=True)
class Paired(ABC):
    """The mean over samples of a number that compares a solver with the exact flow.

    Attributes:
        n: number of samples with a known exact flow.
        mean: the mean over them.
        deviation: the standard deviation over them.
    """

    n: int
    mean: float
    deviation: float

    name = ""
    """What the mean is, in words."""

    @property
    @abstractmethod
    def estimate(self) -> float:
        """The mean in the units of `bounds`."""

    @abstractmethod
    def limit(self, margin: float) -> float:
        """How large the mean may be, in the units of `bounds`.

        Args:
            margin: that of `decide`; a limit of the task replaces it.
        """

    @abstractmethod
    def told(self, value: float) -> str:
        """A value in the units of `bounds` as text."""

    @abstractmethod
    def _scaled(self, value: float) -> float:
        """A mean in the units of `bounds`; increasing."""

    def bounds(self, level: float) -> tuple[float, float]:
        """Bounds of the mean, those of its t-interval, each with confidence 1 - ``level``.

        They are infinite if there are fewer than 100 samples. With ``level`` 0 both are the mean
        itself.
        """
        if not level:
            return self.estimate, self.estimate
        if self.n < FEWEST:
            return -inf, inf
        lower, upper = t_bounds(self.mean, self.deviation, self.n, 1 - level)
        return self._scaled(lower), self._scaled(upper)

    def needed(self, margin: float, level: float) -> float:
        """The number of samples that would decide if mean and deviation stay the same."""
        distance = min(abs(self.mean - x) for x in self._thresholds(self.limit(margin)))
        if not distance:
            return inf
        return max(
            FEWEST, ceil((t_quantile(max(self.n, 2), 1 - level) * self.deviation / distance) ** 2)
        )

    @abstractmethod
    def _thresholds(self, limit: float) -> tuple[float, ...]:
        """The means at which the decision changes."""


@dataclass(frozen=True)
class Likelihood(Paired):
    """The change of the log density by the solver: under the solver, minus under the exact flow.

    ``mean``, ``deviation`` and all others are in nats for a sample; `bounds` are in bits per
    dimension.

    Attributes:
        own: mean log density under the solver.
        exact: mean log density under the exact flow.
        median: median of the absolute changes.
        q90: their 90 % quantile.
        q99: their 99 % quantile.
        largest: the largest of them.
        bit: nats of a bit per dimension.
        absolute: the limit that the user passed, in nats; 0 without one.
    """

    own: float
    exact: float
    median: float
    q90: float
    q99: float
    largest: float
    bit: float
    absolute: float

    name = "the mean change of the log density"

    @property
    def estimate(self) -> float:
        return self._scaled(self.mean)

    def limit(self, margin: float) -> float:
        return self._scaled(self.absolute) if self.absolute else margin

    def told(self, value: float) -> str:
        return f"{value:.3g} bits per dimension"

    def _scaled(self, value: float) -> float:
        return value / self.bit

    def _thresholds(self, limit: float) -> tuple[float, ...]:
        return limit * self.bit, -limit * self.bit


@dataclass(frozen=True)
class Discrepancy(Paired):
    """The errors of samples that a solver draws from given noise.

    ``mean`` and ``deviation`` are of the squared errors, relative to the squared spread of the
    exact samples. `bounds` are of their root, the RMS error. It bounds the 2-Wasserstein distance
    from above, relative to the spread of the exact samples.

    Attributes:
        sliced: the sliced 2-Wasserstein distance between the samples and the exact ones, relative
            to the spread; see `sliced_distance`.
        floor: the same between two independent sets of exact samples.
        tolerance: how large the RMS error may be.
    """

    sliced: float
    floor: float
    tolerance: float

    name = "the error of the samples, relative to their spread,"

    @property
    def estimate(self) -> float:
        return self._scaled(self.mean)

    def limit(self, margin: float) -> float:
        return self.tolerance

    def told(self, value: float) -> str:
        return rough_percent(value)

    def _scaled(self, value: float) -> float:
        return sqrt(max(value, 0.0))

    def _thresholds(self, limit: float) -> tuple[float, ...]:
        return (limit**2,)


def compare_densities(task: Density, own: Tensor, exact: Tensor) -> Likelihood:
    """Compare log densities under a solver with those under the exact flow.

    Args:
        task: the task.
        own: log densities under the solver ``(n,)``, in double precision, finite.
        exact: log densities under the exact flow ``(n,)``, likewise.
    """
    change = own - exact
    mean, deviation = mean_deviation(change.tolist())
    median = q90 = q99 = largest = nan
    if len(change):
        shares = change.new_tensor([0.5, 0.9, 0.99, 1.0])
        median, q90, q99, largest = change.abs().quantile(shares).tolist()
    return Likelihood(
        len(change), mean, deviation, float(own.mean()), float(exact.mean()), median, q90, q99,
        largest, task.bit, task.absolute or 0.0,
    )  # fmt: skip


def compare_samples(own: Tensor, exact: Tensor, spread: float, tolerance: float) -> Discrepancy:
    """Compare samples under a solver with those under the exact flow, from the same noise.

    Args:
        own: samples under the solver ``(n, d)``, in double precision, finite.
        exact: samples under the exact flow ``(n, d)``, likewise.
        spread: RMS deviation of the exact samples from their mean.
        tolerance: how large the RMS error may be, relative to the spread.
    """
    squares = (own - exact).square().mean(1) / spread**2
    mean, deviation = mean_deviation(squares.tolist())
    half = len(exact) // 2
    # the squared distance of two independent sets is inversely proportional to their size
    floor = sliced_distance(exact[:half], exact[half : 2 * half]) / sqrt(2)
    sliced = sliced_distance(own, exact)
    return Discrepancy(len(own), mean, deviation, sliced / spread, floor / spread, tolerance)


def sliced_distance(one: Tensor, other: Tensor) -> float:
    """The sliced 2-Wasserstein distance between two sets of equal size, over fixed random
    directions; NaN for empty sets.

    It is the root of the mean, over unit directions, of the squared Wasserstein distance between
    the projections, and at most the RMS difference of the numbers of paired samples. Source: N.
    Bonneel et al., Sliced and Radon Wasserstein barycenters of measures, Journal of Mathematical
    Imaging and Vision 51 (2015), 22-45.

    Args:
        one: ``(n, d)``.
        other: ``(n, d)``.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    directions = torch.randn(
        one.shape[1], DIRECTIONS, generator=generator, dtype=one.dtype, device="cpu"
    )
    directions = directions / torch.linalg.vector_norm(directions, dim=0)
    first, second = ((x @ directions).sort(0).values for x in (one, other))
    return float((first - second).square().mean().sqrt())
