"""Solves whose steps the compiled kernel chooses."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from ctypes import addressof
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trueode.solvers.adaptive import Trace, give_up
from trueode.solvers.backends.native.library import EXHAUSTED, FAILED, AdaptiveSolve, Solve
from trueode.solvers.backends.native.recorded import Kept
from trueode.solvers.backends.native.runtime import RUNTIME, largest_tape
from trueode.solvers.backends.native.task import (
    STAGES,
    STATES,
    Saved,
    Steps,
    Task,
    address,
    method_of,
)
from trueode.solvers.failure import Stop
from trueode.solvers.gradients.recorded import recorded
from trueode.solvers.integrate import Outcome
from trueode.solvers.problem import Problem
from trueode.solvers.saving import SavePoints, ascending
from trueode.solvers.solver import Adaptive
from trueode.solvers.states import pack_stack
from trueode.solvers.step import Stepper

_NO_GRID = torch.empty(0, dtype=torch.float64, device="cpu")


def solve(task: Task, problem: Problem, keep: int, inputs: Sequence[Any]) -> Outcome | None:
    """Solve with adaptive steps; None if that fails.

    Stages are kept if there is room for those of all steps. Their number is not known beforehand: a
    solve that takes more steps than expected is repeated, so that what is kept does not depend on
    earlier solves.
    """
    z, *tensors = inputs
    solver, layers, most, points = problem.solver, task.layers(tensors), 0, problem.points
    assert isinstance(solver, Adaptive)
    if keep == STAGES and not task.per_sample:
        one = task.solve(Steps(_NO_GRID, keep=STAGES, capacity=1), layers)
        most = largest_tape(task.stack) // task.kernel.tape_size(task.double, one)
    wanted = None if points is None or points.at_ends else ascending(points)
    asked = _Asked(solver, z.detach(), layers, None if wanted is None else wanted.points)
    expected = RUNTIME.expected.get(solver, 8)
    steps = Steps(_NO_GRID, keep=keep, capacity=min(expected + expected // 4 + 2, most))
    found = _chosen(task, asked, steps)
    if found is not None:
        n_steps = len(found.steps.grid) - 1
        RUNTIME.expect(solver, n_steps)
        if found.steps.keep == STATES and n_steps < most:
            found = _chosen(task, asked, steps._replace(capacity=n_steps + 1))
    if found is None or (keep and found.next_step is not None):
        return None
    task.counter.add(found.calls)
    final, zs = found.final, found.zs
    if keep:
        final, zs = recorded(Kept(task, found.steps, found.solve), final, zs, inputs)
    at_end = final if found.next_step is None else torch.full_like(final, torch.nan)
    if wanted is not None and zs is not None:
        zs = wanted.restored(zs)
    elif points is not None:  # the ends alone
        states = [at_end if theta else z for theta in points.fractions.tolist()]
        zs = torch.stack(states) if states else z.new_empty(0, *z.shape)
    if found.next_step is not None:
        return _exhausted(problem, found)._replace(zs=zs)
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
    known = found.final, None, grid, int(accepted), int(rejected), errors
    return Outcome(*known, trace.status, trace.message)


class _Asked(NamedTuple):
    """An adaptive solve of states ``(batch, width)``, and the points at which states are saved."""

    solver: Adaptive
    z: Tensor
    layers: array[int]
    points: SavePoints | None


class _Found(NamedTuple):
    """The result of an adaptive solve: its steps, final and saved states (NaN where it did not get
    to), accepted and rejected steps of each column, and calls of the field.

    ``solve`` is the solve with these steps as fixed steps. ``next_step`` is the fraction of the
    interval that the next step would have had, if ``max_steps`` were taken before the end.
    """

    steps: Steps
    solve: Solve
    final: Tensor
    zs: Tensor | None
    counts: Tensor
    errors: Tensor
    calls: int
    next_step: float | None


def _chosen(task: Task, asked: _Asked, wanted: Steps) -> _Found | None:
    solver, z, layers, points = asked
    columns, zs = len(z) if task.per_sample else 1, None
    final, counts = torch.empty_like(z), torch.zeros(2, columns, dtype=torch.long, device="cpu")
    if wanted.keep and not wanted.capacity:
        wanted = wanted._replace(keep=STATES)
    if points is not None:
        zs = z.new_empty(len(points.fractions), *z.shape)
        wanted = wanted._replace(saved=Saved.at([(0, 1.0)] * len(zs)))  # the kernel fills it
    method, solve = method_of(task.tableau), task.solve(wanted, layers)
    solve.z0, solve.z1, solve.zs = z.data_ptr(), final.data_ptr(), address(zs)
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
        0 if points is None else points.fractions.data_ptr(),
        0.0 if points is None else points.slack,
        accepted=counts[0].data_ptr(),
        rejected=counts[1].data_ptr(),
    )
    code = task.kernel.solve_adaptive(task.double, adaptive)
    if code == FAILED:
        return None
    shape = (columns,) if task.per_sample else ()
    grid = torch.empty(adaptive.n_rows + 1, *shape, dtype=torch.float64, device="cpu")
    errors = torch.empty(adaptive.n_rows, *shape, dtype=torch.float64, device="cpu")
    kept, states = adaptive.solve.keep, None
    solve.n_steps, solve.keep, solve.grid = adaptive.n_rows, kept, grid.data_ptr()
    if kept == STATES:
        tape = RUNTIME.take(task.kernel.tape_size(task.double, solve))
        states = tape.address
    task.kernel.take(task.double, adaptive, grid.data_ptr(), errors.data_ptr(), states)
    steps = wanted._replace(grid=grid, keep=kept, tape=tape)
    if tape is not None:
        solve.tape = tape.address
    next_step = adaptive.next_step if code == EXHAUSTED else None
    if zs is not None and points is not None:
        reached = int((points.fractions <= grid[-1] + points.slack).sum())
        zs[reached:] = torch.nan
    return _Found(steps, solve, final, zs, counts, errors, adaptive.calls, next_step)
