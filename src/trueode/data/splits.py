"""The parts of a data set: batches, samples and splits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from trueode import gpus
from trueode.data.device import CPU, SHARE, ahead
from trueode.errors import DataError
from trueode.transfer import send


class Batch(NamedTuple):
    """A batch of samples.

    Attributes:
        x: inputs ``(batch, channels, length)`` or ``(batch, channels, height, width)``.
        y: labels ``(batch,)``; targets ``(batch, outputs)``; states
            ``(batch, times, channels, length)``, NaN if not observed; or nothing, ``(batch, 0)``.
        t: times of the states, ``(times,)`` for all samples, or ``(batch, times)``, NaN if a sample
            has fewer; None without times. They stay on the CPU, where steps are chosen.
    """

    x: Tensor
    y: Tensor
    t: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The batch on a device, without waiting for the copy."""
        if self.x.device == self.y.device == device:
            return self
        return self._replace(x=send(self.x, device), y=send(self.y, device))

    def numbers(self, dtype: torch.dtype) -> Batch:
        """The batch with numbers in [0, 1] instead of bytes 0 … 255 as inputs."""
        if self.x.dtype != torch.uint8:
            return self
        x = self.x.to(dtype)
        # GPUs would multiply by the reciprocal of a plain number, which rounds differently
        return self._replace(x=x.div_(255 if x.is_cpu else x.new_full((), 255)))

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
    def stored(self, indices: Tensor) -> Batch:
        """The samples with the given indices ``(batch,)`` as they are stored: images as bytes."""

    def batch(self, indices: Tensor, device: torch.device = CPU) -> Batch:
        """The samples with the given indices ``(batch,)``, on a device."""
        return self.on(device).stored(indices).to(device).numbers(self.dtype)

    def on(self, device: torch.device) -> Samples:
        """The same samples, stored on a device if they are in memory and fit there."""
        return self

    @property
    def place(self) -> torch.device:
        """The device of the indices of a batch."""
        return CPU

    @abstractmethod
    def take(self, indices: Tensor) -> Samples:
        """A subset: the samples with the given indices ``(n,)``."""

    @abstractmethod
    def to(self, dtype: torch.dtype) -> Samples:
        """The same samples with another floating-point type. Times keep their type, so the last one
        still equals ``t_end``.
        """

    def read(
        self, indices: Iterator[tuple[Tensor, int]], num_workers: int, device: torch.device = CPU
    ) -> Iterator[tuple[Batch, int]]:
        """Batches with the given indices on a device, each with its number.

        Slow batches are read ahead, and batches that come from the host are sent ahead.
        """
        made = ((self.batch(part, device), n) for part, n in indices)
        return made if self.on(device).place == device else ahead(made)

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
    _on: dict[torch.device, Split] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.x)

    def stored(self, indices: Tensor) -> Batch:
        here = send(indices, self.x.device)
        return Batch(self.x[here], self.y[here], self._times(indices))

    def on(self, device: torch.device) -> Split:
        if device.type == "cpu" or self.x.device == self.y.device == device:
            return self
        if device not in self._on:
            fits = self._fits(device)
            self._on[device] = (
                replace(self, x=self.x.to(device), y=self.y.to(device)) if fits else self
            )
        return self._on[device]

    def _fits(self, device: torch.device) -> bool:
        """Whether a copy may be kept on a device; own times of each sample stay on the host."""
        if self.t is not None and self.t.dim() == 2:
            return False
        return device.type != "cuda" or self.x.nbytes + self.y.nbytes < SHARE * gpus.free(device)

    @property
    def place(self) -> torch.device:
        return self.x.device

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


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set, ready for training.

    Attributes:
        name: as in ``catalog.DATA_SETS``.
        task: a name of ``catalog.TASKS``.
        train: training samples.
        test: test samples.
        sample_shape: shape of one input, without the batch.
        n_outputs: number of classes, or of numbers in a target (time series: in a state); 1 for a
            density.
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
