"""What the hooks in a library and the code that opens them share: a session, and how a library is
patched.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from torch import Tensor

from trueode.auditing.problem import ForeignProblem, Replacement, Solved
from trueode.errors import UsageError


class Session:
    """What the hooks in a library ask and tell while a block is open.

    Args:
        replacement: solves in the place of the library; None: the library solves.
    """

    def __init__(self, replacement: Replacement | None) -> None:
        self.replacement = replacement
        self.solves: list[Solved] = []
        self._owner: int | None = threading.get_ident()

    def is_mine(self) -> bool:
        """Whether the block is open and the calling thread opened it; other solves are left alone."""
        return threading.get_ident() == self._owner

    def close(self) -> None:
        """From now on no solve is its own, also where something kept a hook."""
        self._owner = None

    @property
    def replaces(self) -> bool:
        """Whether solves are replaced."""
        return self.replacement is not None

    def solve(self, problem: ForeignProblem) -> tuple[Tensor, Solved]:
        """Solve a problem in the place of the library, and note it.

        Raises:
            UsageError: the replacement returned states of another shape than
                ``(times, *z0.shape)``.
        """
        assert self.replacement is not None
        states, solved = self.replacement(problem)
        shape = (len(problem.times), *problem.z0.shape)
        if states.shape != shape:
            raise UsageError(
                f"The replacement returned states of shape {tuple(states.shape)}; needed is {shape}."
            )
        self.note(solved, states[-1] if problem.samples else None)
        return states, solved

    def note(self, solved: Solved, final: Tensor | None) -> None:
        """Note a solve with its final state, if that has a dimension of samples."""
        self.solves.append(replace(solved, final=None if final is None else final.detach()))


@dataclass(frozen=True)
class Library:
    """A library whose solves can be seen.

    Attributes:
        name: of the distribution.
        module: the public module that is loaded where the library's solvers can be called.
        patched: a block in which its solves go through a session.
        probe: solve z' = -z, z(0) = 1 up to 1 by the library's public function, with one step of
            its Euler method; its final state.
    """

    name: str
    module: str
    patched: Callable[[Session], AbstractContextManager[None]]
    probe: Callable[[], Tensor]
