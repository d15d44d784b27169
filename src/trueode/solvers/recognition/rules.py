"""What each function of PyTorch does to the values of `trueode.solvers.recognition.values`.

A function without a rule, or arguments for which a rule does not hold, raise `RecognitionError`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from trueode.catalog import ACTIVATIONS
from trueode.solvers.recognition.values import (
    Factor,
    Given,
    Joined,
    Recipe,
    RecognitionError,
    Row,
    Selected,
    Signal,
    Uniform,
    Value,
)

WIDEST_IDENTITY = 64  # inputs of a layer that is there for its activation alone


class Call(NamedTuple):
    """A call of a function: its arguments, with values in the place of tensors, and its result."""

    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    shapes: Sequence[Any]  # of the arguments; None for those that are not tensors
    result: Tensor

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        """An argument by its place or name."""
        return self.args[place] if place < len(self.args) else self.kwargs.get(name, default)


Rule = Callable[[Call], Value]


def _keep(call: Call) -> Value:
    """A view that keeps the order of the numbers, or a copy."""
    value, same = call.args[0], call.result.shape == call.shapes[0]
    if isinstance(value, Given) and call.result.dtype != value.tensor.dtype:
        raise RecognitionError("it converts a parameter")
    if isinstance(value, Row):
        same = call.result.shape[-1:] == call.shapes[0][-1:]
    if isinstance(value, (Uniform, Selected)) or same:
        return value  # type: ignore[no-any-return]
    if isinstance(value, Given) and value.tensor.numel() == 1:
        return value
    whole = call.result.numel() == prod(call.shapes[0])
    if isinstance(value, Signal) and not value.channels and whole:
        return replace(value, channels=False)
    raise RecognitionError("it rearranges numbers")


def _repeat(call: Call) -> Value:
    """A view or a copy that repeats numbers."""
    if call.result.shape == call.shapes[0] or isinstance(call.args[0], (Uniform, Selected)):
        return call.args[0]  # type: ignore[no-any-return]
    if isinstance(call.args[0], Row) and call.result.shape[-1] == call.shapes[0][-1]:
        return call.args[0]
    raise RecognitionError("it repeats numbers")


def _select(call: Call) -> Value:
    value = call.args[0]
    if isinstance(value, Uniform):
        return value
    if isinstance(value, (Signal, Selected)):
        return Selected()
    raise RecognitionError("it uses a part of a tensor")


def _look(call: Call) -> Value:
    """A function whose results may be asked for their form alone."""
    if isinstance(call.args[0], (Signal, Selected)):
        return Selected()
    raise RecognitionError("it uses absolute values")


def _transpose(call: Call) -> Value:
    value = call.args[0]
    if isinstance(value, Uniform):
        return value
    if isinstance(value, Given) and value.tensor.dim() == 2:
        return Given(value.tensor, not value.transposed)
    raise RecognitionError("it transposes a tensor")


def _filled(number: float) -> Rule:
    return lambda call: Uniform(0.0, number)


def _full(call: Call) -> Value:
    fill = call.argument(1, "fill_value")
    return fill if isinstance(fill, Uniform) else Uniform(0.0, _number(fill))


def _number(value: Any) -> float:
    if isinstance(value, (int, float)):
        return float(value)
    raise RecognitionError("it computes with something that is not a number")


def _factor(value: Any) -> Factor | None:
    """A value as a factor, if it is one number."""
    if isinstance(value, (int, float)):
        return Factor(float(value))
    if isinstance(value, Uniform) and not value.rate:
        return Factor(value.offset)
    if isinstance(value, Given) and value.tensor.numel() == 1:
        return Factor(1.0, (value,))
    return None


def _multiply(call: Call) -> Value:
    one, other = call.args[:2]
    for value, by, place in ((one, other, 0), (other, one, 1)):
        factor = _factor(by)
        if isinstance(value, Signal) and isinstance(by, Signal):
            swish = _swish(value, by)
            if swish is not None:
                return swish
        elif factor is None or isinstance(value, (int, float)):
            continue
        elif isinstance(value, Uniform) and not factor.scalars:
            return Uniform(value.rate * factor.number, value.offset * factor.number)
        elif isinstance(value, Signal) and call.result.shape == call.shapes[place]:
            return value.scaled(factor)
    raise RecognitionError("it multiplies what layers do not multiply")


def _swish(x: Signal, gate: Signal) -> Signal | None:
    """``x * sigmoid(x)`` is the activation silu of x."""
    if x.is_linear and gate == x.last(replace(x.recipes[-1], activation="sigmoid")):
        return activated(x, "silu", 0)
    return None


def _divide(call: Call) -> Value:
    by = _factor(call.args[1])
    if by is None or by.scalars or not by.number or call.kwargs:
        raise RecognitionError("it divides by something other than a number")
    return _multiply(call._replace(args=(call.args[0], 1 / by.number)))


def _negate(call: Call) -> Value:
    return _multiply(call._replace(args=(call.args[0], -1.0)))


def _add(call: Call) -> Value:
    return _sum(call, call.args[0], call.args[1], _number(call.kwargs.get("alpha", 1)))


def _subtract(call: Call) -> Value:
    return _sum(call, call.args[0], call.args[1], -_number(call.kwargs.get("alpha", 1)))


def _subtract_from(call: Call) -> Value:
    negative = _negate(call)
    return _sum(call, negative, call.args[1], 1.0)


def _sum(call: Call, one: Any, other: Any, alpha: float) -> Value:
    """``one + alpha * other``."""
    one, other = (
        Uniform(0.0, float(x)) if isinstance(x, (int, float)) else x for x in (one, other)
    )
    if isinstance(other, Uniform):
        other = Uniform(alpha * other.rate, alpha * other.offset)
        if isinstance(one, Uniform):
            return Uniform(one.rate + other.rate, one.offset + other.offset)
    if isinstance(one, Signal) and one.is_linear and call.result.shape == call.shapes[0]:
        if isinstance(other, Uniform):
            return one.last(one.recipes[-1].plus(other))
        if (
            isinstance(other, Row)
            and not one.channels
            and other.weight.now.shape[0] == one.recipes[-1].outputs
        ):
            return one.last(one.recipes[-1].plus((other, Factor(alpha))))
        if isinstance(other, Given) and not one.channels and one.recipes[-1].bias is None:
            return _with_bias(one, other, alpha)
    if isinstance(other, Signal) and isinstance(one, (Uniform, Row, Given)):
        swapped = call._replace(shapes=call.shapes[::-1])
        if isinstance(one, Given) and alpha != 1:
            raise RecognitionError("it subtracts from a parameter")
        return _sum(swapped, other.scaled(Factor(alpha)), one, 1.0)
    raise RecognitionError("it adds what layers do not add")


def _with_bias(signal: Signal, bias: Given, alpha: float) -> Signal:
    """``signal + alpha * bias``, where the last layer has no bias yet."""
    last = signal.recipes[-1]
    if alpha != 1 or bias.tensor.shape != (last.outputs,) or last.after != Factor():
        raise RecognitionError("it adds a tensor that is not a layer's bias")
    return signal.last(replace(last, bias=bias))


def _power(call: Call) -> Value:
    """``x ** 3``."""
    if isinstance(call.args[0], Signal) and call.args[1] in (3, 3.0) and not call.kwargs:
        return activated(call.args[0], "cube", call.result.shape[-1])
    raise RecognitionError("it takes a power other than the third")


def _join(call: Call) -> Value:
    """The time beside a signal."""
    parts, dim = call.args[0], call.argument(1, "dim", 0)
    shapes, dim = call.shapes[0], dim % call.result.dim()
    if all(isinstance(part, Uniform) and part == parts[0] for part in parts):
        return parts[0]  # type: ignore[no-any-return]
    if len(parts) == 2:
        for place in (0, 1):
            signal, time = parts[place], parts[1 - place]
            if (
                isinstance(signal, Signal)
                and isinstance(time, Uniform)
                and shapes[1 - place][dim] == 1
            ):
                return Joined(signal, time, place == 1, dim)
    raise RecognitionError("it joins tensors other than the state and the time")


def _linear(call: Call) -> Value:
    """``x @ weight.T + bias``."""
    x, weight, bias = call.args[0], call.argument(1, "weight"), call.argument(2, "bias")
    return _product(call, x, _flipped(weight), bias)


def _flipped(weight: Any) -> Any:
    return Given(weight.tensor, not weight.transposed) if isinstance(weight, Given) else weight


def _matmul(call: Call) -> Value:
    return _product(call, call.args[0], call.argument(1, "other", call.kwargs.get("mat2")), None)


def _addmm(call: Call) -> Value:
    if set(call.kwargs):
        raise RecognitionError("it scales the parts of a matrix product")
    bias, x, weight = call.args
    return _product(call._replace(shapes=call.shapes[1:]), x, weight, bias)


def _product(call: Call, x: Any, weight: Any, bias: Any) -> Value:
    """``x @ weight + bias`` for rows x."""
    if (
        not isinstance(weight, Given)
        or weight.tensor.dim() != 2
        or not (bias is None or isinstance(bias, Given))
    ):
        raise RecognitionError("it multiplies by a matrix that is not a parameter")
    weight = Given(weight.tensor, not weight.transposed)  # (out, in)
    fan_out, fan_in = weight.now.shape
    if bias is not None and bias.tensor.shape != (fan_out,):
        raise RecognitionError("it adds a bias of an unusual shape")
    if isinstance(x, Uniform) and fan_in == 1:
        return Row(weight, bias, x)
    joined = x if isinstance(x, Joined) and x.dim == len(call.shapes[0]) - 1 else None
    signal = x if joined is None else joined.signal
    if not isinstance(signal, Signal):
        raise RecognitionError("it multiplies something else than the state by a matrix")
    return signal.then(_recipe(weight, bias, fan_in, joined), channels=False)


def _recipe(weight: Given, bias: Given | None, fan_in: int, joined: Joined | None) -> Recipe:
    if joined is None:
        return Recipe(weight, fan_in, bias)
    return Recipe(weight, fan_in - 1, bias, joined.time, joined.leads)


_SETTINGS = ("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1)


def _convolve(call: Call) -> Value:
    """A convolution of signals or images that keeps their size."""
    x, weight, bias = call.args[0], call.argument(1, "weight"), call.argument(2, "bias")
    joined = x if isinstance(x, Joined) and x.dim == 1 else None
    signal, dims = x if joined is None else joined.signal, len(call.shapes[0]) - 2
    known = isinstance(weight, Given) and not weight.transposed and weight.tensor.dim() == dims + 2
    if not (known and isinstance(signal, Signal) and (bias is None or isinstance(bias, Given))):
        raise RecognitionError("it convolves something else than the state with parameters")
    taps = weight.tensor.shape[2:]
    stride, padding, dilation, groups = (
        given if isinstance(given, (tuple, list)) else (given,) * dims
        for given in (call.argument(3 + i, *each) for i, each in enumerate(_SETTINGS))
    )
    kept = tuple(padding) in (tuple(n // 2 for n in taps), ("same",) * dims)
    if not kept or any(n % 2 == 0 for n in taps) or {*stride, *dilation, *groups} != {1}:
        raise RecognitionError(
            "it has a convolution that does not keep the size of its inputs, or has groups or gaps"
        )
    if dims == 2 and tuple(taps) not in ((1, 1), (3, 3)):
        raise RecognitionError("it has a convolution of images with other than 1 x 1 or 3 x 3 taps")
    if joined is not None and prod(taps) > 1:
        raise RecognitionError(
            "it convolves the time with more than one tap, which padding changes at the ends"
        )
    return signal.then(_recipe(weight, bias, weight.tensor.shape[1], joined), channels=True)


def _activation(name: str) -> Rule:
    def rule(call: Call) -> Value:
        given = dict(call.kwargs)
        given.pop("inplace", None)
        settings = ACTIVATIONS[name].settings
        for place, (key, value) in enumerate(settings.items(), 1):
            if call.argument(place, key, value) != value:
                raise RecognitionError(f"it uses {name} with {key} = {call.argument(place, key)!r}")
            given.pop(key, None)
        unusual = bool(given) or len(call.args) > 1 + len(settings)
        if unusual or not isinstance(call.args[0], Signal):
            raise RecognitionError(f"it uses {name} in an unusual way")
        return activated(call.args[0], name, call.result.shape[-1])

    return rule


def activated(signal: Signal, name: str, width: int) -> Signal:
    """A signal of some width with an activation, that of its last layer or of one more."""
    if signal.is_linear:
        return signal.last(replace(signal.recipes[-1], activation=name))
    if signal.channels or width > WIDEST_IDENTITY:
        raise RecognitionError("an activation is not between layers")
    return signal.then(Recipe(None, width, activation=name), channels=False)


def _drop(call: Call) -> Value:
    """Dropout that drops nothing."""
    p, training = call.argument(1, "p", 0.5), call.argument(2, "training", True)
    if training and p:
        raise RecognitionError("it has dropout in training mode")
    return call.args[0]  # type: ignore[no-any-return]


COMPUTING: tuple[Rule, ...] = (_linear, _matmul, _addmm, _convolve)
"""The rules of functions whose results share no memory with other tensors."""

_RULES: dict[Rule, str] = {
    _keep: "view reshape flatten squeeze unsqueeze unflatten view_as reshape_as clone contiguous "
    "to float double type_as type",
    _repeat: "expand expand_as repeat broadcast_to tile",
    _transpose: "t transpose swapaxes T mT",
    _select: "__getitem__",
    _look: "abs",
    _join: "cat concat concatenate",
    _filled(1.0): "ones ones_like new_ones",
    _filled(0.0): "zeros zeros_like new_zeros",
    _full: "full full_like new_full",
    _multiply: "mul multiply __rmul__",
    _divide: "div divide true_divide",
    _negate: "neg negative",
    _add: "add __radd__",
    _subtract: "sub subtract",
    _subtract_from: "__rsub__",
    _power: "pow __pow__",
    _linear: "linear",
    _matmul: "matmul mm __matmul__",
    _addmm: "addmm",
    _convolve: "conv1d conv2d",
    _drop: "dropout",
    **{
        _activation(key): f"{known.function} {known.overwriting} {known.function}_"
        for key, known in ACTIVATIONS.items()
    },
}
# Functions whose results tell the form of a tensor, but none of its numbers.
_FORMS = "size dim ndimension numel __len__ is_floating_point is_complex shape ndim dtype device"


def _functions(name: str) -> list[Any]:
    """All functions of PyTorch with a name, and the getter of a property."""
    homes = (getattr(home, name, None) for home in (torch, torch.Tensor, F))
    found = (each if callable(each) else getattr(each, "__get__", None) for each in homes)
    return [each for each in found if each is not None]


RULES: dict[Any, Rule] = {
    each: rule
    for rule, names in _RULES.items()
    for name in names.split()
    for each in _functions(name)
}
FORMS = frozenset(each for name in _FORMS.split() for each in _functions(name))
NAMES = frozenset(name for names in (*_RULES.values(), _FORMS) for name in names.split())
"""The names of functions, methods and properties that have a rule."""
