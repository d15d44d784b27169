"""Whole solves of fields of layers by the compiled kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trueode.errors import SolveError
from trueode.layers import LayerStack
from trueode.solvers.backends import generic
from trueode.solvers.backends.native import adaptive, library
from trueode.solvers.backends.native.recorded import Kept
from trueode.solvers.backends.native.runtime import RUNTIME, largest_tape
from trueode.solvers.backends.native.task import (
    NOTHING,
    STAGES,
    STATES,
    Saved,
    Steps,
    Task,
    address,
)
from trueode.solvers.backends.served import grid_of, is_served
from trueode.solvers.gradients import Checkpoint
from trueode.solvers.gradients.recorded import recorded
from trueode.solvers.integrate import Outcome
from trueode.solvers.problem import Problem
from trueode.solvers.saving import ascending, located, union
from trueode.solvers.solver import Adaptive, OnGrid
from trueode.solvers.states import pack_stack

# in a stage of one sample; larger stages leave the cache, and PyTorch's convolutions are faster
MOST_NUMBERS = 2**15

# with vectors of four numbers, PyTorch's convolutions of images, made for the processor, are faster
NARROW = "baseline"

NAME = "the compiled kernel computes it"


def accepts(problem: Problem) -> bool:
    """Whether the kernel gives the same result as calling the field."""
    if library.kernel() is None or not problem.first.is_cpu or not is_served(problem):
        return False
    z, stack, solver = problem.first, problem.layers, problem.solver
    assert stack is not None
    if not (_serves_images(stack) if stack.image else _fits(stack, z)):
        return False
    if isinstance(solver, Adaptive):
        return problem.reduce is None and _can_save(problem)
    if isinstance(solver, OnGrid) and solver.per_sample:
        return problem.points is None and len(solver.grid[0]) == z.shape[0]  # type: ignore[arg-type]
    return _can_save(problem)


def _fits(stack: LayerStack, z: Tensor) -> bool:
    """Whether a stage of one sample stays in the cache."""
    return sum(stack.widths(z.shape)) <= MOST_NUMBERS


def _serves_images(stack: LayerStack) -> bool:
    """Whether the kernel has these layers on images, and is faster than PyTorch."""
    kernel = library.kernel()
    weights = [layer.weight for layer in stack.layers]
    even = all(w.stride(2) == 3 * w.stride(3) for w in weights if w.shape[2] == 3)
    return kernel is not None and kernel.name != NARROW and even


def _can_save(problem: Problem) -> bool:
    """Whether the kernel saves the states that a problem asks for."""
    points, tableau = problem.points, problem.solver.tableau
    if points is None or points.at_ends:
        return True
    if points.moving is not None or len(tableau.continuous) != tableau.advancing_stages + 1:
        return False
    if isinstance(problem.solver, Adaptive):
        return tableau.fsal and not problem.per_sample and not points.per_sample
    if not points.per_sample:
        return True
    # times of each sample are saved for all samples, which pays on the grid only
    try:
        grid = grid_of(problem.solver, problem.clock.length)
    except SolveError:  # the generic backend reports the reason
        return False
    return not any(inside for _, inside in located(union(points)[0], grid.tolist()))


def solve(problem: Problem) -> Outcome:
    """Solve a problem; see `trueode.solvers.backends`. Most solves that fail are repeated by
    calling the field, which reports the reason.
    """
    assert problem.layers is not None
    z, unpack = pack_stack(problem.layers, problem.z0)
    tensors = problem.layers.tensors
    keep = NOTHING
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (z, *tensors)):
        keep = STATES if isinstance(problem.gradient, Checkpoint) else STAGES
    task, inputs = Task.of(problem, z, tensors), (z, *tensors)
    carry_out = adaptive.solve if isinstance(problem.solver, Adaptive) else _fixed
    outcome = carry_out(task, problem, keep, inputs)
    if outcome is None:
        return generic.solve(problem)
    return outcome._replace(
        z=unpack(outcome.z), zs=None if outcome.zs is None else unpack(outcome.zs)
    )


def _fixed(task: Task, problem: Problem, keep: int, inputs: Sequence[Any]) -> Outcome | None:
    """Solve with fixed steps; None if they are too many. Stages are kept only if there are not too
    many either.
    """
    z, *tensors = inputs
    try:
        grid = grid_of(problem.solver, problem.clock.length)  # type: ignore[arg-type]
    except SolveError:
        return None
    n_steps, points = grid.shape[0] - 1, problem.points
    wanted = None if points is None else ascending(points)
    places = [] if wanted is None else located(wanted.points, grid.tolist())
    steps = Steps(grid, Saved.at(places), keep, n_steps)
    solve = task.solve(steps, task.layers(tensors))
    if keep:
        size = task.kernel.tape_size(task.double, solve)
        if keep == STAGES and size > largest_tape(task.stack):
            solve.keep = STATES
            size = task.kernel.tape_size(task.double, solve)
        tape = RUNTIME.take(size)
        steps, solve.tape = steps._replace(keep=solve.keep, tape=tape), tape.address
    final = torch.empty_like(z, memory_format=torch.contiguous_format)
    zs = None if wanted is None else z.new_empty(len(places), *z.shape)
    solve.z0, solve.z1, solve.zs = z.data_ptr(), final.data_ptr(), address(zs)
    is_finite = task.kernel.forward(task.double, solve)
    # a state inside a step needs the field at its end, which is the first stage of the next step
    beyond = any(inside and step == n_steps - 1 for step, inside in places)
    task.counter.add(n_steps * solve.n_stages + beyond)
    if keep:
        final, zs = recorded(Kept(task, steps, solve), final, zs, inputs)
    if zs is not None and wanted is not None:
        zs = wanted.restored(zs)
    return Outcome(final, zs, grid, n_steps, 0, is_finite=is_finite)
