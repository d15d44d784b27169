"""Interpolation of the solution between two grid points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trueode.solvers.clock import Step
from trueode.solvers.tableau import ButcherTableau


class Taken(NamedTuple):
    """A completed step.

    Attributes:
        h: its size.
        before: state at its start.
        after: state at its end.
        stages: its stages.
        end: the field at its end.
    """

    h: Step
    before: Tensor
    after: Tensor
    stages: Sequence[Tensor]
    end: Tensor

    def of(self, rows: Tensor | None) -> Taken:
        """The step of some samples, ``(rows,)``; None: all samples."""
        if rows is None:
            return self
        h = self.h[rows] if isinstance(self.h, Tensor) and self.h.dim() else self.h
        end = None if self.end is self.stages[-1] else self.end[rows]
        stages = [k[rows] for k in self.stages]
        return Taken(
            h, self.before[rows], self.after[rows], stages, stages[-1] if end is None else end
        )


def interpolate(tableau: ButcherTableau, theta: Tensor, step: Taken) -> Tensor:
    """The state at fractions theta of one step.

    Uses the dense weights of the tableau, or else cubic Hermite interpolation (Hairer, Nørsett &
    Wanner I, eq. II.6.7).

    Args:
        tableau: the method.
        theta: fractions of the step, broadcastable against the states: ``(times, 1, …)`` or one per
            row.
        step: the step.

    Returns:
        The states, of the broadcast shape of ``theta`` and the state.
    """
    h, before, after, stages, end = step
    if tableau.dense is None:
        change = after - before
        slope = (1 - 2 * theta) * change + (theta - 1) * (h * stages[0]) + theta * (h * end)
        return (1 - theta) * before + theta * after + theta * (theta - 1) * slope
    total = torch.zeros_like(before)
    for weights, k in zip(tableau.dense, stages, strict=True):
        if any(weights):
            weight = theta * 0
            for coefficient in reversed(weights):  # Horner's scheme
                weight = (weight + coefficient) * theta
            total = total + weight * k
    return before + h * total
