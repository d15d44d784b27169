"""diffrax: a hook replaces the call of ``diffeqsolve``, an object that all modules share.

Audits run JAX without ``jax.jit``, so that a solve is seen each time, also in functions that were
compiled before. The library's own solves stay compiled.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trueode.auditing.arrays import shared_array, shared_tensor
from trueode.auditing.libraries.common_time import CommonTime
from trueode.auditing.libraries.traced import BatchField, TracedField, on_host, trace_field
from trueode.auditing.problem import ForeignProblem, FoundSolver, Solved, has_samples, status_of
from trueode.auditing.session import Library, Session
from trueode.errors import UsageError

METHODS = {
    "Euler": "euler",
    "Midpoint": "midpoint",
    "Heun": "heun2",
    "Bosh3": "bosh3",
    "Dopri5": "dopri5",
    "Tsit5": "tsit5",
    "Dopri8": "dopri8",
}
"""The library's names of methods, and those in ``catalog.METHODS``, which has no Ralston."""
ADAPTIVE = {"Heun": "adaptive_heun", "Midpoint": None}
"""The names with control of the error, where they are others."""
STATUSES = {"max_steps_reached": "max_steps", "dt_min_reached": "step_underflow"}


@contextmanager
def patched(session: Session) -> Iterator[None]:
    """Route all solves through a session."""
    jax, solve = sys.modules["jax"], sys.modules["diffrax"].diffeqsolve
    kind = type(solve)
    held = vars(kind)["__call__"]
    original = partial(kind.__call__, solve)
    signature = inspect.signature(solve.__wrapped__)

    def called(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        if self is not solve or not session.is_mine():
            return held.__get__(self, kind)(*args, **kwargs)
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        return _entered(session, original, SimpleNamespace(**given.arguments))

    kind.__call__ = called
    try:
        with jax.disable_jit():
            yield
    finally:
        if vars(kind)["__call__"] is called:
            kind.__call__ = held


def probe() -> Tensor:
    """See `Library`."""
    diffrax: Any = sys.modules["diffrax"]
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: -y), diffrax.Euler(), 0.0, 1.0, 1.0, np.ones(1, "f4")
    )
    return shared_tensor(solution.ys)[-1]


LIBRARY = Library("diffrax", "diffrax", patched, probe)


def _entered(session: Session, original: Callable[..., Any], given: SimpleNamespace) -> Any:
    """Runs instead of ``diffeqsolve``."""
    found = _found(given)
    posed = _posed(given)
    if session.replaces:
        return _replace(session, given, posed, found)
    return _record(session, original, given, posed, found)


@dataclass(frozen=True)
class _Form:
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
        return (
            leaves[0] if len(leaves) == 1 else numpy.concatenate([x.reshape(-1) for x in leaves])
        )

    def unpacked(self, z: Any) -> Any:
        """A state from one array."""
        jax, parts = sys.modules["jax"], [z]
        if len(self.shapes) != 1:
            parts = jax.numpy.split(z, np.cumsum([prod(shape) for shape in self.shapes])[:-1])
        leaves = zip(parts, self.shapes, self.dtypes, strict=True)
        return jax.tree.unflatten(
            self.tree, [part.reshape(shape).astype(dtype) for part, shape, dtype in leaves]
        )


@dataclass(frozen=True)
class _VectorField:
    """A traced field on states of the library; equal ones are compiled once.

    Attributes:
        form: the structure of the states.
        traced: the field.
        counted: whether its calls are counted while solvers run.
    """

    form: _Form
    traced: TracedField
    counted: bool

    def __call__(self, constants: Sequence[Any], t: Any, y: Any, args: Any) -> Any:
        """The derivative; the arguments of the solve are among the constants."""
        if self.counted:
            sys.modules["jax"].debug.callback(_calls.append, True)
        return self.form.unpacked(self.traced.call(constants, t, self.form.packed(y)))


_calls: list[bool] = []  # of the field whose calls are counted


@dataclass
class _Posed:
    """The problem of a solve.

    Attributes:
        form: the structure of the state.
        z0: the initial state, as one array.
        samples: whether the first dimension of z0 counts samples, if ``jax.vmap`` has no batch.
        times: the dtype of times.
        field: the vector field; None if the terms are no ODE.
        constants: its constants.
        refusal: why there is no field.
    """

    form: _Form
    z0: Any
    samples: bool
    times: Any
    field: TracedField | None = None
    constants: Sequence[Any] = ()
    refusal: str = ""


def _posed(given: SimpleNamespace) -> _Posed:
    jax = sys.modules["jax"]
    numpy = jax.numpy
    times = [given.t0, given.t1, given.dt0, *(sub.ts for sub in _subs(given.saveat))]
    dtype = numpy.result_type(*(x for x in times if x is not None))
    if not numpy.issubdtype(dtype, numpy.floating):
        dtype = numpy.result_type(float)
    leaves, tree = jax.tree.flatten(given.y0)
    # the library promotes states to the precision of times
    leaves = [numpy.asarray(y, numpy.result_type(y, dtype)) for y in leaves]
    form = _Form(tree, tuple(y.shape for y in leaves), tuple(y.dtype for y in leaves))
    z0 = form.packed(leaves)
    posed = _Posed(form, z0, len(leaves) == 1 and z0.ndim > 1, dtype)
    term, posed.refusal = _ode(given.terms)
    if term is not None:

        def field(t: Any, z: Any) -> Any:
            return form.packed(term.vf(t, form.unpacked(z), given.args)).astype(z0.dtype)

        time, state = (jax.ShapeDtypeStruct(*x) for x in (((), dtype), (z0.shape, z0.dtype)))
        posed.field, posed.constants = trace_field(field, time, state)
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


def _subs(saveat: Any) -> list[Any]:
    diffrax: Any = sys.modules["diffrax"]
    found: list[Any] = sys.modules["jax"].tree.leaves(
        saveat.subs, is_leaf=lambda x: isinstance(x, diffrax.SubSaveAt)
    )
    return found


def _found(given: SimpleNamespace) -> FoundSolver:
    diffrax: Any = sys.modules["diffrax"]
    controller, solver = given.stepsize_controller, given.solver
    kind, adaptive = type(solver).__name__, _adaptive(controller)
    settings: dict[str, Any] = {}
    if adaptive:
        settings = {name: _number(getattr(controller, name)) for name in ("rtol", "atol")}
    if (dt0 := _number(given.dt0)) is not None:
        settings["dt0" if adaptive else "step_size"] = abs(dt0)
    elif isinstance(controller, diffrax.StepTo):
        length, n = abs((_number(given.t1) or 0) - (_number(given.t0) or 0)), len(controller.ts) - 1
        settings["step_size"] = length / n or None
    settings["n_times"] = sum(_saved(sub) for sub in _subs(given.saveat))
    settings["max_steps"] = given.max_steps
    settings = {name: value for name, value in settings.items() if value is not None}
    own = type(solver).__module__.startswith("diffrax.")
    name = METHODS.get(kind) if own else None
    if adaptive:
        name = ADAPTIVE.get(kind, name)
    order = solver.order(given.terms)
    return FoundSolver("diffrax", kind, settings, adaptive, int(order or 0), name)


def _adaptive(controller: Any) -> bool:
    kind = sys.modules["diffrax"].AbstractAdaptiveStepSizeController
    return isinstance(controller, kind)


def _number(x: Any) -> float | None:
    """A setting as a number; None if it has none, or depends on the row of a batch."""
    jax = sys.modules["jax"]
    if x is None or isinstance(x, jax.core.Tracer):
        return None
    return float(np.min(x))


def _saved(sub: Any) -> int:
    return int(sub.t0) + (0 if sub.ts is None else len(sub.ts)) + int(sub.t1)


def _record(
    session: Session,
    original: Callable[..., Any],
    given: SimpleNamespace,
    posed: _Posed,
    found: FoundSolver,
) -> Any:
    """Solve by the library, and record the solve."""
    diffrax, jax = sys.modules["diffrax"], sys.modules["jax"]
    cost, arguments, saveat = _Cost(given), dict(vars(given)), given.saveat
    if posed.field is not None:  # the same function at each call, which is compiled once
        same = _VectorField(posed.form, posed.field, not cost.known)
        arguments["terms"] = diffrax.ODETerm(
            jax.tree_util.Partial(same, list(posed.constants))
        )
        _calls.clear()
    # the final state, whatever the model saves; BacksolveAdjoint saves nothing else
    extended = not isinstance(given.adjoint, diffrax.BacksolveAdjoint)
    if extended:
        arguments["saveat"] = replace(saveat, subs=(saveat.subs, diffrax.SubSaveAt(t1=True)))
    try:
        with jax.disable_jit(False):
            solution = original(**arguments)
    except RuntimeError as failure:
        raise UsageError(_failed(found, failure)) from failure
    last = jax.tree.map(lambda y: y[-1], solution.ys[1] if extended else solution.ys)
    if extended:
        solution = replace(solution, ts=solution.ts[0], ys=solution.ys[0])
    codes = [solution.result == getattr(diffrax.RESULTS, name) for name in STATUSES]
    failed = ~(
        (solution.result == diffrax.RESULTS.successful)
        | (solution.result == diffrax.RESULTS.event_occurred)
    )
    names = ("num_accepted_steps", "num_rejected_steps")
    numbers = [solution.stats[name] for name in names]
    times = [jax.numpy.asarray(x, posed.times) for x in (given.t0, given.t1)]
    free = jax.lax.stop_gradient((*numbers, failed, *codes, *times, posed.form.packed(last)))

    def note(batch: tuple[int, ...], *values: Any) -> list[Any]:
        accepted, rejected, failed, *codes, t0, t1, z = map(np.asarray, values)
        final = torch.tensor(z, device="cpu")
        status, message = status_of(final, found)
        if failed.any():
            kinds = [STATUSES[name] for name, code in zip(STATUSES, codes, strict=True) if code.any()]
            status = kinds[0] if kinds else "failed"
            message = (
                f"The solve with {found} ended with {status} for {failed.sum()} of {failed.size} "
                "samples. Set max_steps=… or dtmin=… of diffrax to continue."
            )
        n, no = float(accepted.mean()), float(rejected.mean())
        length = float(np.abs(t1.astype(float) - t0.astype(float)).mean())
        solved = Solved(found, cost.of(n + no), n, no, length, status, message)
        session.note(solved, final if batch or posed.samples else None)
        return []

    on_host(note, [], *free)
    return solution


def _failed(found: FoundSolver, failure: RuntimeError) -> str:
    lines = [line for line in str(failure).splitlines() if "EquinoxRuntimeError: " in line]
    reason = lines[-1].partition("EquinoxRuntimeError: ")[2] if lines else str(failure)
    return (
        f"The model's own solve with {found} failed: {reason.strip() or type(failure).__name__} "
        "Change the solve, or pass throw=False to diffeqsolve: samples whose solve fails are then "
        "unresolved."
    )


class _Cost:
    """Field evaluations of a solve by the library.

    Explicit Runge-Kutta methods evaluate all stages of a step, but the first of a step where the
    last one of the step before is the same. Evaluations of other methods are counted.

    Attributes:
        known: whether they follow from the number of steps.
    """

    def __init__(self, given: SimpleNamespace) -> None:
        tableau = getattr(given.solver, "tableau", None)
        explicit = getattr(tableau, "implicit", True) is False
        self._stages = tableau.num_stages if explicit else 1
        self._reused = bool(explicit and tableau.fsal)
        self.known = explicit or type(given.solver).__name__ == "Euler"
        # the library chooses the first step by two evaluations
        self._first = 2 if _adaptive(given.stepsize_controller) and given.dt0 is None else 0

    def of(self, n_steps: float) -> float:
        """The number of evaluations in all steps, accepted or not."""
        if self.known:
            reused = n_steps - 1 if self._reused and n_steps else 0
            return self._first + self._stages * n_steps - reused
        sys.modules["jax"].effects_barrier()
        return len(_calls)


def _replace(session: Session, given: SimpleNamespace, posed: _Posed, found: FoundSolver) -> Any:
    """Let the session solve, and return its states as the library would."""
    diffrax, jax = sys.modules["diffrax"], sys.modules["jax"]
    numpy = jax.numpy
    _refuse(given, posed, found)
    subs = _subs(given.saveat)
    t0, t1 = (numpy.asarray(t, posed.times) for t in (given.t0, given.t1))
    times = [_times(sub, t0, t1) for sub in subs]
    asked, jumps = numpy.concatenate(times), _jumps(given.stepsize_controller, posed.times)

    def solve(batch: tuple[int, ...], *values: Any) -> list[Any]:
        return _solved(session, posed, found, batch, *values)

    like = jax.ShapeDtypeStruct
    shapes = [like((len(asked), *posed.z0.shape), posed.z0.dtype), like((2,), numpy.int32)]
    states, counts = on_host(solve, shapes, t0, t1, asked, jumps, posed.z0, *posed.constants)
    ends = np.cumsum([len(t) for t in times])[:-1]
    kept = [
        jax.vmap(lambda t, z, fn=sub.fn: fn(t, posed.form.unpacked(z), given.args))(*part)
        for sub, *part in zip(subs, times, numpy.split(states, ends), strict=True)
    ]
    tree = jax.tree.structure(
        given.saveat.subs, is_leaf=lambda x: isinstance(x, diffrax.SubSaveAt)
    )
    stats = {
        "num_steps": counts[0] + counts[1],
        "num_accepted_steps": counts[0],
        "num_rejected_steps": counts[1],
        "max_steps": given.max_steps,
    }
    return diffrax.Solution(
        t0=t0, t1=t1, ts=jax.tree.unflatten(tree, times), ys=jax.tree.unflatten(tree, kept),
        interpolation=None, stats=stats, result=diffrax.RESULTS.successful, solver_state=None,
        controller_state=None, made_jump=None, event_mask=None,
    )  # fmt: skip


def _refuse(given: SimpleNamespace, posed: _Posed, found: FoundSolver) -> None:
    """Refuse what another solver cannot do.

    Raises:
        UsageError: the solve is no initial value problem of an ODE, or returns more than states.
    """
    saveat, steps = given.saveat, any(sub.steps for sub in _subs(given.saveat))
    states = ("solver_state", "controller_state", "made_jump")
    other = next((name for name in states if getattr(saveat, name)), "")
    if given.event is not None or given.discrete_terminating_event is not None:
        why, remedy = "ends at an event", "Audit the model on a fixed interval, without events"
    elif posed.field is None:
        why, remedy = posed.refusal, "Only solves of an ODETerm can be replaced"
    elif saveat.dense or saveat.subs is None:
        why, remedy = "saves dense output (SaveAt(dense=True))", "Save at times: SaveAt(ts=…)"
    elif steps:
        why, remedy = "saves the states after steps (SaveAt(steps=…))", "Save at times: SaveAt(ts=…)"
    elif other:
        why, remedy = f"saves the state of its solver ({other})", "Solve in one call of diffeqsolve"
    else:
        return
    raise UsageError(
        f"The model's solve with {found} {why}, so no other solver can replace it. {remedy}."
    )


def _times(sub: Any, t0: Any, t1: Any) -> Any:
    """The times at which states are saved, ``(times,)``."""
    ts = [] if sub.ts is None else [sub.ts.astype(t0.dtype)]
    return sys.modules["jax"].numpy.concatenate(
        [*([t0[None]] if sub.t0 else []), *ts, *([t1[None]] if sub.t1 else [])]
    )


def _jumps(controller: Any, dtype: Any) -> Any:
    """The times at which the library's steps end, ``(times,)``."""
    numpy = sys.modules["jax"].numpy
    given = [getattr(controller, name, None) for name in ("step_ts", "jump_ts")]
    return numpy.concatenate(
        [numpy.zeros(0, dtype), *(x.astype(dtype) for x in given if x is not None)]
    )


def _solved(
    session: Session, posed: _Posed, found: FoundSolver, batch: tuple[int, ...], t0: Any, t1: Any,
    asked: Any, jumps: Any, z0: Any, *constants: Any,
) -> list[Any]:  # fmt: skip
    """Pose the problem of a batch to the session, and return the states that it asks for,
    ``(*batch, times, *shape)``, and the numbers of steps, ``(*batch, 2)``.
    """
    assert posed.field is not None
    shape = posed.z0.shape
    start = shared_tensor(z0).expand((*batch, *shape))

    def whole(t: Any) -> Tensor:
        own = torch.tensor(np.asarray(t), device="cpu")
        return own.expand((*batch, *own.shape[len(batch) :]))

    ends = whole(t0), whole(t1)
    common = CommonTime(*ends, whole(asked), ends[0].dtype, start.dtype)
    vector_field = BatchField(posed.field, constants, batch)

    def field(s: Tensor, z: Tensor) -> Tensor:
        t = common.times(s)
        return common.stretch(
            vector_field(t.flatten()[0] if common.shared and not s.dim() else t, z)
        )

    points, index = common.points()
    breaks = tuple(common.common(whole(jumps)))
    samples = bool(batch) or posed.samples
    problem = ForeignProblem(field, start, points, breaks, samples, found)
    states, solved = session.solve(problem)
    rows = states.reshape((len(points), prod(batch), *shape))
    kept = rows[index, torch.arange(prod(batch), device="cpu")[:, None]]
    counts = torch.tensor([solved.n_steps, solved.n_rejected], device="cpu").round().int()
    return [
        shared_array(kept.reshape((*batch, -1, *shape))),
        shared_array(counts.expand((*batch, 2))),
    ]
