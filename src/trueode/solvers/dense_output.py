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
        stages: its stages.
        end: the field at its end.
    """

    h: Step
    before: Tensor
    stages: Sequence[Tensor]
    end: Tensor

    def of(self, rows: Tensor | None) -> Taken:
        """The step of some samples, ``(rows,)``; None: all samples."""
        if rows is None:
            return self
        h = self.h[rows] if isinstance(self.h, Tensor) and self.h.dim() else self.h
        end = None if self.end is self.stages[-1] else self.end[rows]
        stages = [k[rows] for k in self.stages]
        return Taken(h, self.before[rows], stages, stages[-1] if end is None else end)


def interpolate(tableau: ButcherTableau, theta: Tensor, step: Taken) -> Tensor:
    """The state at fractions theta of one step, by the method's dense output.

    Args:
        tableau: the method.
        theta: fractions of the step, broadcastable against the states: ``(times, 1, …)`` or one per
            row.
        step: the step.

    Returns:
        The states, of the broadcast shape of ``theta`` and the state.
    """
    rows = tableau.continuous
    total = torch.zeros_like(step.before)
    for weights, k in zip(rows, (*step.stages[: len(rows) - 1], step.end), strict=True):
        if any(weights):
            weight = theta * 0
            for coefficient in reversed(weights):  # Horner's scheme
                weight = (weight + coefficient) * theta
            total = total + weight * k
    return step.before + step.h * total
