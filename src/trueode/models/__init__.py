"""Models with an ODE block."""

from trueode.models.flow import ContinuousFlow
from trueode.models.neural_ode import NeuralODE

__all__ = ["ContinuousFlow", "NeuralODE"]
