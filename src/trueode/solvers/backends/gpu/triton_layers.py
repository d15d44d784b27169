"""Whole solves of fields of layers in one launch, and their gradients in another one, by Triton."""

from __future__ import annotations

import torch

from trueode.errors import SolveError
from trueode.solvers.backends import generic, matrices
from trueode.solvers.backends.gpu import library
from trueode.solvers.backends.gpu.task import Task, size, widths_of
from trueode.solvers.backends.served import grid_of, is_served
from trueode.solvers.gradients.recorded import recorded
from trueode.solvers.integrate import Outcome
from trueode.solvers.problem import Problem
from trueode.solvers.saving import ascending, located
from trueode.solvers.solver import Adaptive
from trueode.solvers.stack import dense, is_short
from trueode.solvers.states import pack_stack

# of a program: beyond this, compiled code spills its registers (an estimate from such code)
MOST_BYTES = 3 * 2**15

NAME = "Triton's kernel computes it"


def accepts(problem: Problem) -> bool:
    """Whether the kernel gives the same result as calling the field."""
    z = problem.first
    if not library.reaches(z) or problem.per_sample or not is_served(problem):
        return False
    stack = problem.layers
    assert stack is not None
    return (
        not isinstance(problem.solver, Adaptive)
        and not stack.image
        and stack.coupling is None
        and is_short(stack, stack.width(z.shape))
        and size(widths_of(stack, z.shape), problem.solver.tableau, z.dtype) <= MOST_BYTES
        and _places(problem) is not None
    )


def _places(problem: Problem) -> tuple[int, ...] | None:
    """The grid points at which states are saved, ascending; None if the kernel cannot save them."""
    solver, points = problem.solver, problem.points
    assert not isinstance(solver, Adaptive)
    try:
        grid = grid_of(solver, problem.clock.length)
    except SolveError:  # the generic backend reports the reason
        return None
    if points is None:
        return ()
    if points.moving is not None:
        return None
    found = located(ascending(points).points, grid.tolist())
    return None if any(inside for _, inside in found) else tuple(place for place, _ in found)


def solve(problem: Problem) -> Outcome:
    """Solve a problem; see `trueode.solvers.backends`. If the kernel cannot be compiled or run, the
    field is called, now and in later solves.
    """
    stack, places = problem.layers, _places(problem)
    assert stack is not None
    assert places is not None
    (z, unpack), widths = pack_stack(stack, problem.z0), widths_of(stack, problem.first.shape)
    task = Task.of(problem, dense(stack, widths[0], pointwise=True), widths, places)
    inputs = z.view(-1, widths[0]), *task.stack.tensors
    keeps = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    try:
        final, zs, kept = task.forward(inputs, keeps)
    except torch.OutOfMemoryError:
        raise
    except Exception as failure:  # of the compiler or the driver, which have many kinds
        library.give_up(failure)
        return matrices.solve(problem) if matrices.accepts(problem) else generic.solve(problem)
    if keeps:
        final, zs = recorded(kept, final, zs, inputs)
    if zs is not None and problem.points is not None:
        zs = unpack(ascending(problem.points).restored(zs.view(-1, *z.shape)))
    return Outcome(unpack(final.view(z.shape)), zs, task.grid, len(task.grid) - 1, 0)
