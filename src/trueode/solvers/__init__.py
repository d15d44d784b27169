"""Explicit Runge-Kutta solvers with gradients."""

from trueode.solvers.gradients import Adjoint, Backprop, Checkpoint, Gradient
from trueode.solvers.methods import TABLEAUS, get_tableau
from trueode.solvers.solution import Solution
from trueode.solvers.solver import Adaptive, FixedStep, OnGrid, Solver, from_plain, to_plain
from trueode.solvers.solving import solve
from trueode.solvers.tableau import ButcherTableau

__all__ = [
    "TABLEAUS",
    "Adaptive",
    "Adjoint",
    "Backprop",
    "ButcherTableau",
    "Checkpoint",
    "FixedStep",
    "Gradient",
    "OnGrid",
    "Solution",
    "Solver",
    "from_plain",
    "get_tableau",
    "solve",
    "to_plain",
]
