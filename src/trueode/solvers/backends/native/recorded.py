"""The gradients of solves by the compiled kernel: the discrete ones, those of the steps taken
(Sandu, 2006, eq. 8).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trueode.solvers.backends.native.library import Solve
from trueode.solvers.backends.native.task import STATES, Steps, Task
from trueode.solvers.gradients.replay import Given, must_be_recorded, replay_gradients


class Kept(NamedTuple):
    """What the backward pass needs of the forward pass, and does not change."""

    task: Task
    steps: Steps
    solve: Solve


def recorded(
    kept: Kept, final: Tensor, zs: Tensor | None, inputs: Sequence[Any]
) -> tuple[Tensor, Tensor | None]:
    """The final and the saved states of a solve, as a part of the graph.

    Args:
        kept: the solve.
        final: the final states, ``(batch, width)``.
        zs: the saved states, if any, ``(times, batch, width)``.
        inputs: the initial state, and the weight, bias and time weight of each layer.
    """
    found = _NativeSolve.apply(kept, (final,) if zs is None else (final, zs), *inputs)
    return found[0], None if zs is None else found[1]


class _NativeSolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kept: Kept, states: tuple[Tensor, ...], z: Tensor, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Return ``states``, which are known already: the final states and, if any, the saved
        states.
        """
        ctx.kept = kept
        ctx.save_for_backward(z, *tensors)
        return states

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        # this raises an error if a weight was changed in place since the forward solve
        z, *tensors = ctx.saved_tensors
        task, steps, _ = ctx.kept
        if must_be_recorded(gradients):
            known = task.stack, task.tableau, task.clock, task.counter, steps.grid
            given = Given(*known, steps.saved.fractions(steps.grid))
            return None, None, *replay_gradients(given, z, tensors, gradients)
        return None, None, *_backward(ctx.kept, tensors, gradients)


def _backward(
    kept: Kept, tensors: Sequence[Tensor | None], gradients: Sequence[Tensor]
) -> list[Tensor | None]:
    """Gradients of the initial state and the layers, from those of the final and saved states."""
    (task, steps, done), (gradient, *entering) = kept, [g.contiguous() for g in gradients]
    start = torch.empty_like(gradient)
    found = [None if x is None else x.new_empty(x.shape) for x in tensors]
    solve, layers = Solve.from_buffer_copy(done), task.layers(tensors, found)
    solve.layers, solve.g1, solve.g0 = (
        layers.buffer_info()[0],
        gradient.data_ptr(),
        start.data_ptr(),
    )
    if entering:
        solve.gs = entering[0].data_ptr()
    if steps.keep == STATES:
        task.counter.add((len(steps.grid) - 1) * solve.n_stages)
    task.kernel.backward(task.double, solve)
    return [start, *found]
