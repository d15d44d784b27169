"""The problem that a call of diffrax poses: its vector field, its state and its times."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from types import SimpleNamespace
from typing import Any

import numpy as np

from trueode.auditing.libraries.traced import TracedField, trace_field


@dataclass(frozen=True)
class Form:
    """The structure of a state, a pytree.

    Attributes:
        tree: its structure.
        shapes: the shapes of its leaves.
        dtypes: their dtypes.
    """

    tree: Any
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[Any, ...]

    def packed(self, y: Any) -> Any:
        """A state as one array: the only leaf, or all numbers of several, ``(d,)``."""
        leaves, numpy = sys.modules["jax"].tree.leaves(y), sys.modules["jax"].numpy
        return leaves[0] if len(leaves) == 1 else numpy.concatenate([x.reshape(-1) for x in leaves])

    def unpacked(self, z: Any) -> Any:
        """A state from one array."""
        jax = sys.modules["jax"]
        if len(self.shapes) == 1:
            return jax.tree.unflatten(self.tree, [z])
        parts = jax.numpy.split(z, np.cumsum([prod(shape) for shape in self.shapes])[:-1])
        leaves = zip(parts, self.shapes, self.dtypes, strict=True)
        return jax.tree.unflatten(
            self.tree, [part.reshape(shape).astype(dtype) for part, shape, dtype in leaves]
        )


@dataclass(frozen=True)
class VectorField:
    """A traced field on states of the library; equal ones are compiled once.

    Attributes:
        form: the structure of the states.
        traced: the field.
        counted: whether its calls are counted while solvers run.
    """

    form: Form
    traced: TracedField
    counted: bool

    def __call__(self, constants: Sequence[Any], t: Any, y: Any, args: Any) -> Any:
        """The derivative; the arguments of the solve are among the constants."""
        if self.counted:
            sys.modules["jax"].debug.callback(calls.append, True)
        return self.form.unpacked(self.traced.call(constants, t, self.form.packed(y)))


calls: list[bool] = []  # of the field whose calls are counted


@dataclass
class Posed:
    """The problem of a solve.

    Attributes:
        form: the structure of the state.
        z0: the initial state, as one array.
        samples: whether the first dimension of z0 counts samples, if ``jax.vmap`` has no batch.
        times: the dtype of times.
        field: the vector field; None if the terms are no ODE.
        constants: its constants.
        one: traces the field for a state with one sample.
        refusal: why there is no field.
    """

    form: Form
    z0: Any
    samples: bool
    times: Any
    field: TracedField | None = None
    constants: Sequence[Any] = ()
    one: Callable[[], tuple[TracedField, Sequence[Any]]] | None = None
    refusal: str = ""


def pose(given: SimpleNamespace) -> Posed:
    jax = sys.modules["jax"]
    numpy = jax.numpy
    times = [given.t0, given.t1, given.dt0, *(sub.ts for sub in saved_parts(given.saveat))]
    dtype = numpy.result_type(*(x for x in times if x is not None))
    if not numpy.issubdtype(dtype, numpy.floating):
        dtype = numpy.result_type(float)
    leaves, tree = jax.tree.flatten(given.y0)
    # the library promotes states to the precision of times
    leaves = [numpy.asarray(y, numpy.result_type(y, dtype)) for y in leaves]
    form = Form(tree, tuple(y.shape for y in leaves), tuple(y.dtype for y in leaves))
    z0 = form.packed(leaves)
    posed = Posed(form, z0, len(leaves) == 1 and z0.ndim > 1, dtype)
    term, posed.refusal = _ode(given.terms)
    if term is not None:

        def field(t: Any, z: Any) -> Any:
            return form.packed(term.vf(t, form.unpacked(z), given.args)).astype(z0.dtype)

        time, state = (jax.ShapeDtypeStruct(*x) for x in (((), dtype), (z0.shape, z0.dtype)))
        posed.field, posed.constants = trace_field(field, time, state)
        one = jax.ShapeDtypeStruct((1, *z0.shape[1:]), z0.dtype)
        posed.one = lambda: trace_field(field, time, one)
    return posed


def _ode(terms: Any) -> tuple[Any, str]:
    """The terms as one ``ODETerm``, or the reason why they are none."""
    diffrax: Any = sys.modules["diffrax"]
    if isinstance(terms, diffrax.ODETerm):
        return terms, ""
    if isinstance(terms, diffrax.MultiTerm):
        parts = [_ode(term) for term in terms.terms]
        if refusal := next((reason for part, reason in parts if part is None), ""):
            return None, refusal
        add = sys.modules["jax"].tree.map

        def total(t: Any, y: Any, args: Any) -> Any:
            return add(lambda *x: sum(x[1:], x[0]), *(part.vf(t, y, args) for part, _ in parts))

        return diffrax.ODETerm(total), ""
    if isinstance(terms, diffrax.ControlTerm):
        if isinstance(terms.control, diffrax.AbstractBrownianPath):
            return None, "solves a stochastic differential equation (Brownian motion)"
        if type(terms.control).derivative is not diffrax.AbstractPath.derivative:
            return terms.to_ode(), ""
        return None, "is driven by a control without a derivative (ControlTerm of a function)"
    name = type(terms).__name__
    return None, f"has terms of the type {name}, which are no ODETerm"


def saved_parts(saveat: Any) -> list[Any]:
    diffrax: Any = sys.modules["diffrax"]
    found: list[Any] = sys.modules["jax"].tree.leaves(
        saveat.subs, is_leaf=lambda x: isinstance(x, diffrax.SubSaveAt)
    )
    return found


def is_adaptive(controller: Any) -> bool:
    kind = sys.modules["diffrax"].AbstractAdaptiveStepSizeController
    return isinstance(controller, kind)


class Cost:
    """Field evaluations of a solve by the library.

    Explicit Runge-Kutta methods evaluate all stages of a step, but the first of a step where the
    last one of the step before is the same. Evaluations of other methods are counted.

    Attributes:
        known: whether they follow from the number of steps.
    """

    def __init__(self, given: SimpleNamespace) -> None:
        tableau: Any = getattr(given.solver, "tableau", None)
        explicit = getattr(tableau, "implicit", True) is False
        self._stages = tableau.num_stages if explicit else 1
        self._reused = bool(explicit and tableau.fsal)
        self.known = explicit or type(given.solver).__name__ == "Euler"

    def of(self, n_steps: float) -> float:
        """The number of evaluations in all steps, accepted or not."""
        if self.known:
            reused = n_steps - 1 if self._reused and n_steps else 0
            return self._stages * n_steps - reused
        sys.modules["jax"].effects_barrier()
        return len(calls)


def times_of(sub: Any, t0: Any, t1: Any) -> Any:
    """The times at which states are saved, ``(times,)``."""
    ts = [] if sub.ts is None else [sub.ts.astype(t0.dtype)]
    every = [*([t0[None]] if sub.t0 else []), *ts, *([t1[None]] if sub.t1 else [])]
    return every[0] if len(every) == 1 else sys.modules["jax"].numpy.concatenate(every)


def jumps_of(controller: Any, dtype: Any) -> Any:
    """The times at which the library's steps end, ``(times,)``."""
    numpy = sys.modules["jax"].numpy
    given = [getattr(controller, name, None) for name in ("step_ts", "jump_ts")]
    found = [x.astype(dtype) for x in given if x is not None]
    return numpy.concatenate(found) if found else np.zeros(0, dtype)
