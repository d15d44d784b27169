"""Vector fields of JAX as functions that do not depend on traces, and calls of them from PyTorch.

A vector field may use parameters of functions under ``jax.jit`` and rows of batches under
``jax.vmap``. As a jaxpr it names them, so that the solve of a whole batch can be left to PyTorch.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trueode.auditing.arrays import shared_tensor
from trueode.errors import UsageError

MOST = 64  # fields that are kept compiled
LEAST = 64  # rows of the smallest batch for which a field is compiled, or three quarters of it


class TracedField:
    """A vector field as a function of its constants, a time and a state.

    Fields of equal jaxprs share it, so that a field that is made anew for each solve is compiled
    once.

    Args:
        jaxpr: computes the field.

    Attributes:
        jaxpr: computes the field.
        call: ``call(constants, t, z)``; can be traced and differentiated.
    """

    def __init__(self, jaxpr: Any) -> None:
        evaluate = sys.modules["jax"].core.eval_jaxpr

        def call(constants: Sequence[Any], t: Any, z: Any) -> Any:
            return evaluate(jaxpr, constants, t, z)[0]

        self.jaxpr, self.call = jaxpr, call
        self.compiled = cache(self._compiled)

    def _compiled(self, batched: tuple[tuple[bool, ...], ...], timed: tuple[bool, ...]) -> Any:
        """Compile the field for batches of states.

        Args:
            batched: for each dimension of the batch, which constants have it.
            timed: which of these dimensions the times have.
        """
        jax, mapped = sys.modules["jax"], self.call
        for constants, time in zip(reversed(batched), reversed(timed), strict=True):
            axes = [0 if each else None for each in constants]
            mapped = jax.vmap(mapped, in_axes=(axes, 0 if time else None, 0))
        return jax.jit(mapped)


_known: OrderedDict[Any, TracedField] = OrderedDict()


def trace_field(field: Callable[[Any, Any], Any], t: Any, z: Any) -> tuple[TracedField, list[Any]]:
    """Trace a field for a time and a state, or for their shapes and dtypes.

    Returns:
        The field, and its constants: arrays, also tracers.
    """
    jax = sys.modules["jax"]
    with jax.disable_jit(False):
        closed = jax.make_jaxpr(field)(t, z)
    key = str(closed.jaxpr), tuple(_values(closed.jaxpr))
    if key not in _known:
        _known[key] = TracedField(closed.jaxpr)
    _known.move_to_end(key)
    while len(_known) > MOST:
        _known.popitem(last=False)
    return _known[key], list(closed.consts)


def _values(jaxpr: Any) -> Iterator[Any]:
    """What the text of a jaxpr may leave out: numbers, arrays and functions that it calls."""
    core = import_module("jax.extend.core")
    for equation in jaxpr.eqns:
        yield from (_bytes(x.val) for x in equation.invars if isinstance(x, core.Literal))
        derivatives = equation.primitive.name.startswith("custom_")
        for parameter in equation.params.values():
            for part in parameter if isinstance(parameter, tuple | list) else (parameter,):
                if isinstance(part, core.ClosedJaxpr):
                    yield from map(_bytes, part.consts)
                if isinstance(part, core.ClosedJaxpr | core.Jaxpr):
                    yield from _values(getattr(part, "jaxpr", part))
                elif callable(part) and not derivatives:
                    # the jaxpr keeps an object without a hash, and with it its number
                    yield part if _has_hash(part) else id(part)


def _has_hash(x: Any) -> bool:
    try:
        hash(x)
    except TypeError:
        return False
    return True


def _bytes(x: Any) -> Any:
    x = np.asarray(x)
    return x.shape, str(x.dtype), x.tobytes()


class BatchField:
    """A vector field of JAX on tensors: ``field(t, z)`` for states ``(*batch, *shape)``.

    A batch may have other numbers of rows, if its constants do not depend on the rows.

    Args:
        traced: the field for one state.
        constants: its constants, each with the dimensions of the batch, of size 1 where it does not
            depend on them.
        batch: the sizes of the batch.

    Attributes:
        traced: the field for one state.
        constants: its constants, with the dimensions of the batch on which they depend.
        depth: the number of dimensions of the batch.
        varies: whether a constant depends on them.
    """

    def __init__(
        self, traced: TracedField, constants: Sequence[Any], batch: tuple[int, ...]
    ) -> None:
        self.traced, self._batch = traced, batch
        self.depth = depth = len(batch)
        has = [[size > 1 for size in x.shape[:depth]] for x in constants]
        self.varies = any(map(any, has))
        self._batched = tuple(zip(*has, strict=True)) if has else ((),) * depth
        shapes = [[*(n for n in x.shape[:depth] if n > 1), *x.shape[depth:]] for x in constants]
        self.constants = [x.reshape(s) for x, s in zip(constants, shapes, strict=True)]
        self._any_rows = bool(batch) and not any(self._batched[0])

    def __call__(self, t: Tensor, z: Tensor) -> Tensor:
        """The derivatives ``(*batch, *shape)``.

        Args:
            t: a time, or one for each row ``(rows, 1, …)``, with all dimensions of the batch or
                with size 1.
            z: states ``(*batch, *shape)``.

        Raises:
            ValueError: the shapes do not fit.
        """
        n, depth = len(z), self.depth
        timed = tuple(size > 1 for size in t.shape) if t.dim() else (False,) * depth
        if len(timed) != depth or (not self._any_rows and tuple(z.shape[:depth]) != self._batch):
            raise ValueError("the field is known for other batches only")
        if t.dim():
            t = t.reshape([size for size in t.shape if size > 1])
        if self._any_rows and (more := _rounded(n) - n):
            z = _padded(z, more)
            t = _padded(t, more) if timed[0] else t
        compiled = self.traced.compiled(self._batched, timed)
        jax = sys.modules["jax"]
        with jax.disable_jit(False):
            found = compiled(self._placed, *(x.detach().numpy() for x in (t, z)))
        return shared_tensor(found)[:n] if depth else shared_tensor(found)

    @cached_property
    def _placed(self) -> list[Any]:
        return [*map(sys.modules["jax"].device_put, self.constants)]


def _rounded(n: int) -> int:
    """The number of rows for which a field is compiled: 1 or 1.5 times a power of two."""
    power = 1 << max(n - 1, LEAST - 1).bit_length()
    return power if n > power * 3 // 4 else power * 3 // 4


def _padded(x: Tensor, more: int) -> Tensor:
    return torch.cat([x, x[-1:].expand(more, *x.shape[1:])])


_staged = False


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run JAX without compilation within the block; `on_host` needs it.

    JAX may keep traces of some functions (``jax.checkpoint``, branches of ``jax.lax.cond``). Those
    that hold calls of `on_host` are forgotten, together with all others.
    """
    global _staged
    jax = sys.modules["jax"]
    try:
        with jax.disable_jit():
            yield
    finally:
        if _staged:
            _staged = False
            jax.clear_caches()


@cache
def _primitive() -> Any:
    """The primitive of `on_host`: it computes in Python, for a whole batch at once."""
    core, ad, batching, mlir = (
        import_module(f"jax.{name}")
        for name in ("extend.core", "interpreters.ad", "interpreters.batching", "interpreters.mlir")
    )
    primitive = core.Primitive("solve_by_trueode")
    primitive.multiple_results = True

    def compute(*given: Any, function: Any, shapes: Any, batch: Any) -> Any:
        return function(batch, *given)

    def shaped(*given: Any, function: Any, shapes: Any, batch: Any) -> Any:
        global _staged
        jax, _staged = sys.modules["jax"], True
        return [jax.core.ShapedArray((*batch, *x.shape), x.dtype) for x in shapes]

    def mapped(given: Any, axes: Any, *, function: Any, shapes: Any, batch: Any) -> Any:
        jax = sys.modules["jax"]
        size = next(x.shape[axis] for x, axis in zip(given, axes, strict=True) if axis is not None)
        given = [
            _with_batch(x) if axis is None else x if axis == 0 else jax.numpy.moveaxis(x, axis, 0)
            for x, axis in zip(given, axes, strict=True)
        ]
        found = primitive.bind(*given, function=function, shapes=shapes, batch=(size, *batch))
        return found, [0] * len(found)

    def differentiated(*_: Any, **__: Any) -> Any:
        raise UsageError(
            "The model differentiates through its solve (jax.grad of a function that solves). "
            "Another solver has no such derivative. Leave the derivative out of the model."
        )

    def lowered(*_: Any, **__: Any) -> Any:
        raise UsageError(
            "The model compiles its solve although jax.disable_jit() is on, so no other solver can "
            "replace it. Audit the model uncompiled."
        )

    primitive.def_impl(compute)
    primitive.def_abstract_eval(shaped)
    batching.primitive_batchers[primitive] = mapped
    ad.primitive_jvps[primitive] = differentiated
    mlir.register_lowering(primitive, lowered)
    return primitive


def _with_batch(x: Any) -> Any:
    """An array with another dimension of size 1 first, without a compilation if possible."""
    jax: Any = sys.modules["jax"]
    key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended)
    return (x if key or isinstance(x, jax.core.Tracer) else np.asarray(x))[None]


def on_host(function: Callable[..., Any], shapes: Sequence[Any], *given: Any) -> Any:
    """Compute in Python, also under ``jax.vmap``.

    Args:
        function: called once for a whole batch, as ``function(batch, *given)`` with the sizes of
            the batch, ``()`` outside of ``jax.vmap``. Its arguments are arrays with the dimensions
            of the batch first, of size 1 where they do not depend on it; so are its results, with
            full size.
        shapes: shapes and dtypes of the results for one state.
        given: arrays or tracers.
    """
    return _primitive().bind(*given, function=function, shapes=tuple(shapes), batch=())
