"""Vector fields of JAX as layers, which the solvers of this package compute without JAX.

A jaxpr is followed equation by equation. Each value that depends on the state or the time is known
as an affine function of the units of the last layer and of the time, as long as it is one. It is
also known as an expression of earlier values, entry by entry, as far as this is part of an
activation. Anything else ends the search.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from importlib import import_module
from math import prod
from typing import Any, NamedTuple

import numpy as np

from trueode.auditing.arrays import to_tensor
from trueode.auditing.libraries.traced import TracedField
from trueode.layers import Layer

MOST = 1024  # numbers in the state of a sample, and in a layer

_CALLS = (
    *("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
)
"""Primitives that compute a jaxpr."""
_SAME = ("copy", "copy_p", "convert_element_type", "reshape", "broadcast_in_dim")
"""Primitives that change nothing where shape and dtype stay."""
_SUMS = ("add", "add_any", "sub", "concatenate", "stack", "pad")
"""Primitives that are linear in all operands together."""
_LINEAR = {
    **dict.fromkeys(("mul", "dot_general"), 2),
    **dict.fromkeys(("div", "neg", "reduce_sum", "squeeze", "transpose", *_SAME), 1),
    **dict.fromkeys(("slice", "split", "unstack", "rev", "gather", "dynamic_slice"), 1),
}
"""Primitives that are linear in each of their first operands."""
_SYMMETRIC = ("add", "mul", "max", "min")

_Tree = Any
"""An expression of one value: ``"x"``, a number, or a primitive, its parameters and operands."""


class _UnknownError(Exception):
    """A field computes something else than layers."""


class _Affine(NamedTuple):
    """An affine function of the units x of a layer and of the time t.

    Attributes:
        layers: the layers up to these units, each a name of an activation and its rows; ``()`` for
            the state; None if there is no x.
        rows: the value at x = 0, t = 0, its change with t, and with each unit,
            ``(2 + units, *shape)``.
    """

    layers: tuple[tuple[str, Any], ...] | None
    rows: Any


@dataclass(eq=False)
class _Value:
    """A value that depends on the state or the time.

    Attributes:
        make: makes it as an affine function.
        views: the value as an expression of others, entry by entry.
    """

    make: Callable[[], _Affine]
    views: dict[_Value, _Tree] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.views[self] = "x"


class _Reader:
    """Follows jaxprs.

    Args:
        dtype: the only precision that values may have.
        names: expressions that are activations, with their names.
        parts: the expressions to be followed; None: all.
    """

    def __init__(self, dtype: str, names: dict[_Tree, str], parts: set[_Tree] | None) -> None:
        self.dtype, self.names, self.parts = dtype, names, parts
        self.trees = set[_Tree]()  # that were met
        self._affine: dict[_Value, _Affine] = {}

    def follow(self, jaxpr: Any, constants: Sequence[Any], given: Sequence[Any]) -> list[Any]:
        """The results of a jaxpr: values, and constants, which are arrays."""
        literal = import_module("jax.extend.core").Literal
        known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *given), strict=True))

        def read(x: Any) -> Any:
            return x.val if isinstance(x, literal) else known[x]

        for equation in jaxpr.eqns:
            found = self._results(equation, [read(x) for x in equation.invars])
            known.update(zip(equation.outvars, found, strict=True))
        return [read(x) for x in jaxpr.outvars]

    def _results(self, equation: Any, given: list[Any]) -> list[Any]:
        primitive, parameters = equation.primitive, equation.params
        if primitive.name in _CALLS:
            names = ("jaxpr", "call_jaxpr", "fun_jaxpr")
            inner = next(parameters[name] for name in names if name in parameters)
            return self.follow(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), given)
        if not any(isinstance(x, _Value) for x in given):
            found = primitive.bind(*given, **parameters)
            return list(found) if primitive.multiple_results else [found]
        before, after = ([x.aval for x in each] for each in (equation.invars, equation.outvars))
        if any(str(x.dtype) not in (self.dtype, "bool") for x in after):
            raise _UnknownError
        if primitive.name in _SAME and (before[0].shape, before[0].dtype) == (
            after[0].shape,
            after[0].dtype,
        ):
            return given[:1]
        views = self._views(equation, given) if len(after) == 1 else {}
        return [
            _Value(partial(self._made, equation, given, i), dict(views)) for i in range(len(after))
        ]

    def _views(self, equation: Any, given: list[Any]) -> dict[_Value, _Tree]:
        """The result as an expression of all values that the operands are expressions of."""
        core, shape = sys.modules["jax"].core, equation.outvars[0].aval.shape
        name = equation.primitive.name
        operands: list[float | dict[_Value, _Tree]] = []
        common: set[_Value] | None = None
        for x, var in zip(given, equation.invars, strict=True):
            if not isinstance(x, _Value):
                if isinstance(x, core.Tracer) or np.ndim(x):
                    return {}
                operands.append(float(np.asarray(x, self.dtype)))
                continue
            if var.aval.shape != shape:
                return {}
            operands.append(x.views)
            common = {*x.views} if common is None else common & x.views.keys()
        found, parameters = {}, str(sorted((key, str(x)) for key, x in equation.params.items()))
        for value in common or ():
            trees = [x[value] if isinstance(x, dict) else x for x in operands]
            if name in _SYMMETRIC:
                trees.sort(key=str)
            tree = (name, parameters, *trees)
            if self.parts is None or tree in self.parts:
                found[value] = tree
                self.trees.add(tree)
        return found

    def _made(self, equation: Any, given: list[Any], index: int) -> _Affine:
        """A result of an equation as an affine function."""
        jax, primitive = sys.modules["jax"], equation.primitive
        numpy = jax.numpy
        which = [i for i, x in enumerate(given) if isinstance(x, _Value)]
        if primitive.name in _SUMS:
            which = [*range(len(given))]
        elif len(which) > 1 or which[0] >= _LINEAR.get(primitive.name, 0):
            raise _UnknownError
        parts = [self.affine(given[i]) for i in which]
        bases = [x.layers for x in parts if x.layers is not None]
        if any(x is not bases[0] for x in bases):
            raise _UnknownError
        size, operands = max(len(x.rows) for x in parts), [*given]
        for i, (_, rows) in zip(which, parts, strict=True):
            more = numpy.zeros((size - len(rows), *rows.shape[1:]), rows.dtype)
            operands[i] = numpy.concatenate([rows, more])
        axes = [0 if i in which else None for i in range(len(given))]
        rows = jax.vmap(partial(primitive.bind, **equation.params), axes)(*operands)
        return _Affine(
            bases[0] if bases else None, rows[index] if primitive.multiple_results else rows
        )

    def affine(self, x: Any) -> _Affine:
        """A value as an affine function, if need be of the units of a new layer."""
        if not isinstance(x, _Value):
            numpy = sys.modules["jax"].numpy
            x = numpy.asarray(x, self.dtype)
            return _Affine(None, numpy.stack([x, numpy.zeros_like(x)]))
        if x not in self._affine:
            try:
                self._affine[x] = x.make()
            except _UnknownError:
                self._affine[x] = self._activated(x)
        return self._affine[x]

    def _activated(self, x: _Value) -> _Affine:
        for value, tree in x.views.items():
            if tree in self.names:
                layers, rows = self.affine(value)
                units, shape = prod(rows.shape[1:]), rows.shape[1:]
                if layers is None or units > MOST:
                    break
                return _units((*layers, (self.names[tree], rows)), shape, self.dtype)
        raise _UnknownError


def _units(layers: tuple[tuple[str, Any], ...], shape: tuple[int, ...], dtype: str) -> _Affine:
    """The units themselves."""
    n = prod(shape)
    return _Affine(layers, np.eye(2 + n, n, -2, dtype=dtype).reshape(2 + n, *shape))


@cache
def _activations(dtype: str) -> tuple[dict[_Tree, str], set[_Tree]]:
    """The expressions that JAX computes for activations, with names, and all their parts."""
    jax = sys.modules["jax"]
    functions = {
        "relu": [jax.nn.relu],
        "lrelu": [jax.nn.leaky_relu],
        "sigmoid": [jax.nn.sigmoid],
        "tanh": [jax.numpy.tanh],
        "silu": [jax.nn.silu],
        "softplus": [jax.nn.softplus],
        "gelu": [partial(jax.nn.gelu, approximate=False)],
        "cube": [lambda x: x**3, lambda x: x * x * x],
    }
    reader, names = _Reader(dtype, {}, None), {}
    for name, every in functions.items():
        for function in every:
            closed = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((), dtype))
            x = _Value(lambda: _Affine(None, None))
            (found,) = reader.follow(closed.jaxpr, closed.consts, [x])
            names[found.views[x]] = name
    return names, reader.trees


def layers_of(traced: TracedField, constants: Sequence[Any]) -> tuple[Layer, ...] | None:
    """The layers that a field computes from the state of a sample; None if it computes others.

    Args:
        traced: the field.
        constants: its constants.
    """
    names, compute = _reading(traced)
    try:
        with sys.modules["jax"].disable_jit(False):
            every = compute(constants)
    except Exception:  # of JAX, whose primitives differ between its versions
        return None
    return tuple(_layer(name, np.asarray(rows)) for name, rows in zip(names, every, strict=True))


@lru_cache(maxsize=64)
def _reading(traced: TracedField) -> tuple[list[str], Callable[[Sequence[Any]], list[Any]]]:
    """A function of a field's constants that computes the rows of its layers, and their names,
    which are known after its first call.
    """
    jax, jaxpr, names = sys.modules["jax"], traced.jaxpr, list[str]()
    shape, dtype = jaxpr.invars[1].aval.shape, str(jaxpr.invars[1].aval.dtype)

    def compute(constants: Sequence[Any]) -> list[Any]:
        if jaxpr.effects or not 0 < prod(shape) <= MOST:
            raise _UnknownError
        time = _Value(lambda: _Affine(None, np.eye(2, dtype=dtype)[1]))
        state = _Value(lambda: _units((), shape, dtype))
        reader = _Reader(dtype, *_activations(dtype))
        (found,) = reader.follow(jaxpr, constants, [time, state])
        layers, rows = reader.affine(found)
        if layers is None:
            raise _UnknownError
        names[:] = [*(name for name, _ in layers), "identity"]
        return [rows for _, rows in layers] + [rows]

    return names, jax.jit(compute)


def _layer(activation: str, rows: Any) -> Layer:
    bias, clock, weight = (
        to_tensor(x.reshape(len(x), -1).T.copy()) for x in (rows[:1], rows[1:2], rows[2:])
    )
    return Layer(weight, bias[:, 0], activation, clock[:, 0] if clock.any() else None)
