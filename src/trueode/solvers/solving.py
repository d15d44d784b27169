"""`solve`: the public entry point."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm

from trueode.errors import SolveError, UsageError
from trueode.solvers.backends import backend_of
from trueode.solvers.checked import is_symbolic
from trueode.solvers.control import Reduce
from trueode.solvers.failure import instability
from trueode.solvers.gradients import Backprop, Gradient
from trueode.solvers.integrate import Outcome
from trueode.solvers.pieces import in_pieces
from trueode.solvers.problem import Problem
from trueode.solvers.saving import Times
from trueode.solvers.solution import Counter, Ending, Solution
from trueode.solvers.solver import Adaptive, Solver

_BACKPROP = Backprop()

replacement: ContextVar[Callable[[Problem], Solution[Any] | None] | None] = ContextVar(
    "replacement", default=None
)
"""A function that replaces `solve_problem` in this context while an audit tries other solvers. It
returns None to leave a solve alone.
"""


def solve(
    field: Callable[..., Any],
    z0: Any,
    t: Any = (0.0, 1.0),
    *,
    solver: Solver,
    gradient: Gradient = _BACKPROP,
    save_at: Times | None = None,
    on_failure: str = "raise",
    reduce: Reduce | None = None,
) -> Solution[Any]:
    """Solve ``dz/dt = field(t, z)``, ``z(t[0]) = z0`` up to ``t[1]``.

    Gradients flow to ``z0``, to the parameters of the field, and to tensors in ``t`` and
    ``save_at`` that require them, in reverse and forward mode. The steps of an adaptive solver are
    constants, as fractions of the interval. A request for a derivative that a solver or gradient
    method does not have raises a `UsageError`. Results share no memory with the arguments.

    Args:
        field: the vector field, ``field(t, z)``, which returns the derivative in the shape of the
            state ``z`` and must not change ``z`` in place. The time ``t`` is a tensor without
            dimension, or ``(batch, 1, …)`` under per-sample control.
        z0: the initial state, a floating point or complex tensor of any shape, or a tuple of them.
        t: start and end; the end may lie before the start.
        solver: a `FixedStep`, `Adaptive` or `OnGrid`.
        gradient: how gradients are computed: `Backprop`, `Checkpoint` (less memory) or `Adjoint`
            (continuous).
        save_at: times in the interval at which the state is also computed, by dense output, without
            changing the steps. ``(times,)``, or ``(batch, times)`` for each sample's own times
            (padded with NaN).
        on_failure: ``"raise"`` an error, or ``"return"`` a Solution whose status names the failure.
            Fixed steps on a GPU whose gradients are recorded raise no error: whether the final
            state is finite is found when the status is asked for, which waits for the GPU.
        reduce: sums a tensor over the ranks that share one batch, so that they take the same
            adaptive steps.

    Returns:
        The solution with its statistics.

    Raises:
        UsageError: an argument does not fit the description above.
        SolveError: the solve failed and ``on_failure`` is ``"raise"``.
    """
    if on_failure not in ("raise", "return"):
        raise UsageError(f"on_failure must be 'raise' or 'return', got {on_failure!r}.")
    problem = Problem(
        field, z0, t, solver=solver, gradient=gradient, save_at=save_at, reduce=reduce
    )
    return carry_out(problem, on_failure)


def carry_out(problem: Problem, on_failure: str = "raise") -> Solution[Any]:
    """Solve a problem, or let an audit of this context solve it; see `solve`."""
    replace_solve = replacement.get()
    replaced = None if replace_solve is None else replace_solve(problem)
    if replaced is not None:  # the audit records failures itself
        return replaced
    solution = solve_problem(problem)
    ending = solution.ending
    if ending.is_known and solution.status != "success" and on_failure == "raise":
        raise SolveError(solution.message, solution.status)
    return solution


def solve_problem(problem: Problem) -> Solution[Any]:
    """Solve a problem, also while an audit replaces solvers; the status names a failure."""
    outcome = _outcome(problem)
    problem.counter.solving = False
    ending = _ending_of(outcome, problem)
    if problem.reduce is not None and ending.is_known and not _is_common(problem):
        ending = _shared(ending, problem.reduce)
    return Solution(
        z=outcome.z,
        zs=outcome.zs,
        t=problem.t[1],
        nfe=problem.counter.forward,
        n_steps=outcome.n_steps,
        n_rejected=outcome.n_rejected,
        errors=outcome.errors,
        statuses=outcome.statuses,
        _solver=problem.solver,
        _fractions=outcome.fractions,
        _clock=problem.clock,
        _counter=problem.counter,
        ending=ending,
    )


def _outcome(problem: Problem) -> Outcome:
    if problem.solver.breaks:
        return in_pieces(problem, _outcome)
    outcome: Outcome = backend_of(problem).solve(problem)
    return outcome


def _ending_of(outcome: Outcome, problem: Problem) -> Ending:
    """How a solve ended. Fixed steps fail if their final state is not finite; while training on a
    GPU, this is found when someone asks.
    """
    found: Any = outcome.z
    parts: tuple[Tensor, ...] = found if isinstance(found, tuple) else (found,)
    if (
        outcome.is_finite
        or outcome.status != "success"
        or isinstance(problem.solver, Adaptive)
        or is_symbolic()
        or parts[0].is_meta
    ):
        return Ending(outcome.status, outcome.message)
    n_steps = int(outcome.n_steps)
    if parts[0].device.type != "cpu" and any(part.requires_grad for part in parts):
        sizes = [vector_norm(part.detach(), inf) for part in parts if part.numel()]
        return Ending(look=lambda: _finite(all(map(_is_finite, sizes)), problem, n_steps))
    return Ending(*_finite(all(map(_is_finite, parts)), problem, n_steps))


def _finite(is_finite: bool, problem: Problem, n_steps: int) -> tuple[str, str]:
    """Status and message of fixed steps."""
    if is_finite:
        return "success", ""
    # with a new counter: the calls that follow are not part of the solve
    clock, (field, z0, _) = problem.clock, replace(problem, counter=Counter()).form
    h = clock.length / max(n_steps, 1)
    unstable = instability(partial(field, clock.time(0.0)), problem.solver.tableau, z0, h)
    return "non_finite", (
        f"The solve with {problem.solver} from t = {clock.t0:g} reached a state that is not finite "
        f"before t = {clock.t1:g} ({n_steps} steps of about {abs(h):.3g}): take smaller steps, or "
        f"use an adaptive solver, which reports where this happens.{unstable}"
    )


def _is_finite(z: Tensor) -> bool:
    z = z.detach()
    if not z.is_complex() and isfinite(float(z.sum())):  # a sum may overflow
        return True
    return bool(z.isfinite().all())


def _is_common(problem: Problem) -> bool:
    """Whether all ranks know how a solve ends, because they control the error of one batch."""
    return isinstance(problem.solver, Adaptive) and not problem.per_sample


def _shared(ending: Ending, reduce: Reduce) -> Ending:
    """Let a solve that failed on one rank fail on all ranks, which would otherwise wait for it."""
    failed = torch.tensor(float(ending()[0] != "success"), device="cpu")
    if not float(reduce(failed)) or float(failed):
        return ending
    return Ending("non_finite", "The solve failed on another rank, for its part of the batch.")
