"""The one door: solve an initial value problem."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from trueode.errors import SolveError, UsageError
from trueode.layers import LayerStack
from trueode.solvers.backends.native import images
from trueode.solvers.backends.native import layers as native
from trueode.solvers.clock import Clock, seconds
from trueode.solvers.control import Reduce
from trueode.solvers.gradients import Adjoint, Backprop, Checkpoint, Gradient, tape
from trueode.solvers.gradients.adjoint import integrate_adjoint
from trueode.solvers.integrate import Outcome, check_finite, integrate, is_per_sample
from trueode.solvers.problem import Unpack, matrix_form, pack_stack, pack_tuple
from trueode.solvers.saving import SavePoints, Times, grid_positions, save_points
from trueode.solvers.solution import Counter, Solution
from trueode.solvers.solver import Adaptive, FixedStep, OnGrid, Solver
from trueode.solvers.stack import dense, stack_field
from trueode.solvers.step import Field, Stepper

_BACKPROP = Backprop()

override: Callable[..., Solution[Any]] | None = None
"""Called in the place of `direct_solve` while an audit tries other solvers; see ``auditing/libraries/trueode.py``."""


def solve(
    field: Callable[..., Any],
    z0: Any,
    t: tuple[float | Tensor, float | Tensor] = (0.0, 1.0),
    *,
    solver: Solver,
    gradient: Gradient = _BACKPROP,
    save_at: Times | None = None,
    on_failure: str = "raise",
    reduce: Reduce | None = None,
) -> Solution[Any]:
    """Solve ``dz/dt = field(t, z)``, ``z(t[0]) = z0`` up to ``t[1]``.

    Gradients flow to ``z0``, to the parameters of the field and to the ends of ``t`` when they are tensors that require
    them; the steps that an adaptive solver chose are constants, as fractions of the interval.

    Args:
        field: the vector field, called with a time (a tensor without dimension; ``(batch, 1, …)`` under per-sample
            control) and a state, returning the derivative in the state's shape.
        z0: the initial state, a floating point tensor of any shape, or a tuple of them.
        t: start and end; the end may lie before the start.
        solver: a `FixedStep`, `Adaptive` or `OnGrid`.
        gradient: how gradients are computed: `Backprop`, `Checkpoint` (less memory) or `Adjoint` (continuous).
        save_at: times ``(times,)`` inside of the interval at which the state is wanted too, by dense output; asking
            never changes the steps.
        on_failure: ``"raise"``, or ``"return"`` a Solution whose status tells what happened.
        reduce: sums a tensor over the ranks that share one batch, so that they take the same adaptive steps.

    Returns:
        The solution with its statistics.

    Raises:
        UsageError: an argument is not what is described here.
        SolveError: the solve failed and ``on_failure`` is ``"raise"``.
    """
    call = override or direct_solve
    return call(field, z0, t, solver=solver, gradient=gradient, save_at=save_at, on_failure=on_failure, reduce=reduce)


def direct_solve(
    field: Callable[..., Any],
    z0: Any,
    t: tuple[float | Tensor, float | Tensor] = (0.0, 1.0),
    *,
    solver: Solver,
    gradient: Gradient = _BACKPROP,
    save_at: Times | None = None,
    on_failure: str = "raise",
    reduce: Reduce | None = None,
) -> Solution[Any]:
    """What `solve` does, whether an audit is under way or not."""
    parts = z0 if isinstance(z0, tuple) else (z0,)
    if not all(isinstance(part, Tensor) and part.is_floating_point() for part in parts):
        raise UsageError("z0 must be a floating point tensor or a tuple of them.")
    if on_failure not in ("raise", "return"):
        raise UsageError(f"on_failure must be 'raise' or 'return', got {on_failure!r}.")
    if not isinstance(solver, (FixedStep, Adaptive, OnGrid)):
        raise UsageError(f"solver must be a FixedStep, Adaptive or OnGrid value, got {solver!r}.")
    clock = Clock(*_ends(t), parts[0])
    points = None if save_at is None else save_points(save_at, clock)
    params = gradient.parameters_of(field) if isinstance(gradient, Adjoint) else ()
    counter = Counter()

    unpack: Unpack | None = None
    recompute = isinstance(gradient, Checkpoint)
    stack = None if isinstance(z0, tuple) or isinstance(gradient, Adjoint) else matrix_form(field, z0)
    found = None if stack is None else _integrate_layers(stack, clock, z0, solver, counter, points, recompute, reduce)
    if found is not None:
        outcome, unpack = found
    else:
        if isinstance(z0, tuple):
            inner, z, unpack = pack_tuple(field, z0, per_sample=is_per_sample(solver))
            call = _checked(_counted(inner, counter))
        else:
            z, call = z0, _checked(_counted(images.faster(field), counter))
        if isinstance(gradient, Adjoint):
            outcome = integrate_adjoint(gradient, call, params, solver, clock, z, t, points, reduce)
        else:
            outcome = integrate(Stepper(call, solver.tableau, clock, recompute=recompute), solver, z, points, reduce)
    counter.solving = False
    if reduce is not None:
        _share_failure(outcome, reduce)

    if outcome.status != "success" and on_failure == "raise":
        raise SolveError(outcome.message, outcome.status)
    final, zs = outcome.z, outcome.zs
    if unpack is not None:
        final, zs = unpack(final), None if zs is None else unpack(zs)
    return Solution(
        z=final,
        zs=zs,
        t=t[1],
        nfe=counter.forward,
        n_steps=outcome.n_steps,
        n_rejected=outcome.n_rejected,
        errors=outcome.errors,
        status=outcome.status,
        message=outcome.message,
        _tableau=solver.tableau,
        _fractions=outcome.fractions,
        _clock=clock,
        _counter=counter,
    )


def _share_failure(outcome: Outcome, reduce: Reduce) -> None:
    """Let a solve that failed on one of the ranks fail on all: none waits for one that has gone."""
    failed = torch.tensor(float(outcome.status != "success"))
    if float(reduce(failed)) and not float(failed):
        outcome.status, outcome.message = (
            "non_finite",
            "The solve failed on another rank, whose part of the batch it could not solve.",
        )


def _ends(t: Any) -> tuple[float | Tensor, float | Tensor]:
    if len(t) != 2 or any(isinstance(end, Tensor) and end.dim() for end in t):
        raise UsageError("t must be two times, (start, end); for states in between use save_at.")
    if not all(isfinite(seconds(end)) for end in t):
        raise UsageError(f"The ends of t must be finite, got {seconds(t[0])} and {seconds(t[1])}.")
    return t[0], t[1]


def _counted(field: Callable[..., Any], counter: Counter) -> Callable[..., Any]:
    def counted(t: Tensor, z: Any) -> Any:
        counter.add()
        return field(t, z)

    return counted


def _checked(field: Field) -> Field:
    def checked(t: Tensor, z: Tensor) -> Tensor:
        value = field(t, z)
        if value.dtype != z.dtype:  # under autocast, for instance: the state keeps its own
            value = value.to(z.dtype)
        if value.shape != z.shape:
            raise UsageError(
                f"The field returned shape {tuple(value.shape)} for a state of shape {tuple(z.shape)}: "
                "the derivative must have the shape of the state."
            )
        return value

    return checked


def _tapes(layers: Any, z: Tensor, clock: Clock, solver: Solver) -> bool:
    """Whether the gradient written by hand serves this solve."""
    wanted = z.requires_grad or any(x is not None and x.requires_grad for layer in layers for x in layer[:2])
    return torch.is_grad_enabled() and wanted and not clock.differentiable and not is_per_sample(solver)


def _saved_on_grid(points: SavePoints | None, solver: Solver, clock: Clock) -> tuple[int, ...] | None:
    """The numbers of the grid points at which states are saved; None if some lie elsewhere, or may do so."""
    if points is None:
        return ()
    if isinstance(solver, Adaptive) or is_per_sample(solver):
        return None
    try:
        grid = solver.fractions(clock.length)
    except SolveError:  # the solve itself will tell
        return None
    positions = grid_positions(points, grid)  # type: ignore[arg-type]
    return None if positions is None else tuple(positions)


def _integrate_layers(
    stack: LayerStack,
    clock: Clock,
    z0: Tensor,
    solver: Solver,
    counter: Counter,
    points: SavePoints | None,
    recompute: bool,
    reduce: Reduce | None,
) -> tuple[Outcome, Unpack] | None:
    """A field made of layers: by the compiled kernel, else with a gradient written by hand, else as any other field.

    Returns:
        The outcome, and how to read its states; None where calling the field takes less time.
    """
    z, unpack = pack_stack(stack, z0)
    saved = _saved_on_grid(points, solver, clock)
    outcome = native.integrate(stack, clock, z, solver, points, saved, counter, recompute=recompute, reduce=reduce)
    if outcome is not None:
        if not isinstance(solver, Adaptive):
            outcome = check_finite(outcome, clock, solver)
        return outcome, unpack
    plain = dense(stack, z.shape[1])
    if plain is None:
        return None
    if saved is not None and _tapes(plain.layers, z, clock, solver):
        return _integrate_taped(plain, clock, z, solver, counter, points, saved, recompute, reduce), unpack
    stepper = Stepper(_counted(stack_field(plain), counter), solver.tableau, clock, recompute=recompute)
    return integrate(stepper, solver, z, points, reduce), unpack


def _integrate_taped(
    stack: LayerStack,
    clock: Clock,
    z: Tensor,
    solver: Solver,
    counter: Counter,
    points: SavePoints | None,
    saved: tuple[int, ...],
    recompute: bool,
    reduce: Reduce | None,
) -> Outcome:
    box: list[Outcome] = []
    grid: list[float] = []

    def loop(stepper: Stepper) -> tuple[Tensor, Tensor | None]:
        outcome = integrate(stepper, solver, z, points, reduce)
        box.append(outcome)
        grid.extend(outcome.fractions.tolist())
        return outcome.z, outcome.zs

    tableau = solver.tableau
    known = {"n_stages": solver.count(clock.length) * tableau.advancing_stages} if isinstance(solver, FixedStep) else {}
    states = tape.integrate(stack, tableau, clock, z, loop, grid, saved, counter, recompute=recompute, **known)
    outcome = box[0]
    outcome.z, outcome.zs = states
    return outcome
