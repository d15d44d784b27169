"""Vector fields of JAX in the time that their samples have in common, with their layers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trueode.auditing.libraries.common_time import CommonTime
from trueode.auditing.libraries.jaxpr_layers import layers_of
from trueode.auditing.libraries.traced import BatchField
from trueode.layers import Layer, LayerStack
from trueode.solvers.stack import stack_field
from trueode.solvers.states import pack_stack

KEPT = 16  # fields whose layers are remembered
CHECKED = 32  # rows of the batch with which layers are checked
ROUNDING = 100  # most by which layers may differ from their field, in units of its rounding

known: OrderedDict[Any, LayerStack | None] = OrderedDict()  # by all that determines them


class CommonField:
    """A field of JAX as a function of the time variable that its samples have in common.

    Args:
        field: the field.
        common: the time variable.
        one: see `_found`.
        z0: the initial states.
    """

    def __init__(
        self, field: BatchField, common: CommonTime, one: Callable[[], Any] | None, z0: Tensor
    ) -> None:
        self._field, self._common, self._one, self._z0 = field, common, one, z0

    def __call__(self, s: Tensor, z: Tensor) -> Tensor:
        """The derivatives with respect to s at states z."""
        common = self._common
        rows = s.dim() and self._field.depth == 1 and 1 != len(s) == len(z)
        if rows and (stack := self.layer_stack(z.shape)) is not None:
            return _by_layers(stack, s, z)
        t = common.times(s)
        return common.stretch(
            self._field(t.flatten()[0] if common.shared and not s.dim() else t, z)
        )

    def layer_stack(self, shape: Sequence[int]) -> LayerStack | None:
        """The layers for states of a shape; None if the field does not compute layers."""
        own = tuple(self._z0.shape)
        fits = tuple(shape) == own or (self._field.depth == 1 and tuple(shape[1:]) == own[1:])
        return self._layers if fits else None

    @cached_property
    def _layers(self) -> LayerStack | None:
        stack = _found(self._field, self._one, self._z0) if self._common.shared else None
        if stack is None or not self._common.reversed:
            return stack
        *first, last = (
            x if x.time_weight is None else x._replace(time_weight=-x.time_weight)
            for x in stack.layers
        )
        clock = None if last.time_weight is None else -last.time_weight
        negative = Layer(-last.weight, -last.bias, last.activation, clock)
        return stack._replace(layers=(*first, negative))


def _found(field: BatchField, one: Callable[[], Any] | None, z0: Tensor) -> LayerStack | None:
    """The layers of a field on batches of states, checked at states around z0.

    Args:
        field: the field.
        one: traces the field for one sample, if the samples are a state together.
        z0: initial states.
    """
    if field.varies:
        return None
    try:
        numbers = tuple((x.shape, str(x.dtype), np.asarray(x).tobytes()) for x in field.constants)
    except TypeError:  # a key of random numbers
        return None
    lead = field.depth or int(one is not None)
    key = field.traced, numbers, lead
    if key not in known:
        known[key] = layers = None
        with suppress(Exception):  # of the model, which may not take one sample
            layers = layers_of(*(one() if one else (field.traced, field.constants)))
        if layers is not None:
            stack = LayerStack(layers, lead=lead)
            if stack.width(z0.shape) == layers[0].weight.shape[1] and _agree(field, stack, z0):
                known[key] = stack
    known.move_to_end(key)
    while len(known) > KEPT:
        known.popitem(last=False)
    return known[key]


def _agree(field: BatchField, stack: LayerStack, z0: Tensor) -> bool:
    """Whether layers compute what their field does, up to rounding."""
    z = z0[:CHECKED] if field.depth else z0
    random = torch.Generator("cpu").manual_seed(0)
    for away, time in ((0.0, 0.0), (0.5, 0.3), (2.0, 1.7)):
        noise = torch.randn(z.shape, generator=random, dtype=z.dtype, device="cpu")
        t, x = z.new_tensor(time), z + away * noise
        expected, found = field(t, x), _by_layers(stack, t, x)
        near = ROUNDING * torch.finfo(z.dtype).eps * expected.abs().amax()
        if not bool(((found - expected).abs() <= near).all()):
            return False
    return True


def _by_layers(stack: LayerStack, t: Tensor, z: Tensor) -> Tensor:
    rows, unpack = pack_stack(stack, z)
    value: Tensor = unpack(stack_field(stack)(t, rows))
    return value
