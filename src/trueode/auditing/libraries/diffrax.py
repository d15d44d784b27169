"""diffrax: a hook replaces the call of ``diffeqsolve``, an object that all modules share.

Audits run JAX without ``jax.jit``, so that a solve is seen each time, also in functions that were
compiled before. The library's own solves stay compiled.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from math import prod
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trueode.auditing.arrays import shared_tensor, to_array, to_tensor
from trueode.auditing.libraries.common_field import CommonField
from trueode.auditing.libraries.common_time import CommonTime
from trueode.auditing.libraries.diffrax_problem import (
    Cost,
    Form,
    Posed,
    VectorField,
    calls,
    is_adaptive,
    jumps_of,
    pose,
    saved_parts,
    times_of,
)
from trueode.auditing.libraries.traced import BatchField, on_host, uncompiled
from trueode.auditing.problem import ForeignProblem, FoundSolver, Solved, status_of
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
    solve = sys.modules["diffrax"].diffeqsolve
    kind = type(solve)
    held = vars(kind)["__call__"]
    signature = inspect.signature(solve.__wrapped__)

    def called(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        if self is not solve or not session.is_mine():
            return held.__get__(self, kind)(*args, **kwargs)
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        return _entered(session, SimpleNamespace(**given.arguments))

    kind.__call__ = called
    try:
        with uncompiled():
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


def _entered(session: Session, given: SimpleNamespace) -> Any:
    """Runs instead of ``diffeqsolve``."""
    found = _found(given)
    posed = pose(given)
    if session.replaces:
        return _replace(session, given, posed, found)
    return _record(session, given, posed, found)


def _found(given: SimpleNamespace) -> FoundSolver:
    diffrax: Any = sys.modules["diffrax"]
    controller, solver = given.stepsize_controller, given.solver
    kind, adaptive = type(solver).__name__, is_adaptive(controller)
    settings: dict[str, Any] = {}
    if adaptive:
        settings = {name: _number(getattr(controller, name)) for name in ("rtol", "atol")}
    if (dt0 := _number(given.dt0)) is not None:
        settings["dt0" if adaptive else "step_size"] = abs(dt0)
    elif isinstance(controller, diffrax.StepTo):
        length, n = abs((_number(given.t1) or 0) - (_number(given.t0) or 0)), len(controller.ts) - 1
        settings["step_size"] = length / n or None
    settings["n_times"] = sum(_saved(sub) for sub in saved_parts(given.saveat))
    settings["max_steps"] = given.max_steps
    settings = {name: value for name, value in settings.items() if value is not None}
    own = type(solver).__module__.startswith("diffrax.")
    name = METHODS.get(kind) if own else None
    if adaptive:
        name = ADAPTIVE.get(kind, name)
    order = solver.order(given.terms)
    return FoundSolver("diffrax", kind, settings, adaptive, int(order or 0), name)


def _number(x: Any) -> float | None:
    """A setting as a number; None if it has none, or depends on the row of a batch."""
    jax = sys.modules["jax"]
    if x is None or isinstance(x, jax.core.Tracer):
        return None
    return float(np.min(x))


def _saved(sub: Any) -> int:
    return int(sub.t0) + (0 if sub.ts is None else len(sub.ts)) + int(sub.t1)


def _record(session: Session, given: SimpleNamespace, posed: Posed, found: FoundSolver) -> Any:
    """Solve by the library, and record the solve."""
    diffrax, jax = sys.modules["diffrax"], sys.modules["jax"]
    cost, arguments, saveat = Cost(given), dict(vars(given)), given.saveat
    if posed.field is not None:  # the same function at each call, which is compiled once
        same = VectorField(posed.form, posed.field, not cost.known)
        arguments["terms"] = diffrax.ODETerm(jax.tree_util.Partial(same, list(posed.constants)))
        calls.clear()
    # the final state, whatever the model saves; BacksolveAdjoint saves nothing else
    extended = not isinstance(given.adjoint, diffrax.BacksolveAdjoint)
    if extended:
        arguments["saveat"] = replace(saveat, subs=(saveat.subs, diffrax.SubSaveAt(t1=True)))
    try:
        with jax.disable_jit(False):
            solution, noted = _compiled()(arguments)
    except RuntimeError as failure:
        raise UsageError(_failed(found, failure)) from failure
    last = solution.ys
    if extended:
        last, solution = last[1], replace(solution, ts=solution.ts[0], ys=solution.ys[0])
    free = jax.lax.stop_gradient((*noted, *jax.tree.leaves(last)))

    def note(batch: tuple[int, ...], *values: Any) -> list[Any]:
        accepted, rejected, failed, *codes, t0, t1 = map(np.asarray, values[: len(noted)])
        leaves = [torch.tensor(np.asarray(x), device="cpu") for x in values[len(noted) :]]
        final = _joined(batch, leaves)
        status, message = status_of(final, found)
        if failed.any():
            kinds = [
                STATUSES[name] for name, code in zip(STATUSES, codes, strict=True) if code.any()
            ]
            status = kinds[0] if kinds else "failed"
            message = (
                f"The solve with {found} ended with {status} for {failed.sum()} of {failed.size} "
                "samples, whose states are those at which it stopped. Change max_steps=… or "
                "dtmin=… to go on."
            )
        n, no = float(accepted.mean()), float(rejected.mean())
        length = float(np.abs(t1.astype(float) - t0.astype(float)).mean())
        solved = Solved(found, cost.of(n + no), n, no, length, status, message)
        session.note(solved, final if batch or posed.samples else None)
        return []

    on_host(note, [], *free)
    return solution


@cache
def _compiled() -> Any:
    return sys.modules["equinox"].filter_jit(_noted)


def _noted(arguments: dict[str, Any]) -> tuple[Any, list[Any]]:
    """The library's solution, and what is recorded of it beside the states."""
    diffrax: Any = sys.modules["diffrax"]
    solution, results = diffrax.diffeqsolve.__wrapped__(**arguments), diffrax.RESULTS
    good = (solution.result == results.successful) | (solution.result == results.event_occurred)
    codes = [solution.result == getattr(results, name) for name in STATUSES]
    names = "num_accepted_steps", "num_rejected_steps"
    steps = [solution.stats[name] for name in names]
    return solution, [*steps, ~good, *codes, solution.t0, solution.t1]


def _joined(batch: tuple[int, ...], leaves: list[Tensor]) -> Tensor:
    """The last states of a solve, from all saved ones, ``(*batch, times, *shape)``."""
    depth = len(batch)
    last = [leaf.select(depth, -1) for leaf in leaves]
    last = [leaf.expand((*batch, *leaf.shape[depth:])) for leaf in last]
    if len(last) == 1:
        return last[0]
    return torch.cat([leaf.reshape((*batch, -1)) for leaf in last], depth)


def _failed(found: FoundSolver, failure: RuntimeError) -> str:
    lines = [line for line in str(failure).splitlines() if "EquinoxRuntimeError: " in line]
    reason = lines[-1].partition("EquinoxRuntimeError: ")[2] if lines else str(failure)
    return (
        f"The model's own solve with {found} failed: {reason.strip() or type(failure).__name__} "
        "Change the solve, or pass throw=False to diffeqsolve: samples whose solve fails are then "
        "unresolved."
    )


def _replace(session: Session, given: SimpleNamespace, posed: Posed, found: FoundSolver) -> Any:
    """Let the session solve, and return its states as the library would."""
    diffrax, jax = sys.modules["diffrax"], sys.modules["jax"]
    numpy = jax.numpy
    _refuse(given, posed, found)
    subs = saved_parts(given.saveat)
    t0, t1 = (numpy.asarray(t, posed.times) for t in (given.t0, given.t1))
    times = [times_of(sub, t0, t1) for sub in subs]
    jumps = jumps_of(given.stepsize_controller, posed.times)
    like, (shape, dtype) = jax.ShapeDtypeStruct, (posed.z0.shape, posed.z0.dtype)
    shapes = [like((len(t), *shape), dtype) for t in times] + [like((), numpy.int32)] * 3

    def solve(batch: tuple[int, ...], *values: Any) -> list[Any]:
        asked, rest = values[: len(times)], values[len(times) :]
        return _solved(session, posed, found, batch, asked, *rest)

    given_arrays = *times, t0, t1, jumps, posed.z0, *posed.constants
    *states, accepted, rejected, steps = on_host(solve, shapes, *given_arrays)
    kept = [
        _saved_by(sub.fn, t, z, posed.form, given.args)
        for sub, t, z in zip(subs, times, states, strict=True)
    ]
    tree = jax.tree.structure(given.saveat.subs, is_leaf=lambda x: isinstance(x, diffrax.SubSaveAt))
    stats = {
        "num_steps": steps,
        "num_accepted_steps": accepted,
        "num_rejected_steps": rejected,
        "max_steps": given.max_steps,
    }
    return diffrax.Solution(
        t0=t0, t1=t1, ts=jax.tree.unflatten(tree, times), ys=jax.tree.unflatten(tree, kept),
        interpolation=None, stats=stats, result=diffrax.RESULTS.successful, solver_state=None,
        controller_state=None, made_jump=None, event_mask=None,
    )  # fmt: skip


def _saved_by(fn: Any, times: Any, states: Any, form: Form, args: Any) -> Any:
    """What a function saves of states, which by default are saved themselves."""
    jax: Any = sys.modules["jax"]
    if fn is sys.modules["diffrax"].SubSaveAt(t1=True).fn:
        one = len(form.shapes) == 1
        return form.unpacked(states) if one else jax.vmap(form.unpacked)(states)
    return jax.vmap(lambda t, z: fn(t, form.unpacked(z), args))(times, states)


def _refuse(given: SimpleNamespace, posed: Posed, found: FoundSolver) -> None:
    """Refuse what another solver cannot do.

    Raises:
        UsageError: the solve is no initial value problem of an ODE, or returns more than states.
    """
    saveat, steps = given.saveat, any(sub.steps for sub in saved_parts(given.saveat))
    states = ("solver_state", "controller_state", "made_jump")
    other = next((name for name in states if getattr(saveat, name)), "")
    if given.event is not None or given.discrete_terminating_event is not None:
        why, remedy = "ends at an event", "Audit the model on a fixed interval, without events"
    elif posed.field is None:
        why, remedy = posed.refusal, "Only solves of an ODETerm can be replaced"
    elif saveat.dense or saveat.subs is None:
        why, remedy = "saves dense output (SaveAt(dense=True))", "Save at times: SaveAt(ts=…)"
    elif steps:
        why, remedy = (
            "saves the states after steps (SaveAt(steps=…))",
            "Save at times: SaveAt(ts=…)",
        )
    elif other:
        why, remedy = f"saves the state of its solver ({other})", "Solve in one call of diffeqsolve"
    else:
        return
    raise UsageError(
        f"The model's solve with {found} {why}, so no other solver can replace it. {remedy}."
    )


def _solved(
    session: Session, posed: Posed, found: FoundSolver, batch: tuple[int, ...],
    asked: Sequence[Any], t0: Any, t1: Any, jumps: Any, z0: Any, *constants: Any,
) -> list[Any]:  # fmt: skip
    """Pose the problem of a batch to the session.

    Returns:
        The states at each of the ``asked`` times, ``(*batch, times, *shape)``, and the numbers of
        accepted, rejected and all steps, ``(*batch,)``.
    """
    assert posed.field is not None
    shape = posed.z0.shape
    start = to_tensor(z0).expand((*batch, *shape))

    def whole(t: Any) -> Tensor:
        own = torch.tensor(np.asarray(t), device="cpu")
        return own.expand((*batch, *own.shape[len(batch) :]))

    ends = whole(t0), whole(t1)
    every = [whole(t) for t in asked]
    common = CommonTime(*ends, torch.cat(every, -1), ends[0].dtype, start.dtype)
    own = BatchField(posed.field, constants, batch)
    one = posed.one if posed.samples and not batch else None
    field = CommonField(own, common, one, start)
    points, index = common.points()
    breaks = tuple(common.common(whole(jumps)))
    samples = bool(batch) or posed.samples
    problem = ForeignProblem(field, start, points, breaks, samples, found)
    states, solved = session.solve(problem)
    rows = states.reshape((len(points), prod(batch), *shape))
    kept = rows[index, torch.arange(prod(batch), device="cpu")[:, None]]
    sizes = [t.shape[-1] for t in every]
    parts = torch.split(kept.reshape((*batch, -1, *shape)), sizes, len(batch))
    counts = solved.n_steps, solved.n_rejected, solved.n_steps + solved.n_rejected
    steps = (torch.full(batch, round(n), dtype=torch.int32, device="cpu") for n in counts)
    return [*map(to_array, parts), *map(to_array, steps)]
