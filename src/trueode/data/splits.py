"""What a data set consists of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from trueode.errors import DataError


class Batch(NamedTuple):
    """Some samples.

    Attributes:
        x: inputs ``(batch, channels, length)`` or ``(batch, channels, height, width)``.
        y: labels ``(batch,)``; targets ``(batch, outputs)``; or states
            ``(batch, times, channels, length)``, NaN where not observed.
        t: times of the states, ``(times,)`` for all samples or ``(batch, times)``, NaN where there
            is none; else None.
    """

    x: Tensor
    y: Tensor
    t: Tensor | None = None


class Samples(ABC):
    """Samples of a data set, in memory or on disk.

    Attributes:
        y: what belongs to them, as in `Batch`.
        t: times of the states, as in `Batch`.
        dtype: of the numbers that a batch gives.
    """

    y: Tensor
    t: Tensor | None
    dtype: torch.dtype

    @abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    @abstractmethod
    def batch(self, indices: Tensor) -> Batch:
        """The samples of given indices ``(batch,)``."""

    @abstractmethod
    def take(self, indices: Tensor) -> Samples:
        """The samples of given indices ``(n,)`` as samples of their own."""

    @abstractmethod
    def to(self, dtype: torch.dtype) -> Samples:
        """The same samples with floating point numbers of another type; times keep theirs, so that
        the last one stays it.
        """

    def read(
        self, indices: Iterator[tuple[Tensor, int]], num_workers: int
    ) -> Iterator[tuple[Batch, int]]:
        """Batches of given indices (with what stands beside them), read ahead where that takes
        long.
        """
        return ((self.batch(part), n) for part, n in indices)

    def first(self, n: int) -> Samples:
        """The first ``n`` samples, or all if there are fewer."""
        return self if n >= len(self) else self.take(torch.arange(n, device="cpu"))


@dataclass(frozen=True, eq=False)
class Split(Samples):
    """Samples held in memory; fields as in `Batch`, over all samples.

    Images may be held as bytes: a batch gives them as numbers in [0, 1] of the type ``dtype``.
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
                raise DataError(
                    f"The data holds numbers beyond {torch.finfo(dtype).max:.2g}, too large for {dtype}: scale them."
                )
            return found

        return replace(self, x=cast(self.x), y=cast(self.y), dtype=dtype)

    def _times(self, indices: Tensor) -> Tensor | None:
        return self.t[indices] if self.t is not None and self.t.dim() == 2 else self.t


def as_numbers(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes 0 … 255 as numbers in [0, 1]; numbers as they are."""
    return x.to(dtype).div_(255) if x.dtype == torch.uint8 else x


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set, ready for training.

    Attributes:
        name: as in ``catalog.DATA_SETS``.
        task: ``"classification"``, ``"regression"`` or ``"timeseries"``.
        train: the samples to train on.
        test: the samples to test on.
        sample_shape: shape of one input, without the batch.
        n_outputs: classes, or numbers in a target (time series: in a state).
        classes: names of the classes, if they have any.
        t_end: the last time of a time series.
        t_start: the time at which the inputs of a time series are its states.
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
        """The same data with floating point numbers of another type."""
        return replace(self, train=self.train.to(dtype), test=self.test.to(dtype))
