"""Call a field once, and follow what it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

from trueode.solvers.recognition.rules import COMPUTING, FORMS, RULES, Call, activated
from trueode.solvers.recognition.values import (
    Given,
    Opaque,
    Recipe,
    RecognitionError,
    Signal,
    Uniform,
    Value,
)


class Structure(NamedTuple):
    """The layers of a field.

    Attributes:
        recipes: the layers, first to last; the last one has no activation.
        channels_last: see `LayerStack`.
    """

    recipes: tuple[Recipe, ...]
    channels_last: bool


class _Tape(TorchFunctionMode):
    """Follows the values of all tensors within the block."""

    def __init__(
        self, values: Iterable[tuple[Tensor, Value]], dtype: torch.dtype, *, trusted: bool
    ) -> None:
        super().__init__()
        self._dtype, self._trusted = dtype, trusted
        # tensors are kept, so that no others take their ids
        self._known: dict[int, tuple[Tensor, Value]] = {id(x): (x, value) for x, value in values}
        self._fresh: set[int] = set()  # results of layers that nothing has used yet
        self.refusal: RecognitionError | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """See `torch.overrides`."""
        if func in FORMS:
            return func(*args, **(kwargs or {}))
        try:
            return self._follow(func, args, kwargs or {})
        except RecognitionError as refusal:
            # kept, because the field may catch all errors
            self.refusal = self.refusal or refusal
            raise

    def _follow(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        rule = RULES.get(func)
        if rule is None or self._is_aside(args):
            return self._run_aside(func, args, kwargs)
        values = [self._replaced(x) for x in args]
        named = {key: self._replaced(x) for key, x in kwargs.items()}
        name = func.__name__
        overwrites = kwargs.get("inplace") or (name[-1] == "_" and name[0] != "_")
        if "out" in kwargs or any(x is True for x in args):
            raise RecognitionError(f"it calls {name_of(func)} in an unusual way")
        if overwrites and id(args[0]) not in self._fresh:
            raise RecognitionError(f"it overwrites a tensor by {name_of(func)}")
        for x in args:
            self._fresh.discard(id(x))
        result = func(*args, **kwargs)
        if not isinstance(result, Tensor) or not result.is_floating_point():
            raise RecognitionError(f"it calls {name_of(func)}")
        try:
            value = rule(Call(values, named, [_shapes(x) for x in args], result))
        except (AttributeError, IndexError, TypeError, ValueError):
            raise RecognitionError(f"it calls {name_of(func)} in an unusual way") from None
        if result.dtype != self._dtype and not isinstance(value, Uniform):
            raise RecognitionError(f"it computes in {result.dtype} for a state in {self._dtype}")
        self._known[id(result)] = result, value
        if rule in COMPUTING:
            self._fresh.add(id(result))
        return result

    def _is_aside(self, args: Sequence[Any]) -> bool:
        """Whether a call uses a tensor that layers cannot use."""
        return any(isinstance(x, Tensor) and isinstance(self.value(x), Opaque) for x in args)

    def _run_aside(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Call a function beside the layers, such as one that counts calls in a buffer."""
        values = [self.value(x) for x in args if isinstance(x, Tensor)]
        aside = bool(values) and all(isinstance(value, (Given, Opaque)) for value in values)
        if not (self._trusted and aside) or kwargs:
            raise RecognitionError(f"it calls {name_of(func)}")
        result = func(*args)
        for x in (args[0], result):
            if isinstance(x, Tensor):
                self._known[id(x)] = x, Opaque()
        return result

    def _replaced(self, x: Any) -> Any:
        """An argument with values in the place of tensors."""
        if isinstance(x, (tuple, list)):
            return type(x)(self._replaced(each) for each in x) if type(x) in (tuple, list) else x
        return self.value(x) if isinstance(x, Tensor) else x

    def value(self, x: Tensor) -> Value:
        """What a tensor is made of."""
        known = self._known.get(id(x))
        if known is None:
            raise RecognitionError("it uses a tensor that is neither a parameter nor a buffer")
        return known[1]


def _shapes(x: Any) -> Any:
    if isinstance(x, (tuple, list)):
        return [_shapes(each) for each in x]
    return x.shape if isinstance(x, Tensor) else None


def name_of(function: Any) -> str:
    """A function's name, for people."""
    return str(resolve_name(function) or getattr(function, "__name__", function))


def follow(
    field: Callable[..., Any], t: Tensor, z: Tensor, given: Iterable[Tensor], *, trusted: bool
) -> Structure:
    """The layers of a field, found by calling it once.

    Args:
        field: the field, ``field(t, z)``.
        t: a time, a tensor without dimension.
        z: a state.
        given: the tensors that the field may use.
        trusted: whether the field may do something beside its layers.

    Raises:
        RecognitionError: the field computes something else than layers.
    """
    values: list[tuple[Tensor, Value]] = [(x, Given(x)) for x in given]
    tape = _Tape([*values, (t, Uniform(1.0, 0.0)), (z, Signal())], z.dtype, trusted=trusted)
    with torch.no_grad(), tape:
        found = field(t, z)
    if tape.refusal is not None:
        raise tape.refusal
    if not isinstance(found, Tensor) or found.shape != z.shape or found.dtype != z.dtype:
        raise RecognitionError("it does not return a tensor of the state's form")
    value = tape.value(found)
    if not isinstance(value, Signal) or not value.recipes:
        raise RecognitionError("its result is not that of a layer of the state")
    if not value.is_linear:  # the kernel's last layer has no activation
        value = activated(value, "identity", value.recipes[-1].outputs)
    return Structure(value.recipes, bool(value.channels))
