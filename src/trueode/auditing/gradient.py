"""How the gradient of a loss changes under the exact flow."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from math import atan2, degrees
from typing import Any

import torch
from torch import Tensor

from trueode.auditing.frameworks import Jax
from trueode.auditing.interception import recorded, replaced
from trueode.auditing.model_under_test import ModelUnderTest
from trueode.auditing.problem import Solved
from trueode.auditing.replacement import replace_by
from trueode.auditing.samples import size_of, targets_of
from trueode.errors import UsageError, calling
from trueode.evaluation import ExactFlow
from trueode.evaluation.course import Guided
from trueode.solvers import Adaptive, Solver

Loss = Callable[[Any, Tensor], Tensor]
"""``loss(outputs, y)`` returns the loss of a batch, a number."""
FINE, SINGLE = 1e-8, 1e-6  # tolerances in double precision and in others
COARSER = 100.0  # factor on this tolerance for the gradient that shows its error


@dataclass(frozen=True)
class GradientChange:
    """The gradient of a loss by all parameters, under the training solver against the exact flow.

    Both are computed in double precision where the model runs in it; under the training solver as
    its library does, for instance by an adjoint method.

    Attributes:
        own: the norm of the gradient under the training solver.
        exact: the norm of the gradient under the exact flow.
        relative: the norm of their difference, relative to ``exact``.
        angle: the angle between them, in degrees.
        error: the part of ``relative`` that may be an error of the exact gradient: its change if
            the tolerance is a hundred times as large.
    """

    own: float
    exact: float
    relative: float
    angle: float
    error: float

    def __str__(self) -> str:
        return (
            f"the gradient of the loss under the training solver differs by {self.relative:.2g} of "
            f"its size from that under the exact flow, and by an angle of {self.angle:.2g} degrees"
        )


def refuse_loss(tested: ModelUnderTest) -> None:
    """Refuse a model and samples for which no gradient of a loss can be compared.

    Raises:
        UsageError: the model is of JAX, or the samples have no targets.
    """
    if isinstance(tested.forward.framework, Jax):
        raise UsageError(
            "loss=… compares gradients of models of PyTorch only; this model is of JAX. Leave it "
            "out."
        )
    if tested.y is None:
        raise UsageError("loss=… needs targets: pass data (x, y).")


def gradient_change(tested: ModelUnderTest, exact: ExactFlow, loss: Loss) -> GradientChange:
    """Compare the gradients of a loss under the training solver and under the exact flow.

    Args:
        tested: the model and its samples; see `refuse_loss`.
        exact: the exact flow.
        loss: the loss; over several batches, the mean over their samples.

    Raises:
        UsageError: no parameter requires gradients, or the loss is not a number that depends on the
            parameters.
    """
    tolerance = FINE if exact.double else SINGLE
    own = _gradient(tested, loss, tested.solver)
    fine, coarse = (
        _gradient(tested, loss, Adaptive("dopri5", tol, tol), Guided(exact.course))
        for tol in (tolerance, COARSER * tolerance)
    )
    size = float(fine.norm())
    # the angle from its half: accurate near 0 and 180 degrees (Kahan)
    one, other = own / own.norm().clamp(min=1e-300), fine / fine.norm().clamp(min=1e-300)
    angle = 2 * degrees(atan2(float((one - other).norm()), float((one + other).norm())))
    apart = (float((each - fine).norm()) / max(size, 1e-300) for each in (own, coarse))
    relative, error = apart
    return GradientChange(float(own.norm()), size, relative, angle, error)


def _gradient(
    tested: ModelUnderTest, loss: Loss, solver: Solver | None, solving: Guided | None = None
) -> Tensor:
    """The gradient by all parameters in one row, in float64 on the CPU."""
    forward, total = tested.forward, 0.0
    how: Any = () if solving is None else (tested.breaks, tested.max_step)
    block: AbstractContextManager[list[Solved]] = (
        recorded()
        if solver is None
        else replaced(forward.steady(replace_by(solver, solving, *how), through=True))
    )
    found: Tensor | None = None
    with block, torch.enable_grad():
        start = 0
        for batch in tested.batches:
            n = size_of(batch)
            if solving is not None:
                solving.begin(torch.arange(start, start + n, device="cpu"))
            y = targets_of(batch)
            assert y is not None
            row = forward(batch, tested.double, solver, partial(_row, tested, loss, y))
            found = n * row if found is None else found + n * row
            start, total = start + n, total + n
    assert found is not None
    return found / total


def _row(tested: ModelUnderTest, loss: Loss, y: Tensor, outputs: Any) -> Tensor:
    """The gradient of the loss of a batch."""
    weights = {
        id(x): x
        for module in tested.forward.found.every
        for x in module._parameters.values()
        if x is not None and x.requires_grad
    }
    if not weights:
        raise UsageError("loss=… needs a model with parameters that require gradients.")
    if isinstance(outputs, Tensor):
        y = y.to(outputs.device, outputs.dtype if y.is_floating_point() else y.dtype)
    with calling("loss=… failed"):
        value = loss(outputs, y)
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        raise UsageError("loss=… must return a number that depends on the outputs.")
    wanted = list(weights.values())
    found = torch.autograd.grad(value.sum(), wanted, allow_unused=True)
    parts = [torch.zeros_like(x) if g is None else g for g, x in zip(found, wanted, strict=True)]
    return torch.cat([part.detach().double().flatten().cpu() for part in parts])
