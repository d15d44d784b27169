"""Models with an ODE block."""

from trueode.models.neural_ode import NeuralODE

__all__ = ["NeuralODE"]
