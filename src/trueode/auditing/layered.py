"""Fields of models under test as layers, which solvers compute faster than by calling them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn

from trueode.auditing.problem import Field
from trueode.layers import LayerStack
from trueode.solvers.recognition import Recognition, RecognitionError
from trueode.solvers.stack import stack_field
from trueode.solvers.states import pack_stack


class Layered:
    """A field whose layers solvers may compute, during one replaced solve.

    Whatever else the field does is not done: an audit undoes it anyway.

    Args:
        call: calls the field.
        field: the field itself.
        modules: the modules that it may use.
        others: further tensors that it may use.
        like: the initial state.
    """

    def __init__(
        self,
        call: Field,
        field: Field,
        modules: Iterable[nn.Module],
        others: Iterable[Tensor],
        like: Tensor,
    ) -> None:
        self._call, self._field, self._like = call, field, like
        self._recognition = Recognition(_Fixed(modules, others))
        self._known: dict[torch.Size, LayerStack | None] = {}

    def __call__(self, t: Tensor, z: Tensor) -> Tensor:
        """The field at a time and states."""
        stack = self.layer_stack(z.shape) if t.dim() == 0 else None
        if stack is None:
            return self._call(t, z)
        rows, unpack = pack_stack(stack, z)
        value: Tensor = unpack(stack_field(stack)(t, rows))
        return value

    def layer_stack(self, shape: Sequence[int]) -> LayerStack | None:
        """The layers for states of a shape; None if the field does not compute layers."""
        key = torch.Size(shape)
        if key not in self._known:
            z, found = self._like.new_zeros(key), None
            if hasattr(self._field, "layer_stack"):  # a divergence cannot be followed
                found = self._field.layer_stack(key)
            with suppress(RecognitionError):
                if found is None:
                    found = self._recognition.layers(self._field, z, lambda: z.new_tensor(0.25))
            self._known[key] = found
        return self._known[key]


class _Fixed:
    """The tensors of a model, which do not change during a solve."""

    trusted = True

    def __init__(self, modules: Iterable[nn.Module], others: Iterable[Tensor]) -> None:
        found = [
            x
            for module in modules
            for held in (module._parameters, module._buffers)
            for x in held.values()
            if x is not None
        ]
        self.tensors: Sequence[Tensor] = [*found, *others]

    def holds(self) -> bool:
        """True: see the class."""
        return True

    def settle(self) -> None:
        """Nothing is to note."""
