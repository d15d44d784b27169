"""Convert states to the forms that the integration loops use (one tensor for a tuple, a matrix for
layers), and back.
"""

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
"""Converts the loops' state, with any number of leading dimensions, to the user's."""


def pack_tuple(
    field: Callable[..., Any], z0: tuple[Tensor, ...], *, per_sample: bool
) -> tuple[Field, Tensor, Unpack]:
    """Join a tuple of states to one tensor: flat, or ``(batch, …)`` if samples have their own steps
    or times.

    Returns:
        The field of this tensor, the tensor, and the conversion back to a tuple.

    Raises:
        UsageError: the parts do not fit together.
    """
    kinds = {(part.dtype, part.device) for part in z0}
    if len(kinds) > 1:
        raise UsageError(
            "The parts of a tuple state must share dtype and device; "
            f"they have {sorted(map(str, kinds))}."
        )
    lead = 1 if per_sample else 0
    if per_sample and len({part.shape[:1] for part in z0}) > 1:
        shapes = [tuple(part.shape) for part in z0]
        raise UsageError(
            "Steps or times of each sample need the same first dimension in all parts of a tuple "
            f"state; the shapes are {shapes}."
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
        if not isinstance(value, (tuple, list)) or [part.shape for part in value] != [
            part.shape for part in unpack(z)
        ]:
            raise UsageError(
                "The field of a tuple state must return a tuple of tensors of the state's shapes."
            )
        return pack(tuple(value))

    return flat_field, pack(z0), unpack


def pack_stack(stack: LayerStack, z0: Tensor) -> tuple[Tensor, Unpack]:
    """A state as a layer stack takes it, ``(batch, width)``, and the conversion back."""
    shape = z0.shape
    sizes = prod(shape[: stack.lead]), stack.width(shape)
    if not stack.channels_last or z0.dim() < 3 or shape[1] == 1:
        return z0.reshape(sizes).contiguous(), lambda z: z.reshape(*z.shape[:-2], *shape)
    moved = z0.movedim(1, -1)
    return moved.reshape(sizes).contiguous(), lambda z: z.reshape(
        *z.shape[:-2], *moved.shape
    ).movedim(-1, z.dim() - 1)
