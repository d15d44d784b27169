"""Ways to carry out a solve, the fastest first; the first one that accepts a problem solves it.

A backend is a module with two functions: ``accepts(problem)``, whether it does for the problem what calling the field would
do, and in less time; and ``solve(problem)``, the `Outcome`, its states in the form of the problem's and differentiable as
the problem's gradient says. Another backend is another entry of `BACKENDS`.
"""

from trueode.solvers.backends import generic, matrices
from trueode.solvers.backends.native import images, layers

BACKENDS = (layers, matrices, images, generic)

__all__ = ["BACKENDS"]
