"""Solve with any field by calling it; gradients come from autograd or the adjoint equation."""

from __future__ import annotations

import torch

from trueode.solvers.gradients import Adjoint, Checkpoint
from trueode.solvers.gradients.adjoint import integrate_adjoint
from trueode.solvers.integrate import Outcome, integrate
from trueode.solvers.problem import Problem
from trueode.solvers.step import Stepper

NAME = "it is called"


def accepts(problem: Problem) -> bool:
    """True for every problem."""
    return True


def solve(problem: Problem) -> Outcome:
    """Solve a problem; see `trueode.solvers.backends`."""
    (field, z0, unpack), gradient = problem.form, problem.gradient
    if isinstance(gradient, Adjoint) and torch.is_grad_enabled():
        outcome = integrate_adjoint(problem, gradient)
    else:
        recompute = isinstance(gradient, Checkpoint)
        stepper = Stepper(
            field, problem.solver.tableau, problem.clock, recompute, control=problem.control
        )
        outcome = integrate(stepper, problem.solver, z0, problem.points, problem.reduce)
        # this may be the user's own tensor, or one that the field has seen and autograd needs
        if outcome.z is z0 or problem.solver.tableau.fsal or problem.points is not None:
            outcome = outcome._replace(z=outcome.z.clone())
    if unpack is None:
        return outcome
    return outcome._replace(
        z=unpack(outcome.z), zs=None if outcome.zs is None else unpack(outcome.zs)
    )
