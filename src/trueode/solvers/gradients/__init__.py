"""Gradients of a solve."""

from trueode.solvers.gradients.methods import Adjoint, Backprop, Checkpoint, Gradient

__all__ = ["Adjoint", "Backprop", "Checkpoint", "Gradient"]
