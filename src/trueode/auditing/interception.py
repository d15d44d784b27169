"""Another solver in the place of those that a model calls, for a while and without touching its
code.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from trueode.auditing.libraries import LIBRARIES
from trueode.auditing.problem import Replacement, Solved
from trueode.auditing.replacement import replace_by
from trueode.auditing.session import Library, Session
from trueode.errors import UsageError, told
from trueode.solvers import FixedStep

_OPEN = threading.Lock()
_owner: int | None = None


@contextmanager
def recorded() -> Iterator[list[Solved]]:
    """A block in which every solve of this thread is noted in the list that it gives; the
    libraries' solvers run untouched.

    Raises:
        UsageError: another such block is open, or the installed version of a library is not known
            here.
    """
    with _block(None) as solves:
        yield solves


@contextmanager
def replaced(replacement: Replacement) -> Iterator[list[Solved]]:
    """A block in which every solve of this thread is done by ``replacement``, and noted in the list
    that it gives.

    It is meant for forward passes. Gradients do not flow to times; the backward pass of a library's
    adjoint, which solves again, is replaced if it runs inside of the block, and the library's own
    after it.

    Args:
        replacement: solves the problems; see `replace_by`.

    Raises:
        UsageError: another such block is open; the installed version of a library is not known
            here; or, from inside of the block, a solve is not that of an initial value problem
            (events, callbacks, hypersolvers, …).
    """
    with _block(replacement) as solves:
        yield solves


@contextmanager
def _block(replacement: Replacement | None) -> Iterator[list[Solved]]:
    global _owner
    if not _OPEN.acquire(blocking=False):
        if _owner == threading.get_ident():
            raise UsageError(
                "Audits cannot be nested: end the one that is running before another one starts."
            )
        raise UsageError(
            "Another thread is auditing, and what it replaces is shared: run one audit after the other."
        )
    _owner = threading.get_ident()
    try:
        session = Session(replacement)
        loaded = [library for library in LIBRARIES if library.module in sys.modules]
        with ExitStack() as stack:
            stack.callback(session.close)
            stack.enter_context(_eager())
            for library in loaded:
                _hook(library, session, stack)
            yield session.solves
        late = [x.name for x in LIBRARIES if x.module in sys.modules and x not in loaded]
        if late:
            raise UsageError(
                f"{' and '.join(late)} was imported while the model ran, too late for its solves to be seen: import it, or "
                "call the model once, before the audit."
            )
    finally:
        _owner = None
        _OPEN.release()


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
    """What is wrong with a solve of a tiny problem; None if nothing is. It leaves no traces in the
    session.
    """
    kept = session.replacement, session.solves
    expected, nfe = (
        (0.5, 2) if session.replaces else (0.0, 1)
    )  # of the midpoint, and of the library's Euler method
    session.replacement = replace_by(FixedStep("midpoint", n_steps=1)) if session.replaces else None
    session.solves = []
    try:
        with (
            torch.no_grad(),
            torch.device("cpu"),
        ):  # whatever new tensors of the library lie on by default
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
    return (
        f"{library.name} {version_of(library.name)} is not supported by this version of trueode: {reason}. Take a newer trueode or "
        f"another version of {library.name}, or pass the field itself, as NeuralODE(field, …)."
    )


def version_of(library: str) -> str:
    """The installed version of a library."""
    try:
        return version(library)
    except PackageNotFoundError:
        return "(unknown version)"
