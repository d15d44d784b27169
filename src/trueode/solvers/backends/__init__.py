"""Backends for solves, the fastest first; the first one that accepts a problem solves it.

A backend is a module with two functions. ``accepts(problem)`` says whether the backend gives the
same result as calling the field, in less time. ``solve(problem)`` returns the `Outcome`, with
states in the form of the problem's and differentiable by the problem's gradient method. To add a
backend, add it to `BACKENDS`.
"""

from typing import Any

from trueode.solvers.backends import generic, matrices
from trueode.solvers.backends.gpu import graphs, triton_layers
from trueode.solvers.backends.native import layers
from trueode.solvers.problem import Problem

BACKENDS = (layers, triton_layers, graphs, matrices, generic)

__all__ = ["BACKENDS", "backend_of", "is_compiled", "with_fast_field"]


def backend_of(problem: Problem) -> Any:
    """The backend that solves a problem."""
    return next(each for each in BACKENDS if each.accepts(problem))


def is_compiled(problem: Problem) -> bool:
    """Whether the compiled kernel solves a problem, for callers that take steps themselves
    otherwise.
    """
    return layers.accepts(problem)


def with_fast_field(problem: Problem) -> Problem:
    """The same problem with a field that is faster to call, for callers that evaluate the field
    themselves.
    """
    return matrices.by_matrices(problem) if matrices.accepts(problem) else problem
