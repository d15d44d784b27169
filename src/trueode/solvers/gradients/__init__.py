"""How gradients flow through a solve."""

from trueode.solvers.gradients.adjoint import Adjoint
from trueode.solvers.gradients.discrete import Backprop, Checkpoint

Gradient = Backprop | Checkpoint | Adjoint

__all__ = ["Adjoint", "Backprop", "Checkpoint", "Gradient"]
