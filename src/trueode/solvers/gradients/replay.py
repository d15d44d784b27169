"""Repeat a solve of layers under autograd, for gradients of gradients and batched gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor

from trueode.layers import LayerStack
from trueode.solvers.checked import CheckedField
from trueode.solvers.clock import Clock
from trueode.solvers.fixed import integrate, integrate_per_sample
from trueode.solvers.saving import SavePoints, Saver
from trueode.solvers.solution import Counter
from trueode.solvers.stack import stack_field
from trueode.solvers.step import Stepper
from trueode.solvers.tableau import ButcherTableau


class Given(NamedTuple):
    """A solve whose steps are known.

    Attributes:
        stack: the field.
        tableau: the method.
        clock: the times.
        counter: counts evaluations of the field.
        grid: the fractions of the steps, ``(steps + 1,)`` or ``(steps + 1, batch)``.
        saved: the fractions at which states were saved, ascending, ``(times,)``.
    """

    stack: LayerStack
    tableau: ButcherTableau
    clock: Clock
    counter: Counter
    grid: Tensor
    saved: Tensor


def must_be_recorded(gradients: Sequence[Tensor]) -> bool:
    """Whether autograd must compute a gradient, because it is differentiated again or batched."""
    return (
        torch.is_grad_enabled()
        or torch._C._are_functorch_transforms_active()
        or is_legacy_batchedtensor(gradients[0])
    )


def replay_gradients(
    given: Given, z: Tensor, tensors: Sequence[Tensor | None], gradients: Sequence[Tensor]
) -> list[Tensor | None]:
    """Gradients of the initial state and the layers' tensors, by repeating the steps under
    autograd.

    Args:
        given: the solve.
        z: the initial state ``(batch, width)``.
        tensors: those of the stack, as in `LayerStack.tensors`.
        gradients: those of the final state and the saved states.
    """
    twice = torch.is_grad_enabled()
    inputs = [x for x in (z, *tensors) if x is not None and x.requires_grad]
    with torch.enable_grad():
        final, zs = _again(given, z, tensors)
        outputs = [final] if zs is None else [final, zs]
        known = gradients[: len(outputs)]
        found = iter(
            torch.autograd.grad(outputs, inputs, known, create_graph=twice, materialize_grads=True)
        )
    return [next(found) if x is not None and x.requires_grad else None for x in (z, *tensors)]


def _again(given: Given, z: Tensor, tensors: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
    """The final state and the saved states, computed again."""
    field = CheckedField(stack_field(given.stack.with_tensors(tensors)), given.counter)
    stepper = Stepper(field, given.tableau, given.clock)
    if given.grid.dim() == 2:
        return integrate_per_sample(stepper, given.grid, z), None
    saver = Saver(SavePoints(given.saved, 0.0)) if len(given.saved) else None
    final = integrate(stepper, given.grid.tolist(), z, saver)
    return final, None if saver is None else saver.stacked(final)
