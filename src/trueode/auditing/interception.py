"""Another solver in the place of those that a model calls, for a while and without touching its code."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from trueode.auditing.problem import ForeignProblem, Replacement, Solved
from trueode.auditing.stand_in import in_place
from trueode.errors import UsageError, told
from trueode.solvers import FixedStep


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
            UsageError: the replacement returned states of another shape than ``(times, *z0.shape)``.
        """
        assert self.replacement is not None
        states, solved = self.replacement(problem)
        shape = (len(problem.times), *problem.z0.shape)
        if states.shape != shape:
            raise UsageError(f"The replacement returned states of shape {tuple(states.shape)}; needed is {shape}.")
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
        probe: solve z' = -z, z(0) = 1 up to 1 by the library's public function, with one step of its Euler method; its
            final state.
    """

    name: str
    module: str
    patched: Callable[[Session], AbstractContextManager[None]]
    probe: Callable[[], Tensor]


_OPEN = threading.Lock()
_owner: int | None = None


@contextmanager
def recorded() -> Iterator[list[Solved]]:
    """A block in which every solve of this thread is noted in the list that it gives; the libraries' solvers run untouched.

    Raises:
        UsageError: another such block is open, or the installed version of a library is not known here.
    """
    with _block(None) as solves:
        yield solves


@contextmanager
def replaced(replacement: Replacement) -> Iterator[list[Solved]]:
    """A block in which every solve of this thread is done by ``replacement``, and noted in the list that it gives.

    It is meant for forward passes. Gradients do not flow to times; the backward pass of a library's adjoint, which solves
    again, is replaced if it runs inside of the block, and the library's own after it.

    Args:
        replacement: solves the problems; see `in_place`.

    Raises:
        UsageError: another such block is open; the installed version of a library is not known here; or, from inside of
            the block, a solve is not that of an initial value problem (events, callbacks, hypersolvers, …).
    """
    with _block(replacement) as solves:
        yield solves


@contextmanager
def _block(replacement: Replacement | None) -> Iterator[list[Solved]]:
    global _owner
    if not _OPEN.acquire(blocking=False):
        if _owner == threading.get_ident():
            raise UsageError("Audits cannot be nested: end the one that is running before another one starts.")
        raise UsageError("Another thread is auditing, and what it replaces is shared: run one audit after the other.")
    _owner = threading.get_ident()
    try:
        session, libraries = Session(replacement), _libraries()
        loaded = [library for library in libraries if library.module in sys.modules]
        with ExitStack() as stack:
            stack.callback(session.close)
            stack.enter_context(_eager())
            for library in loaded:
                _hook(library, session, stack)
            yield session.solves
        late = [x.name for x in libraries if x.module in sys.modules and x not in loaded]
        if late:
            raise UsageError(
                f"{' and '.join(late)} was imported while the model ran, too late for its solves to be seen: import it, or "
                "call the model once, before the audit."
            )
    finally:
        _owner = None
        _OPEN.release()


def _libraries() -> tuple[Library, ...]:
    from trueode.auditing.libraries import LIBRARIES  # these import this module

    return LIBRARIES


def _eager() -> AbstractContextManager[Any]:
    """Compiled models run as they were written: compiled code would not pass by the hooks."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled then, and the import takes seconds
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def _hook(library: Library, session: Session, stack: ExitStack) -> None:
    """Patch a library and see that its solves come by."""
    try:
        stack.enter_context(library.patched(session))
        fault = _fault(library, session)
    except Exception as failure:
        raise UsageError(_unsupported(library, told(failure))) from failure
    if fault:
        raise UsageError(_unsupported(library, fault))


def _fault(library: Library, session: Session) -> str | None:
    """What is wrong with a solve of a tiny problem; None if nothing is. It leaves no traces in the session."""
    kept = session.replacement, session.solves
    expected, nfe = (0.5, 2) if session.replaces else (0.0, 1)  # of the midpoint, and of the library's Euler method
    session.replacement = in_place(FixedStep("midpoint", n_steps=1)) if session.replaces else None
    session.solves = []
    try:
        with torch.no_grad(), torch.device("cpu"):  # whatever new tensors of the library lie on by default
            final = float(library.probe())
        seen = session.solves
    finally:
        session.replacement, session.solves = kept
    if len(seen) != 1:
        return f"of a solve of its public function {len(seen)} were seen"
    if abs(final - expected) > 1e-6 or seen[0].nfe != nfe or seen[0].n_steps != 1:
        return (
            f"a solve gave {final:g} after {seen[0].nfe:g} evaluations in {seen[0].n_steps:g} steps, expected was "
            f"{expected:g} after {nfe} in 1"
        )
    return None


def _unsupported(library: Library, reason: str) -> str:
    try:
        number = version(library.name)
    except PackageNotFoundError:
        number = "(unknown version)"
    return (
        f"{library.name} {number} is not supported by this version of trueode: {reason}. Take a newer trueode or another "
        f"version of {library.name}, or pass the field itself, as NeuralODE(field, …)."
    )
