"""Whole solves of fields of layers by the compiled kernel, and their gradients.

The gradient is the discrete one, that of the steps taken (Sandu, 2006, eq. 8).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from ctypes import addressof
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from trueode.errors import SolveError
from trueode.solvers.adaptive import Trace, give_up
from trueode.solvers.backends import generic
from trueode.solvers.backends.native import library, runtime
from trueode.solvers.backends.native.library import EXHAUSTED, FAILED, AdaptiveSolve, Solve
from trueode.solvers.backends.native.runtime import RUNTIME
from trueode.solvers.backends.native.task import (
    NOTHING,
    NUMBERS,
    STAGES,
    STATES,
    Steps,
    Task,
    address,
    method_of,
)
from trueode.solvers.failure import Stop
from trueode.solvers.gradients import Checkpoint
from trueode.solvers.gradients.replay import Given, must_be_recorded, replay_gradients
from trueode.solvers.integrate import Outcome
from trueode.solvers.problem import Problem
from trueode.solvers.saving import SavePoints, gather, grid_positions, union
from trueode.solvers.solver import Adaptive, FixedStep, OnGrid
from trueode.solvers.states import pack_stack
from trueode.solvers.step import Stepper

# in a stage of one sample; larger stages leave the cache, and PyTorch's convolutions are faster
MOST_NUMBERS = 2**15

NAME = "the compiled kernel computes it"


def accepts(problem: Problem) -> bool:
    """Whether the kernel gives the same result as calling the field."""
    if library.kernel() is None or problem.control is not None or problem.layers is None:
        return False
    z, stack, clock, solver = problem.first, problem.layers, problem.clock, problem.solver
    if (
        not (_is_plain(z, z.dtype) and z.dtype in (torch.float32, torch.float64))
        or clock.length == 0
        or clock.differentiable
    ):
        return False
    if not all(
        _is_plain(x, z.dtype)
        for layer in stack.layers
        for x in (layer.weight, layer.bias, layer.time_weight)
        if x is not None
    ):
        return False
    known = (
        all(layer.activation in NUMBERS for layer in stack.layers)
        and stack.layers[-1].activation == "identity"
    )
    if not known or sum(stack.widths(z.shape)) > MOST_NUMBERS:
        return False
    if isinstance(solver, Adaptive):
        return problem.reduce is None and (problem.points is None or problem.points.at_ends)
    if isinstance(solver, OnGrid) and solver.per_sample:
        return problem.points is None and len(solver.grid[0]) == z.shape[0]  # type: ignore[arg-type]
    if problem.points is None:
        return True
    try:
        return _saved(problem.points, _grid_of(solver, clock.length))[0] is not None
    except SolveError:  # the generic backend reports the reason
        return False


def solve(problem: Problem) -> Outcome:
    """Solve a problem; see `trueode.solvers.backends`. Most solves that fail are repeated by
    calling the field, which reports the reason.
    """
    assert problem.layers is not None
    z, unpack = pack_stack(problem.layers, problem.z0)
    tensors = [
        x for layer in problem.layers.layers for x in (layer.weight, layer.bias, layer.time_weight)
    ]
    keep = NOTHING
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (z, *tensors)):
        keep = STATES if isinstance(problem.gradient, Checkpoint) else STAGES
    task, inputs = Task.of(problem, z, tensors), (z, *tensors)
    carry_out = _adaptive if isinstance(problem.solver, Adaptive) else _fixed
    outcome = carry_out(task, problem, keep, inputs)
    if outcome is None:
        return generic.solve(problem)
    return outcome._replace(
        z=unpack(outcome.z), zs=None if outcome.zs is None else unpack(outcome.zs)
    )


def _fixed(task: Task, problem: Problem, keep: int, inputs: Sequence[Any]) -> Outcome | None:
    """Solve with fixed steps; None if they are too many. Stages are kept only if they fit into
    reusable memory.
    """
    z, *tensors = inputs
    try:
        grid = _grid_of(problem.solver, problem.clock.length)  # type: ignore[arg-type]
    except SolveError:
        return None
    positions, place = ([], None) if problem.points is None else _saved(problem.points, grid)
    assert positions is not None
    n_steps = grid.shape[0] - 1
    steps = Steps(grid, tuple(sorted(positions)), keep, n_steps)
    solve = task.solve(steps, task.layers(tensors))
    if keep:
        size = task.kernel.tape_size(task.double, solve)
        if keep == STAGES and size > runtime.LARGEST_TAPE:
            solve.keep = STATES
            size = task.kernel.tape_size(task.double, solve)
        tape = RUNTIME.take(size)
        steps, solve.tape = steps._replace(keep=solve.keep, tape=tape), tape.address
    final = torch.empty_like(z, memory_format=torch.contiguous_format)
    zs = z.new_empty(len(positions), *z.shape) if positions else None
    solve.z0, solve.z1, solve.zs = z.data_ptr(), final.data_ptr(), address(zs)
    is_finite = task.kernel.forward(task.double, solve)
    task.counter.add(n_steps * solve.n_stages)
    if keep:
        states = (final,) if zs is None else (final, zs)
        final, *more = _NativeSolve.apply(_Kept(task, steps, solve), states, z, *tensors)
        zs = more[0] if more else None
    if zs is not None and list(steps.saved) != positions:
        order = sorted(range(len(positions)), key=positions.__getitem__)
        zs = zs[torch.tensor(order, device="cpu").argsort()]
    if problem.points is not None and zs is None:
        zs = z.new_empty(0, *z.shape)
    if zs is not None and place is not None:
        zs = gather(zs, place)
    return Outcome(final, zs, grid, n_steps, 0, is_finite=is_finite)


def _saved(points: SavePoints, grid: Tensor) -> tuple[list[int] | None, Tensor | None]:
    """The indices of the grid points at which states are saved, None if some points lie elsewhere;
    and for times of each sample, the position of each time among all times (``saving.union``).
    """
    place = None
    if points.per_sample and points.moving is None:
        points, place = union(points)
    return grid_positions(points, grid.tolist()), place


def _adaptive(task: Task, problem: Problem, keep: int, inputs: Sequence[Any]) -> Outcome | None:
    """Solve with adaptive steps; None if that fails.

    Stages are kept if there is room for those of all steps. Their number is not known beforehand: a
    solve that takes more steps than expected is repeated, so that what is kept does not depend on
    earlier solves.
    """
    z, *tensors = inputs
    solver, layers, most = problem.solver, task.layers(tensors), 0
    assert isinstance(solver, Adaptive)
    if keep == STAGES and not task.per_sample:
        one = task.solve(Steps(_NO_GRID, keep=STAGES, capacity=1), layers)
        most = runtime.LARGEST_TAPE // task.kernel.tape_size(task.double, one)
    expected = RUNTIME.expected.get(solver, 8)
    wanted = Steps(_NO_GRID, keep=keep, capacity=min(expected + expected // 4 + 2, most))
    found = _chosen(task, solver, wanted, z.detach(), layers)
    if found is not None:
        n_steps = len(found.steps.grid) - 1
        RUNTIME.expect(solver, n_steps)
        if found.steps.keep == STATES and n_steps < most:
            found = _chosen(task, solver, wanted._replace(capacity=n_steps + 1), z.detach(), layers)
    if found is None or (keep and found.next_step is not None):
        return None
    task.counter.add(found.calls)
    final = found.final
    if found.next_step is not None:
        return _exhausted(problem, found)
    if keep:
        (final,) = _NativeSolve.apply(_Kept(task, found.steps, found.solve), (final,), z, *tensors)
    zs = None
    if problem.points is not None:  # the ends alone
        states = [final if theta else z for theta in problem.points.fractions.tolist()]
        zs = torch.stack(states) if states else z.new_empty(0, *z.shape)
    accepted, rejected = found.counts if task.per_sample else (int(x) for x in found.counts)
    statuses = ("success",) * len(z) if task.per_sample else None
    return Outcome(final, zs, found.steps.grid, accepted, rejected, found.errors, statuses=statuses)


def _exhausted(problem: Problem, found: _Found) -> Outcome:
    """The outcome of a solve that took ``max_steps``; its states are still packed."""
    assert problem.layers is not None
    assert isinstance(problem.solver, Adaptive)
    assert found.next_step is not None
    stepper = Stepper(problem.form.field, problem.solver.tableau, problem.clock)
    _, unpack = pack_stack(problem.layers, problem.z0)
    grid, errors, (accepted, rejected) = found.steps.grid, found.errors, found.counts
    trace = Trace(grid.tolist(), errors.tolist(), int(rejected))
    h = found.next_step * problem.clock.length
    give_up(trace, stepper, problem.solver, Stop(unpack(found.final), h, tired=True, finite=True))
    zs = None
    if problem.points is not None:
        z, lost = pack_stack(problem.layers, problem.z0)[0], torch.full_like(found.final, torch.nan)
        states = [lost if theta else z for theta in problem.points.fractions.tolist()]
        zs = torch.stack(states) if states else z.new_empty(0, *z.shape)
    known = found.final, zs, grid, int(accepted), int(rejected), errors
    return Outcome(*known, trace.status, trace.message)


class _Found(NamedTuple):
    """The result of an adaptive solve: its steps, final states, accepted and rejected steps of each
    column, and calls of the field.

    ``solve`` is the solve with these steps as fixed steps. ``next_step`` is the fraction of the
    interval that the next step would have had, if ``max_steps`` were taken before the end.
    """

    steps: Steps
    solve: Solve
    final: Tensor
    counts: Tensor
    errors: Tensor
    calls: int
    next_step: float | None


def _chosen(
    task: Task, solver: Adaptive, wanted: Steps, z: Tensor, layers: array[int]
) -> _Found | None:
    columns = len(z) if task.per_sample else 1
    final, counts = torch.empty_like(z), torch.zeros(2, columns, dtype=torch.long, device="cpu")
    if wanted.keep and not wanted.capacity:
        wanted = wanted._replace(keep=STATES)
    method, solve = method_of(task.tableau), task.solve(wanted, layers)
    solve.z0, solve.z1 = z.data_ptr(), final.data_ptr()
    tape = None
    if wanted.keep == STAGES:
        tape = RUNTIME.take(task.kernel.tape_size(task.double, solve))
        solve.tape = tape.address
    adaptive = AdaptiveSolve(
        solve,
        task.tableau.stages,
        task.tableau.fsal,
        task.tableau.embedded_order + 1,
        solver.max_steps,
        *(addressof(x) for x in (method.all_a, method.all_b, method.all_c, method.error)),
        solver.rtol,
        solver.atol,
        solver.first_step or 0.0,
        solver.max_step or 0.0,
        accepted=counts[0].data_ptr(),
        rejected=counts[1].data_ptr(),
    )
    code = task.kernel.solve_adaptive(task.double, adaptive)
    if code == FAILED:
        return None
    shape = (columns,) if task.per_sample else ()
    grid = torch.empty(adaptive.n_rows + 1, *shape, dtype=torch.float64, device="cpu")
    errors = torch.empty(adaptive.n_rows, *shape, dtype=torch.float64, device="cpu")
    kept, address = adaptive.solve.keep, None
    solve.n_steps, solve.keep, solve.grid = adaptive.n_rows, kept, grid.data_ptr()
    if kept == STATES:
        tape = RUNTIME.take(task.kernel.tape_size(task.double, solve))
        address = tape.address
    task.kernel.take(task.double, adaptive, grid.data_ptr(), errors.data_ptr(), address)
    steps = Steps(grid, keep=kept, capacity=wanted.capacity, tape=tape)
    if tape is not None:
        solve.tape = tape.address
    next_step = adaptive.next_step if code == EXHAUSTED else None
    return _Found(steps, solve, final, counts, errors, adaptive.calls, next_step)


class _Kept(NamedTuple):
    """What the backward pass needs of the forward pass, and does not change."""

    task: Task
    steps: Steps
    solve: Solve


class _NativeSolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kept: _Kept, states: tuple[Tensor, ...], z: Tensor, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Return ``states``, which are known already: the final states and, if any, the saved
        states.
        """
        ctx.kept = kept
        ctx.save_for_backward(z, *tensors)
        return states

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        # this raises an error if a weight was changed in place since the forward solve
        z, *tensors = ctx.saved_tensors
        task, steps, _ = ctx.kept
        if must_be_recorded(gradients):
            given = Given(
                task.stack, task.tableau, task.clock, task.counter, steps.grid, steps.saved
            )
            return None, None, *replay_gradients(given, z, tensors, gradients)
        return None, None, *_backward(ctx.kept, tensors, gradients)


def _backward(
    kept: _Kept, tensors: Sequence[Tensor | None], gradients: Sequence[Tensor]
) -> list[Tensor | None]:
    """Gradients of the initial state and the layers, from those of the final and saved states."""
    (task, steps, done), (gradient, *entering) = kept, [g.contiguous() for g in gradients]
    start = torch.empty_like(gradient)
    found = [None if x is None else x.new_empty(x.shape) for x in tensors]
    solve, layers = Solve.from_buffer_copy(done), task.layers(tensors, found)
    solve.layers, solve.g1, solve.g0 = (
        layers.buffer_info()[0],
        gradient.data_ptr(),
        start.data_ptr(),
    )
    if steps.saved:
        solve.gs = entering[0].data_ptr()
    if steps.keep == STATES:
        task.counter.add((len(steps.grid) - 1) * solve.n_stages)
    task.kernel.backward(task.double, solve)
    return [start, *found]


def _is_plain(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether a tensor, not of a subclass, holds exactly the numbers at its address on the CPU."""
    known = type(x) is Parameter or type(x) is Tensor
    return (
        known
        and x.dtype is dtype
        and x.is_cpu
        and x.layout is torch.strided
        and not x.is_neg()
        and x.numel() > 0
    )


_NO_GRID = torch.empty(0, dtype=torch.float64, device="cpu")


@lru_cache(maxsize=64)
def _equal_steps(solver: FixedStep, length: float) -> Tensor:
    return torch.tensor(solver.fractions(length), dtype=torch.float64, device="cpu")


def _grid_of(solver: FixedStep | OnGrid, length: float) -> Tensor:
    """The grid of fixed steps; cached for solvers that are fast to compare."""
    if isinstance(solver, FixedStep):
        return _equal_steps(solver, length)
    return torch.tensor(solver.grid, dtype=torch.float64, device="cpu")
