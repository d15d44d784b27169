"""Batches in an order that depends only on the seed and the epoch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from trueode.data.device import CPU
from trueode.data.splits import Batch, Samples
from trueode.errors import DataError, UsageError
from trueode.seeds import stream
from trueode.transfer import send


class Batches:
    """The batches of a split, for one process or for the ranks that share them.

    Args:
        split: the samples.
        batch_size: global batch size; the last batch of an epoch may have fewer samples.
        seed: of the order.
        shuffle: whether each epoch has a new random order; otherwise that of the split.
        rank: of this process.
        world_size: number of processes. Each takes a contiguous part of every batch; their sizes
            differ by at most one.
        num_workers: number of processes that read a split from disk.
        device: the device of the batches. Data in memory is copied there once, if it takes less
            than a third of the free memory, and else batch by batch.
    """

    def __init__(
        self,
        split: Samples,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        device: torch.device = CPU,
    ) -> None:
        if batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, not {batch_size}.")
        if not 0 <= rank < world_size:
            raise UsageError(
                f"rank must be in 0 … {world_size - 1} for world_size = {world_size}, not {rank}."
            )
        if not len(split):
            raise DataError("The data holds no samples.")
        self.split = split
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.world_size = world_size
        self.num_workers = num_workers
        self.device = device

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return -(-len(self.split) // self.batch_size)

    def order(self, epoch: int) -> Tensor:
        """The order of the samples in an epoch, ``(samples,)``."""
        if not self.shuffle:
            return torch.arange(len(self.split), device="cpu")
        return torch.from_numpy(stream(self.seed, "order", epoch).permutation(len(self.split)))

    def from_iteration(self, i: int) -> Iterator[tuple[Batch, int]]:
        """Endless batches from iteration ``i`` on: this rank's part, and the global batch size."""
        return self.split.read(self._indices(i), self.num_workers, self.device)

    def in_order(self) -> Iterator[Batch]:
        """All batches once, in the order of the split: this rank's part, which may be empty."""
        parts = map(self._part, self._batches(torch.arange(len(self.split), device="cpu")))
        return (batch for batch, _ in self.split.read(parts, self.num_workers, self.device))

    def first(self) -> tuple[Batch, int]:
        """This rank's part of the first batch, and the global batch size."""
        indices, whole = next(self._indices(0))
        return self.split.batch(indices, self.device), whole

    def _indices(self, i: int) -> Iterator[tuple[Tensor, int]]:
        epoch, skip = divmod(i, len(self))
        while True:
            for whole in islice(self._batches(self.order(epoch)), skip, None):
                yield self._part(whole)
            epoch, skip = epoch + 1, 0

    def _batches(self, order: Tensor) -> tuple[Tensor, ...]:
        order = send(order, self.split.on(self.device).place)  # once for all batches
        return order.split(self.batch_size)  # type: ignore[no-untyped-call, no-any-return]

    def _part(self, whole: Tensor) -> tuple[Tensor, int]:
        n = len(whole)
        return whole[n * self.rank // self.world_size : n * (self.rank + 1) // self.world_size], n
