"""The parts of a data set: batches, samples and splits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from trueode.errors import DataError


class Batch(NamedTuple):
    """A batch of samples.

    Attributes:
        x: inputs ``(batch, channels, length)`` or ``(batch, channels, height, width)``.
        y: labels ``(batch,)``; targets ``(batch, outputs)``; or states
            ``(batch, times, channels, length)``, NaN if not observed.
        t: times of the states, ``(times,)`` for all samples, or ``(batch, times)``, NaN if a sample
            has fewer; None without times.
    """

    x: Tensor
    y: Tensor
    t: Tensor | None = None

    def rows(self, chosen: slice) -> Batch:
        """Some of the samples."""
        t = self.t[chosen] if self.t is not None and self.t.dim() == 2 else self.t
        return Batch(self.x[chosen], self.y[chosen], t)


class Samples(ABC):
    """Samples of a data set, in memory or on disk.

    Attributes:
        y: their labels, targets or states, as in `Batch`.
        t: times of the states, as in `Batch`.
        dtype: floating-point type of the batches.
    """

    y: Tensor
    t: Tensor | None
    dtype: torch.dtype

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def batch(self, indices: Tensor) -> Batch:
        """The samples with the given indices ``(batch,)``."""

    @abstractmethod
    def take(self, indices: Tensor) -> Samples:
        """A subset: the samples with the given indices ``(n,)``."""

    @abstractmethod
    def to(self, dtype: torch.dtype) -> Samples:
        """The same samples with another floating-point type. Times keep their type, so the last one
        still equals ``t_end``.
        """

    def read(
        self, indices: Iterator[tuple[Tensor, int]], num_workers: int
    ) -> Iterator[tuple[Batch, int]]:
        """Batches with the given indices, each with its number; slow batches are read ahead."""
        return ((self.batch(part), n) for part, n in indices)

    def first(self, n: int) -> Samples:
        """The first ``n`` samples, or all if there are fewer."""
        return self if n >= len(self) else self.take(torch.arange(n, device="cpu"))


@dataclass(frozen=True, eq=False)
class Split(Samples):
    """Samples in memory; fields as in `Batch`, over all samples.

    Images may be stored as bytes; a batch converts them to numbers in [0, 1] of type ``dtype``.
    """

    x: Tensor
    y: Tensor
    t: Tensor | None = None
    dtype: torch.dtype = torch.float32

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Tensor) -> Batch:
        return Batch(as_numbers(self.x[indices], self.dtype), self.y[indices], self._times(indices))

    def take(self, indices: Tensor) -> Split:
        return replace(self, x=self.x[indices], y=self.y[indices], t=self._times(indices))

    def to(self, dtype: torch.dtype) -> Split:
        def cast(part: Tensor) -> Tensor:
            if not part.is_floating_point():
                return part
            found = part.to(dtype)
            if found.isinf().any():
                most = torch.finfo(dtype).max
                raise DataError(
                    f"The data holds numbers beyond {most:.2g}, too large for {dtype}: scale them."
                )
            return found

        return replace(self, x=cast(self.x), y=cast(self.y), dtype=dtype)

    def _times(self, indices: Tensor) -> Tensor | None:
        return self.t[indices] if self.t is not None and self.t.dim() == 2 else self.t


def as_numbers(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert bytes 0 … 255 to numbers in [0, 1]; leave numbers unchanged."""
    return x.to(dtype).div_(255) if x.dtype == torch.uint8 else x


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set, ready for training.

    Attributes:
        name: as in ``catalog.DATA_SETS``.
        task: ``"classification"``, ``"regression"`` or ``"timeseries"``.
        train: training samples.
        test: test samples.
        sample_shape: shape of one input, without the batch.
        n_outputs: number of classes, or of numbers in a target (time series: in a state).
        classes: names of the classes, if they have names.
        t_end: last time of a time series.
        t_start: time at which the inputs of a time series are its states.
    """

    name: str
    task: str
    train: Samples
    test: Samples
    sample_shape: tuple[int, ...]
    n_outputs: int
    classes: tuple[str, ...] | None = None
    t_end: float | None = None
    t_start: float = 0.0

    def to(self, dtype: torch.dtype) -> Dataset:
        """The same data with another floating-point type."""
        return replace(self, train=self.train.to(dtype), test=self.test.to(dtype))
