"""zuko: a hook replaces the autograd function that its ``odeint`` applies."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from trueode.auditing.problem import (
    Field,
    ForeignProblem,
    FoundSolver,
    Solved,
    has_samples,
    status_of,
    with_times,
)
from trueode.auditing.session import Library, Session

STAGES = 7  # calls of the field in each step, accepted or not


@contextmanager
def patched(session: Session) -> Iterator[None]:
    """Route all solves through a session."""
    function: Any = sys.modules["zuko.utils"].AdaptiveCheckpointAdjoint
    original: Callable[..., Tensor] = function.apply

    def hooked(
        settings: Any, field: Field, x: Tensor, t0: Tensor, t1: Tensor, *phi: Tensor
    ) -> Tensor:
        if not session.is_mine():
            return original(settings, field, x, t0, t1, *phi)
        atol, rtol, _ = settings
        found = FoundSolver("zuko", "dopri5", {"rtol": rtol, "atol": atol}, True, 5, "dopri5")
        if session.replaces:
            return _replace(session, field, x, t0, t1, found)
        counted = _Counted(field)
        final = original(settings, counted, x, t0, t1, *phi)
        rejected = counted.calls / STAGES - counted.accepted
        length, ended = abs(float(t1 - t0)), status_of(final, found)
        solved = Solved(found, counted.calls, counted.accepted, rejected, length, *ended)
        session.note(solved, final if has_samples(x) else None)
        return final

    function.apply = hooked
    try:
        yield
    finally:
        del function.apply  # it is inherited


def probe() -> Tensor:
    """See `Library`."""
    x = torch.ones(1, 1, dtype=torch.float32, device="cpu")
    final: Tensor = sys.modules["zuko.utils"].odeint(
        lambda t, z: -z, x, 0.0, 1.0, atol=1.0, rtol=1.0
    )
    return final


# one step of dopri5: 1 - 1 + 1/2 - 1/6 + 1/24 - 1/120 + 1/600
LIBRARY = Library("zuko", "zuko.utils", patched, probe, (0.368333333, STAGES))


def _replace(
    session: Session, field: Field, x: Tensor, t0: Tensor, t1: Tensor, found: FoundSolver
) -> Tensor:
    sign = 1.0 if bool(t1 >= t0) else -1.0
    times = sign * torch.stack([t0, t1]).detach()
    # the state of a tuple is flat, so it counts no samples
    forward = field if sign > 0 else lambda s, z: -field(-s, z)
    problem = ForeignProblem(with_times(forward, times, x), x, times, (), has_samples(x), found)
    return session.solve(problem)[0][-1]


class _Counted:
    """A field that counts its calls, and the steps that they belong to."""

    def __init__(self, field: Field) -> None:
        self._field = field
        self._last: Tensor | None = None
        self.calls = self.accepted = 0

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        if self.calls % STAGES == 0:  # the first stage; after a rejected step its time is the same
            self.accepted += t is not self._last
            self._last = t
        self.calls += 1
        return self._field(t, x)
