"""Methods to compute gradients of a solve, as frozen values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from trueode.errors import UsageError
from trueode.solvers.solver import Adaptive, FixedStep, OnGrid, Solver


@dataclass(frozen=True)
class Backprop:
    """Back-propagation through the solver's steps; keeps all that the backward pass needs."""


@dataclass(frozen=True)
class Checkpoint:
    """The gradient of `Backprop` with less memory: keeps the state at the start of each step, and
    computes the steps again in the backward pass, one at a time.

    Source: Griewank & Walther, Evaluating Derivatives, 2nd ed., 2008, ch. 12 (every step is a
    checkpoint).
    """


@dataclass(frozen=True)
class Adjoint:
    """The continuous adjoint method: keeps one state, and its gradient is exact only up to the
    solver's error.

    Source: Chen, Rubanova, Bettencourt & Duvenaud, Neural Ordinary Differential Equations, 2018,
    Algorithm 1. Error control of an adaptive backward solve considers state and adjoint, not the
    parameters' gradients (Kidger, Chen & Lyons, "Hey, that's not an ODE", 2021); with several
    samples it is coupled over the batch. There are no second derivatives.

    Args:
        solver: the solver of the backward solve; None: the same as in the forward solve.
        params: the tensors that the field uses. Needed only if some are computed from other
            tensors, or are not used in the forward solve; otherwise they are found automatically:
            the parameters of a Module, and all leaf tensors that the forward solve uses.
    """

    solver: Solver | None = None
    params: Iterable[Tensor] | None = None

    def __post_init__(self) -> None:
        if self.solver is not None and not isinstance(self.solver, (FixedStep, Adaptive, OnGrid)):
            raise UsageError(
                "The solver of Adjoint must be a FixedStep, Adaptive or OnGrid value, "
                f"got {self.solver!r}."
            )
        if self.params is None:
            return
        try:
            object.__setattr__(self, "params", tuple(self.params))
        except TypeError:
            raise UsageError(
                f"The params of Adjoint must be tensors, got {self.params!r}."
            ) from None
        if not all(isinstance(p, Tensor) for p in self.params):
            raise UsageError(f"The params of Adjoint must be tensors, got {self.params!r}.")

    def parameters_of(self, field: Any) -> tuple[Tensor, ...]:
        """The known tensors of a field that require a gradient, each once."""
        found = (
            self.params
            if self.params is not None
            else field.parameters()
            if isinstance(field, nn.Module)
            else ()
        )
        return tuple({id(p): p for p in found if p.requires_grad}.values())


Gradient = Backprop | Checkpoint | Adjoint
