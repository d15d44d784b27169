"""The interface between the hooks in a library and the code that installs them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from torch import Tensor

from trueode.auditing.problem import ForeignProblem, Replacement, Solved
from trueode.errors import UsageError


class Session:
    """The state that all hooks share while a block is open.

    Args:
        replacement: solves instead of the library; if None, the library solves.
    """

    def __init__(self, replacement: Replacement | None) -> None:
        self.replacement = replacement
        self.solves: list[Solved] = []
        self._owner: int | None = threading.get_ident()

    def is_mine(self) -> bool:
        """Whether the block is open and this thread opened it; other solves are left alone."""
        return threading.get_ident() == self._owner

    def close(self) -> None:
        """End the session, also for hooks that outlive the block."""
        self._owner = None

    @property
    def replaces(self) -> bool:
        """Whether solves are replaced."""
        return self.replacement is not None

    def solve(self, problem: ForeignProblem) -> tuple[Tensor, Solved]:
        """Solve a problem instead of the library, and record the solve.

        Raises:
            UsageError: the replacement returned states of another shape than
                ``(times, *z0.shape)``.
        """
        assert self.replacement is not None
        states, solved = self.replacement(problem)
        shape = (len(problem.times), *problem.z0.shape)
        if states.shape != shape:
            raise UsageError(
                f"The replacement returned states of shape {tuple(states.shape)}; needed is "
                f"{shape}."
            )
        self.note(solved, states[-1] if problem.samples else None)
        return states, solved

    def note(self, solved: Solved, final: Tensor | None) -> None:
        """Record a solve, with its final state if that has a dimension of samples."""
        self.solves.append(replace(solved, final=None if final is None else final.detach()))


@dataclass(frozen=True)
class Library:
    """A library whose solves can be recorded and replaced.

    Attributes:
        name: name of the distribution.
        module: the public module that must be loaded before the library's solvers can be called.
        patched: a context manager that routes its solves through a session.
        probe: solves z' = -z, z(0) = 1 up to t = 1 through the library's public function, with one
            step, of its Euler method if it has one; returns the final state.
        expected: the library's final state, and its number of field evaluations.
    """

    name: str
    module: str
    patched: Callable[[Session], AbstractContextManager[None]]
    probe: Callable[[], Tensor]
    expected: tuple[float, int] = (0.0, 1)
