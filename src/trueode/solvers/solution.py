"""The outcome of a solve, with its statistics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from trueode.solvers.clock import Clock
from trueode.solvers.solver import Adaptive, OnGrid, Solver

State = TypeVar("State", Tensor, tuple[Tensor, ...])


class Counter:
    """Counts the calls of a field, in the forward solve and after it (in the backward pass)."""

    def __init__(self) -> None:
        self.forward = 0
        self.backward = 0
        self.solving = True

    def add(self, calls: int = 1) -> None:
        """Add calls to the count of the current phase."""
        if self.solving:
            self.forward += calls
        else:
            self.backward += calls


class Ending:
    """How a solve ended: its status and a message.

    Args:
        status: as in `Solution`.
        message: a description of the failure, if any.
        look: finds both when first asked, because that waits for a GPU.
    """

    def __init__(
        self,
        status: str = "success",
        message: str = "",
        look: Callable[[], tuple[str, str]] | None = None,
    ) -> None:
        self._found, self._look = (status, message), look

    @property
    def is_known(self) -> bool:
        """Whether the status is known without asking."""
        return self._look is None

    def __call__(self) -> tuple[str, str]:
        """Status and message."""
        if self._look is not None:
            self._found, self._look = self._look(), None
        return self._found

    def __repr__(self) -> str:
        return self._found[0] if self.is_known else "not asked"


@dataclass(frozen=True)
class Solution(Generic[State]):
    """The outcome of a solve.

    Attributes:
        z: the final state, of the shape of ``z0`` (a tuple if ``z0`` is one).
        zs: the states at ``save_at``, ``(times, *state)``; None without ``save_at``.
        t: the end of the interval.
        nfe: calls of the field in the forward solve.
        n_steps: accepted steps: a number, or ``(batch,)`` under per-sample control.
        n_rejected: rejected steps, likewise.
        errors: norms of the scaled errors of the accepted steps; None for fixed steps.
        ending: how it ended; ``status`` and ``message`` ask it.
        statuses: under per-sample control, the status of each sample; otherwise None. A sample that
            failed keeps the last state that it reached.
    """

    z: State
    zs: State | None
    t: float | Tensor
    nfe: int
    n_steps: int | Tensor
    n_rejected: int | Tensor
    errors: Tensor | None
    ending: Ending
    statuses: tuple[str, ...] | None
    _solver: Solver = field(repr=False)
    _fractions: Tensor = field(repr=False)
    _clock: Clock = field(repr=False)
    _counter: Counter = field(repr=False)

    @property
    def status(self) -> str:
        """``"success"``, ``"max_steps"``, ``"step_underflow"`` or ``"non_finite"``; under
        per-sample control, the status of the first sample that failed.
        """
        return self.ending()[0]

    @property
    def message(self) -> str:
        """A description of the failure, if any."""
        return self.ending()[1]

    @property
    def grid(self) -> Tensor:
        """Times of the accepted steps, both ends included, in float64: ``(n_steps + 1,)``.

        Under per-sample control, ``(max(n_steps) + 1, batch)``; a finished sample repeats its last
        time.
        """
        return self._clock.t0 + self._fractions * self._clock.length

    @property
    def nfe_backward(self) -> int:
        """Calls of the field in the backward pass; 0 before it has run."""
        return self._counter.backward

    @property
    def mean_steps(self) -> float:
        """The number of accepted steps, averaged over the samples."""
        return (
            float(self.n_steps.double().mean())
            if isinstance(self.n_steps, Tensor)
            else float(self.n_steps)
        )

    def lost(self) -> Tensor:
        """The samples (first dimension of the state) that did not reach the end with finite
        numbers, as a mask ``(batch,)``.
        """
        parts: tuple[Tensor, ...] = self.z if isinstance(self.z, tuple) else (self.z,)
        whole = torch.zeros(len(parts[0]), dtype=torch.bool, device=parts[0].device)
        if self.statuses is not None:
            return torch.tensor(
                [status != "success" for status in self.statuses], device=whole.device
            )
        if self.status == "non_finite" and not isinstance(
            self._solver, Adaptive
        ):  # the other samples are not affected
            return ~torch.stack([part.isfinite().flatten(1).all(1) for part in parts]).all(0)
        return whole if self.status == "success" else ~whole

    def replay(self) -> OnGrid:
        """A solver that repeats exactly these steps."""
        rows: list[Any] = (
            self._fractions.tolist() if len(self._fractions) > 1 else [0.0, 1.0]
        )  # an interval of length zero
        grid = tuple(tuple(row) if isinstance(row, list) else row for row in rows)
        return OnGrid(self._solver.tableau, grid, breaks=self._solver.breaks)
