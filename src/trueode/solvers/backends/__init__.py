"""Ways to carry out a solve, the fastest first; the first one that accepts a problem solves it.

A backend is a module with two functions: ``accepts(problem)``, whether it does for the problem what
calling the field would do, and in less time; and ``solve(problem)``, the `Outcome`, its states in
the form of the problem's and differentiable as the problem's gradient says. Another backend is
another entry of `BACKENDS`.
"""

from trueode.solvers.backends import generic, matrices
from trueode.solvers.backends.native import images, layers
from trueode.solvers.problem import Problem

BACKENDS = (layers, matrices, images, generic)

__all__ = ["BACKENDS", "with_fast_field"]


def with_fast_field(problem: Problem) -> Problem:
    """The same problem with a field that takes less time to call, for those who call it at times
    and states of their own.
    """
    return matrices.by_matrices(problem) if matrices.accepts(problem) else images.by_kernel(problem)
