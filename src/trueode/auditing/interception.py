"""Records or replaces the solves of a model, within a block and without changing its code."""

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
_tested: set[tuple[Any, bool]] = set()  # modules of libraries whose solves are seen, or replaced


@contextmanager
def recorded() -> Iterator[list[Solved]]:
    """Record every solve of this thread in the list that the block receives; the libraries solve as
    usual.

    Raises:
        UsageError: another such block is open, or the installed version of a library is not
            supported.
    """
    with _block(None) as solves:
        yield solves


@contextmanager
def replaced(replacement: Replacement) -> Iterator[list[Solved]]:
    """Replace every solve of this thread by ``replacement``, and record it in the list that the
    block receives.

    It is meant for forward passes: no gradients flow to the times. The backward pass of a library's
    adjoint solves again. Inside the block that solve is replaced, too; after it the library solves.

    Args:
        replacement: solves the problems; see `replace_by`.

    Raises:
        UsageError: another such block is open; the installed version of a library is not supported;
            or, from inside the block, a solve is not that of an initial value problem (events,
            callbacks, hypersolvers, …).
    """
    with _block(replacement) as solves:
        yield solves


@contextmanager
def _block(replacement: Replacement | None) -> Iterator[list[Solved]]:
    global _owner
    if not _OPEN.acquire(blocking=False):
        if _owner == threading.get_ident():
            raise UsageError(
                "Audits cannot be nested: finish the running audit before you start another one."
            )
        raise UsageError(
            "Another thread is auditing, and the solvers it replaces are shared: run one audit "
            "after the other."
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
            try:
                yield session.solves
            except UsageError:
                _refuse_late(loaded)  # this may be the reason
                raise
        _refuse_late(loaded)
    finally:
        _owner = None
        _OPEN.release()


def _refuse_late(loaded: list[Library]) -> None:
    """Raise an error if a library was imported since the block was opened."""
    late = [x.name for x in LIBRARIES if x.module in sys.modules and x not in loaded]
    if late:
        raise UsageError(
            f"{' and '.join(late)} was imported while the model ran, too late for its solves "
            "to be seen: import it, or call the model once, before the audit."
        )


def _eager() -> AbstractContextManager[Any]:
    """Run compiled models eagerly, because compiled code would bypass the hooks."""
    if "torch._dynamo" not in sys.modules:  # then nothing is compiled, and the import takes seconds
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def _hook(library: Library, session: Session, stack: ExitStack) -> None:
    """Patch a library and test, the first time, that its solves are seen."""
    key = sys.modules[library.module], session.replaces
    try:
        stack.enter_context(library.patched(session))
        fault = None if key in _tested else _fault(library, session)
    except Exception as failure:
        raise UsageError(_unsupported(library, told(failure))) from failure
    if fault:
        raise UsageError(_unsupported(library, fault))
    _tested.add(key)


def _fault(library: Library, session: Session) -> str | None:
    """Test the hooks on a tiny problem, without traces in the session: the fault, or None."""
    kept = session.replacement, session.solves
    # results of the midpoint method, or of the library's own
    expected, nfe = (0.5, 2) if session.replaces else library.expected
    session.replacement = replace_by(FixedStep("midpoint", n_steps=1)) if session.replaces else None
    session.solves = []
    try:
        # the library may create tensors on the default device
        with torch.no_grad(), torch.device("cpu"):
            final = float(library.probe())
        seen = session.solves
    finally:
        session.replacement, session.solves = kept
    if len(seen) != 1:
        return f"one solve with its public function was seen {len(seen)} times"
    if abs(final - expected) > 1e-6 or seen[0].nfe != nfe or seen[0].n_steps != 1:
        return (
            f"a solve gave {final:g} after {seen[0].nfe:g} evaluations in {seen[0].n_steps:g} "
            f"steps; expected were {expected:g}, {nfe} and 1"
        )
    return None


def _unsupported(library: Library, reason: str) -> str:
    return (
        f"{library.name} {version_of(library.name)} is not supported by this version of trueode: "
        f"{reason}. Install a newer trueode or another version of {library.name}, or pass the "
        "field itself, as NeuralODE(field, …)."
    )


def version_of(library: str) -> str:
    """The installed version of a library."""
    try:
        return version(library)
    except PackageNotFoundError:
        return "(unknown version)"
