"""What the solves of a process share: the kernel, reusable memory, expected numbers of steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trueode.layers import LayerStack
from trueode.solvers.solver import Adaptive

# Bytes of memory that is kept for reuse: the first access to fresh memory takes about as long as
# computing stages again, which takes longest for images.
LARGEST_TAPE, LARGEST_OF_IMAGES = 2**25, 2**29
# of the memory kept for reuse: sizes, and pieces of each size; and one large piece
MOST_SIZES, MOST_SPARE = 6, 2
MOST_EXPECTED = 1000


NOT_ASKED = object()


class Runtime:
    """The only object of the process that solves change.

    Each change is one operation of a list or a dictionary, so solves in several threads share it
    without a lock: each piece of memory is taken by one solve only.

    Attributes:
        kernel: the `Kernel` in use, None if there is none, `NOT_ASKED` until one is needed.
        triton: the module of Triton's kernels, likewise.
        threads: the number of threads of the kernel; None: as many as PyTorch.
        expected: the number of steps that each solver took last time.
    """

    def __init__(self) -> None:
        self.kernel: Any = NOT_ASKED
        self.triton: Any = NOT_ASKED
        self.threads: int | None = None
        self.expected: dict[Adaptive, int] = {}
        self._spare: dict[int, list[Tensor]] = {}
        self._large: dict[int, list[Tensor]] = {}

    def expect(self, solver: Adaptive, n_steps: int) -> None:
        """Remember how many steps a solver took."""
        if len(self.expected) >= MOST_EXPECTED:
            self.expected = {}
        self.expected[solver] = n_steps

    def take(self, size: int) -> Block:
        """Memory of at least ``size`` bytes, which is given back when nothing refers to it."""
        size = rounded(size)
        spare = self._spare if size <= LARGEST_TAPE else self._large
        try:
            return Block(spare[size].pop(), self)
        except (KeyError, IndexError):
            return Block(torch.empty(size, dtype=torch.uint8, device="cpu"), self)

    def give(self, memory: Tensor) -> None:
        """Keep memory for a later solve."""
        size = memory.numel()
        if size <= LARGEST_TAPE:
            if len(self._spare) > MOST_SIZES:
                self._spare = {}
            spare = self._spare.setdefault(size, [])
            if len(spare) < MOST_SPARE:
                spare.append(memory)
        elif size <= LARGEST_OF_IMAGES:
            self._large = {size: [memory]}


def largest_tape(stack: LayerStack) -> int:
    """The bytes up to which keeping stages is faster than computing them again."""
    return LARGEST_OF_IMAGES if stack.image else LARGEST_TAPE


def rounded(size: int) -> int:
    """Round up to one of a few sizes of memory, at most a quarter larger, which makes pieces
    reusable.
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
