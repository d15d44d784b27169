"""`odeint` and `odeint_adjoint` with the arguments and results of torchdiffeq's."""

from trueode.drop_in.adjoint import odeint_adjoint
from trueode.drop_in.odeint import odeint

__all__ = ["odeint", "odeint_adjoint"]
