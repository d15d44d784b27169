"""The solution between two grid points."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trueode.solvers.clock import Step
from trueode.solvers.tableau import ButcherTableau


def interpolate(
    tableau: ButcherTableau,
    theta: Tensor,
    h: Step,
    before: Tensor,
    after: Tensor,
    stages: Sequence[Tensor],
    end: Tensor,
) -> Tensor:
    """The state at fractions theta of one step.

    Cubic Hermite interpolation (Hairer, Nørsett & Wanner I, eq. II.6.7) or, for a tableau with dense weights, its own.

    Args:
        tableau: the method.
        theta: fractions of the step, broadcastable against the states: ``(times, 1, …)`` or one per row.
        h: step size.
        before: state at the start of the step.
        after: state at its end.
        stages: the stages of the step.
        end: the field at the end of the step.

    Returns:
        The states, of the broadcast shape of ``theta`` and ``before``.
    """
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
