"""What the solves of a process share: the kernel, memory that is used again, and how many steps
they may expect.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trueode.solvers.solver import Adaptive

LARGEST_TAPE = (
    2**25
)  # bytes: beyond them stages are computed again, which takes less time than fresh memory
MOST_SIZES, MOST_SPARE = 6, 2  # of memory that is kept: sizes, and pieces of each
MOST_EXPECTED = 1000


NOT_ASKED = object()


class Runtime:
    """The one object of the process that solves change.

    Each change is one operation of a list or a dictionary, so solves of several threads share it
    without a lock: whoever takes a piece of memory is the only one to have it.

    Attributes:
        kernel: the `Kernel` in use, None where there is none, `NOT_ASKED` until one is needed.
        threads: how many the kernel may use; None: as many as PyTorch.
        expected: steps that solvers took when they were last used.
    """

    def __init__(self) -> None:
        self.kernel: Any = NOT_ASKED
        self.threads: int | None = None
        self.expected: dict[Adaptive, int] = {}
        self._spare: dict[int, list[Tensor]] = {}

    def expect(self, solver: Adaptive, n_steps: int) -> None:
        """Remember how many steps a solver took."""
        if len(self.expected) >= MOST_EXPECTED:
            self.expected = {}
        self.expected[solver] = n_steps

    def take(self, size: int) -> Block:
        """Memory of at least so many bytes, which is given back when nothing refers to it any more.

        Touching fresh memory takes as long as a solve.
        """
        size = rounded(size)
        try:
            return Block(self._spare[size].pop(), self)
        except (KeyError, IndexError):
            return Block(torch.empty(size, dtype=torch.uint8, device="cpu"), self)

    def give(self, memory: Tensor) -> None:
        """Keep memory for a later solve."""
        if memory.numel() <= LARGEST_TAPE:
            if len(self._spare) > MOST_SIZES:
                self._spare = {}
            spare = self._spare.setdefault(memory.numel(), [])
            if len(spare) < MOST_SPARE:
                spare.append(memory)


def rounded(size: int) -> int:
    """The next larger one of a few sizes of memory, at most a quarter larger: such pieces fit one
    another's places.
    """
    unit = 1 << max(size.bit_length() - 3, 12)
    return -(-size // unit) * unit


class Block:
    """A piece of memory."""

    def __init__(self, memory: Tensor, owner: Runtime) -> None:
        self.address = memory.data_ptr()
        self._memory, self._owner = memory, owner

    def __del__(self) -> None:
        self._owner.give(self._memory)


RUNTIME = Runtime()
