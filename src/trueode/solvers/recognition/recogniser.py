"""Which layers a field computes, remembered from solve to solve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from math import prod
from types import FunctionType, MethodType
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from trueode.layers import LayerStack
from trueode.solvers.recognition.code import Reading, parts_of
from trueode.solvers.recognition.tape import Structure, follow
from trueode.solvers.recognition.values import RecognitionError
from trueode.solvers.stack import stack_field
from trueode.solvers.states import pack_stack

SHAPES = 64  # of states that are remembered for each field
# The largest difference from calling the field, in units of the rounding error of the largest
# number.
ROUNDED = 1e4
NUMBERS = 2**12  # about so many of a batch of images are compared
PATIENCE = 64  # solves until a field that was not recognised is tried again; then twice as many
# Fields that are made anew for every solve are not worth the attempt: after so many fields of one
# code, of which none served so many solves, a field is tried only after so many solves.
TRIED, SERVED = 16, 8


class Touched(Protocol):
    """What a field touches.

    Attributes:
        tensors: the tensors that it may use.
        trusted: whether it may do more than compute.
    """

    trusted: bool

    @property
    def tensors(self) -> Sequence[Tensor]:
        """See above."""

    def holds(self) -> bool:
        """Whether the field still computes the same, but for the numbers in its tensors."""

    def settle(self) -> None:
        """Note that the field was called."""


class Recognition:
    """The layers of one field, for states of all shapes.

    Args:
        touched: what the field touches: a `Reading` of its code, or a `Snapshot`, if calling it is
            known to do nothing that matters but compute.
    """

    def __init__(self, touched: Touched) -> None:
        self._touched = touched
        self._stacks: dict[Any, _Stack] = {}
        self._refused: dict[Any, RecognitionError] = {}
        self._checked: list[tuple[Structure, bool]] = []

    def holds(self) -> bool:
        """Whether the field still computes the same, but for the numbers in its tensors."""
        return self._touched.holds()

    def layers(
        self, field: Callable[..., Any], z: Tensor, time: Callable[[], Tensor]
    ) -> LayerStack:
        """The layers for states like z, with the current numbers in their tensors.

        Args:
            field: the field.
            z: a state.
            time: returns a time, a tensor without dimension.

        Raises:
            RecognitionError: the field does not compute layers.
        """
        key = z.shape, z.dtype, z.device
        found = self._stacks.get(key)
        if found is not None:
            return found.now(z)
        if key in self._refused:
            raise self._refused[key]
        for known in (self._stacks, self._refused):
            if len(known) >= SHAPES:
                known.clear()
        try:
            found = self._stacks[key] = self._follow(field, time(), z)
        except RecognitionError as refusal:
            self._refused[key] = refusal
            raise
        return found.now(z)

    def _follow(self, field: Callable[..., Any], t: Tensor, z: Tensor) -> _Stack:
        with torch.no_grad():
            t, z = t.detach().clone(), z.detach().clone()
        tensors = self._touched.tensors
        params = [x for x in tensors if x.requires_grad]
        try:
            structure = follow(field, t, z, tensors, trusted=self._touched.trusted)
            stack = _Stack(structure, z.shape)
            checked = structure, torch.is_grad_enabled()
            if checked not in self._checked:
                _check(field, stack, t, z, params)
                self._checked.append(checked)
        except RecognitionError:
            raise
        except Exception as failure:  # it fails again when the solver calls it
            raise RecognitionError(f"it raises {type(failure).__name__}: {failure}") from failure
        self._touched.settle()
        return stack


class _Stack:
    """How to make a `LayerStack` for states of a shape.

    Raises:
        RecognitionError: the layers do not fit the shape.
    """

    def __init__(self, structure: Structure, shape: Sequence[int]) -> None:
        self._recipes, self._channels_last = structure
        self._lead, self.image = 1, None
        if self._channels_last and len(shape) == 4:
            self.image = shape[2], shape[3]
        if not self._channels_last:
            fitting = (n for n in range(len(shape) - 1, -1, -1) if self._fits(prod(shape[n:])))
            self._lead = next(fitting, -1)
            if self._lead < 0:
                raise RecognitionError("its layers join numbers of several samples")

    def _fits(self, width: int) -> bool:
        """Whether the layers map samples of a width to the same width."""
        now = width
        for recipe in self._recipes:
            if now % recipe.width:
                return False
            now = now // recipe.width * recipe.outputs
        return now == width

    def now(self, like: Tensor) -> LayerStack:
        """The layers, for states of a tensor's dtype and device."""
        layers = tuple(recipe.layer(like) for recipe in self._recipes)
        return LayerStack(layers, self._channels_last, self._lead, self.image)


def _check(
    field: Callable[..., Any], stack: _Stack, t: Tensor, z: Tensor, params: Sequence[Tensor]
) -> None:
    """Compare the layers with the field at a state and at a random one: values, and gradients
    where these are enabled. Of images, some suffice.

    Raises:
        RecognitionError: they differ.
    """
    source = torch.Generator("cpu").manual_seed(0)
    if stack.image:
        z = z[: max(1, NUMBERS // z[0].numel())]

    def random() -> Tensor:
        return torch.randn(z.shape, generator=source, device="cpu").to(z)

    def compare(time: Tensor, state: Tensor) -> bool:
        """Whether the gradients agree."""
        inputs, layers = [x.detach().clone().requires_grad_() for x in (time, state)], stack.now(z)
        flat, unpack = pack_stack(layers, inputs[1])
        values = field(*inputs), unpack(stack_field(layers)(inputs[0], flat))
        if not _agree(*values):
            raise RecognitionError("its values are not those of its layers")
        if not torch.is_grad_enabled():
            return True
        sources, weights = [*inputs, *params], random()
        gradients = (
            torch.autograd.grad(value, sources, weights, allow_unused=True) for value in values
        )
        return all(_agree(x, y) for x, y in zip(*gradients, strict=True))

    # At a kink of an activation, rounding may turn a gradient: it has a second chance elsewhere.
    for time, state in ((t, z), (t + 0.3, random())):
        if not compare(time, state) and not compare(time, random()):
            raise RecognitionError("its gradients are not those of its layers")


def _agree(x: Tensor | None, y: Tensor | None) -> bool:
    """Whether two tensors are equal up to rounding; None means zeros."""
    if x is None or y is None:
        rest = x if y is None else y
        return rest is None or not bool(rest.any())
    most = float(x.detach().abs().max()) if x.numel() else 0.0
    allowed = ROUNDED * torch.finfo(x.dtype).eps * max(most, 1.0)
    return bool(torch.allclose(x, y, rtol=0.0, atol=allowed, equal_nan=True))


class _Known:
    """What is known of one field: its layers, or that it has none.

    Args:
        field: the field; None if it is not tried.
        contents: the values of its closure; the field is another one if these differ.
        training: the mode of its module.
        wait: the number of solves until it is tried again, if it is not recognised.
    """

    def __init__(self, field: Any, contents: Sequence[Any], training: Any, wait: int) -> None:
        self._contents, self._training, self.wait = contents, training, wait
        self._left, self.served = wait, 0
        self.recognition: Recognition | None = None
        if field is not None:
            with suppress(RecognitionError):
                self.recognition = Recognition(Reading(field))

    def holds(self, contents: Sequence[Any], training: Any) -> bool:
        """Whether this is still true."""
        if len(contents) != len(self._contents):
            return False
        if not all(map(_same, contents, self._contents)):
            return False
        if self.recognition is not None:
            return self.recognition.holds()
        self._left -= 1
        return self._left > 0 and training is self._training


def _same(x: Any, y: Any) -> bool:
    """Whether two values of a closure are the same object, or equal numbers."""
    return x is y or (type(x) is type(y) and type(x) in (int, float) and x == y)


class _Memory:
    """The fields that were tried."""

    def __init__(self) -> None:
        self._fields: WeakKeyDictionary[Any, dict[Any, _Known]] = WeakKeyDictionary()
        self._wasted: WeakKeyDictionary[Any, int] = WeakKeyDictionary()  # attempts in a row

    def find_layers(
        self, field: Callable[..., Any], z: Tensor, time: Callable[[], Tensor]
    ) -> LayerStack | None:
        """The layers of a field, if calling it does nothing but compute them.

        Args:
            field: the field, ``field(t, z)``.
            z: a state.
            time: returns a time, a tensor without dimension.
        """
        named = _named(field)
        if named is None:
            return None
        anchor, code, contents = named
        training = anchor.training if isinstance(anchor, nn.Module) else None
        own = self._fields.get(anchor)
        if own is None:
            own = self._fields[anchor] = {}
        known = own.get(code)
        if known is None or not known.holds(contents, training):
            known = own[code] = self._tried(field, named, training, known)
        if known.recognition is None:
            return None
        try:
            found = known.recognition.layers(field, z, time)
        except RecognitionError:
            return None
        known.served += 1
        if known.served == SERVED:
            self._wasted[code] = 0
        return found

    def _tried(
        self, field: Any, named: tuple[Any, Any, Sequence[Any]], training: Any, known: _Known | None
    ) -> _Known:
        _, code, contents = named
        wasted = self._wasted.get(code, 0)
        if known is None and wasted >= TRIED:
            return _Known(None, contents, training, SERVED)
        self._wasted[code] = wasted + 1
        return _Known(field, contents, training, PATIENCE if known is None else 2 * known.wait)


find_layers = _Memory().find_layers


def _named(field: Any) -> tuple[Any, Any, Sequence[Any]] | None:
    """By what a field is known: an object that lives as long as the field's parameters, its code,
    and the further parts of its closure. None for other things than modules, functions and methods.
    """
    if isinstance(field, nn.Module):
        forward = type(field).forward
        return field, getattr(forward, "__code__", forward), ()
    if not isinstance(field, (FunctionType, MethodType)):
        return None
    try:
        code, *contents = parts_of(field)
    except ValueError:  # a variable of the closure has no value yet
        return None
    anchor = next((x for x in contents if isinstance(x, nn.Module)), code)
    return anchor, code, [x for x in contents if x is not anchor]
