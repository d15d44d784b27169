"""A solve in the form the loops work on: one tensor as state, one callable as field."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from math import prod
from typing import Any

import torch
from torch import Tensor

from trueode.errors import UsageError
from trueode.layers import LayerStack
from trueode.solvers.step import Field

Unpack = Callable[[Tensor], Any]
"""From the loops' state, with any number of leading dimensions, to the user's."""


def pack_tuple(field: Callable[..., Any], z0: tuple[Tensor, ...], *, per_sample: bool) -> tuple[Field, Tensor, Unpack]:
    """One tensor for a tuple of states: flat, or ``(batch, …)`` under per-sample control.

    Raises:
        UsageError: the parts do not fit together.
    """
    if not z0 or not all(isinstance(part, Tensor) for part in z0):
        raise UsageError("A tuple state must hold tensors only, at least one.")
    kinds = {(part.dtype, part.device) for part in z0}
    if len(kinds) > 1:
        raise UsageError(
            f"The parts of a tuple state must share dtype and device; they have {sorted(map(str, kinds))}."
        )
    lead = 1 if per_sample else 0
    if per_sample and len({part.shape[:1] for part in z0}) > 1:
        shapes = [tuple(part.shape) for part in z0]
        raise UsageError(
            f"Per-sample control needs the same first dimension in all parts of a tuple state; shapes: {shapes}."
        )
    shapes = [part.shape[lead:] for part in z0]
    ends = list(accumulate(prod(shape) for shape in shapes))

    def pack(parts: tuple[Tensor, ...]) -> Tensor:
        return torch.cat([part.reshape(*part.shape[:lead], -1) for part in parts], dim=-1)

    def unpack(z: Tensor) -> tuple[Tensor, ...]:
        pieces = zip([0, *ends], ends, shapes, strict=False)
        return tuple(z[..., i:j].reshape((*z.shape[:-1], *shape)) for i, j, shape in pieces)

    def flat_field(t: Tensor, z: Tensor) -> Tensor:
        value = field(t, unpack(z))
        if not isinstance(value, (tuple, list)) or [part.shape for part in value] != [part.shape for part in unpack(z)]:
            raise UsageError("The field of a tuple state must return a tuple of tensors of the state's shapes.")
        return pack(tuple(value))

    return flat_field, pack(z0), unpack


def pack_stack(stack: LayerStack, z0: Tensor) -> tuple[Tensor, Unpack]:
    """The state of a layer stack: ``(batch, width)``, channels last where the stack wants them so."""
    shape = z0.shape
    if not stack.channels_last or z0.dim() < 3 or shape[1] == 1:
        return z0.reshape(shape[0], prod(shape[1:])).contiguous(), lambda z: z.reshape(*z.shape[:-2], *shape)
    moved = z0.movedim(1, -1)
    return moved.reshape(shape[0], prod(shape[1:])).contiguous(), lambda z: z.reshape(
        *z.shape[:-2], *moved.shape
    ).movedim(-1, z.dim() - 1)


def matrix_form(field: Any, z0: Tensor) -> LayerStack | None:
    """The layers of a field that is willing to tell them and may be evaluated by them here and now."""
    offer = getattr(field, "layer_stack", None)
    if offer is None or not z0.is_floating_point() or torch.is_autocast_enabled(z0.device.type):
        return None
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return None
    if torch.autograd.forward_ad._current_level >= 0:  # forward-mode differentiation
        return None
    stack: LayerStack | None = offer(z0.shape)
    if stack is None or any(x.dtype != z0.dtype or x.device != z0.device for x in stack.layers[0][:2]):
        return None
    return stack
