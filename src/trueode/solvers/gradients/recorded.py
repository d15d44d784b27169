"""Solves of layers outside of autograd, as parts of its graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from trueode.solvers.gradients.replay import Given, must_be_recorded, replay_gradients


class Kept(Protocol):
    """What the backward pass needs of the forward pass, and does not change."""

    def given(self) -> Given:
        """The solve, for gradients that autograd must compute."""

    def pull_back(
        self, z: Tensor, tensors: Sequence[Tensor | None], gradients: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """Gradients of the initial state and the layers' tensors, from those of the final and
        saved states; see `recorded`.
        """


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
    found = _RecordedSolve.apply(kept, (final,) if zs is None else (final, zs), *inputs)
    return found[0], None if zs is None else found[1]


class _RecordedSolve(torch.autograd.Function):
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
        if must_be_recorded(gradients):
            return None, None, *replay_gradients(ctx.kept.given(), z, tensors, gradients)
        return None, None, *ctx.kept.pull_back(z, tensors, gradients)
