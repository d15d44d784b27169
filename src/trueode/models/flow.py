"""A continuous normalizing flow: a density, by the change of variables along an ODE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log, pi, prod
from typing import Any

import torch
from torch import Tensor

from trueode.errors import UsageError
from trueode.fields.divergence import Divergence
from trueode.models.neural_ode import NeuralODE
from trueode.solvers import Gradient, Solver, solve
from trueode.solvers.control import Reduce

EXACT = 32  # the most numbers in a sample whose trace is exact whenever nothing is trained
# of the finaliser of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014), as signed numbers
GOLDEN, FIRST, SECOND = (
    number - 2**64 for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


class ContinuousFlow(NeuralODE):
    """The density of samples whose flow from ``t[0]`` ends as standard-normal noise at ``t[1]``.

    log p(x) = log N(z(t₁); 0, I) + ∫ div f(t, z(t)) dt, where z' = f(t, z) starts at x. It is a
    `NeuralODE` of the field `Divergence`, so that solvers, gradients, certificates and audits are
    the same. Sources: Chen, Rubanova, Bettencourt & Duvenaud 2018; Grathwohl et al. 2019 (FFJORD).

    Args:
        field: f, ``field(t, z)`` for states ``(n, *shape)``; a sample must not depend on others.
        shape: the shape of a sample, of d numbers.
        solver, t, gradient, reduce: as in `NeuralODE`.
        trace: ``"exact"``, or ``"hutchinson"``: in training, and for more than 32 numbers also
            otherwise, the trace is estimated with noise of ±1. The noise is a function of the
            sample and of the weights, so that it is equal under all solvers and in all batches,
            and new after each change of the weights.

    Raises:
        UsageError: ``trace`` is neither.
    """

    field: Divergence

    def __init__(
        self,
        field: Callable[..., Any],
        shape: Sequence[int],
        solver: Solver | None = None,
        t: tuple[float | Tensor, float | Tensor] = (0.0, 1.0),
        gradient: Gradient | None = None,
        reduce: Reduce | None = None,
        trace: str = "exact",
    ) -> None:
        if trace not in ("exact", "hutchinson"):
            raise UsageError(f"trace must be 'exact' or 'hutchinson', got {trace!r}.")
        traced = Divergence(field, shape)
        super().__init__(traced, _augmented, _log_density, solver, t, gradient, reduce)
        self.shape, self.trace = traced.shape, trace

    def forward(
        self,
        x: Any,
        solver: Solver | None = None,
        *,
        field: Callable[..., Any] | None = None,
        **how: Any,
    ) -> Any:
        """Compute log densities.

        Args:
            x: samples ``(n, *shape)``.
            solver: the solver of this call; None: the default.
            field: replaces the model's `Divergence` in this call; None: the model's.
            how: further arguments of `NeuralODE`.

        Returns:
            ``(n,)`` in nats.

        Raises:
            UsageError: the samples have another shape.
        """
        if x.shape[1:] != self.shape:
            raise UsageError(
                f"The flow takes samples {('n', *self.shape)}; they have shape {tuple(x.shape)}."
            )
        estimated = self.trace == "hutchinson" and (self.training or prod(self.shape) > EXACT)
        if field is None and estimated:
            field = Divergence(self.field.field, self.shape, self._noise(x))
        return super().forward(x, solver, field=field, **how)

    def log_prob(self, x: Tensor, solver: Solver | None = None) -> Tensor:
        """Log densities ``(n,)`` in nats of samples ``(n, *shape)``; see `forward`."""
        found: Tensor = self(x, solver)
        return found

    def sample(
        self, n: int, solver: Solver | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw samples: solve from standard-normal noise at ``t[1]`` back to ``t[0]``.

        Args:
            n: their number.
            solver: the solver; None: the default.
            generator: the source of the noise, on the CPU or on the model's device.

        Returns:
            ``(n, *shape)``.

        Raises:
            SolveError: the solve failed.
        """
        like = next(self.parameters(), torch.empty(0, device="cpu"))
        place = like.device if generator is None else generator.device
        shape = (n, *self.shape)
        noise = torch.randn(shape, generator=generator, dtype=like.dtype, device=place)
        start, end = self.t
        found: Tensor = solve(
            self.field.field,
            noise.to(like.device),
            (end, start),
            solver=self.solver if solver is None else solver,
            gradient=self.gradient,
            reduce=self.reduce,
        ).z
        return found

    def _noise(self, x: Tensor) -> Tensor:
        """±1 ``(n, d)``: a hash of the sample, of the weights and of the component."""
        bits = _bits(x.flatten(1))
        place = torch.arange(1, bits.shape[1] + 1, device=x.device)
        weights = sum(_bits(p).sum() for p in self.parameters())
        mixed = (bits * (2 * place + 1)).sum(1, keepdim=True) + weights + GOLDEN * place
        for shift, factor in ((30, FIRST), (27, SECOND)):
            mixed = (mixed ^ (mixed >> shift)) * factor
        return torch.where(mixed < 0, -1.0, 1.0).to(x)


def _bits(x: Tensor) -> Tensor:
    """The bits of numbers, the same in single and double precision."""
    return x.detach().double().contiguous().view(torch.int64)


def _augmented(x: Tensor) -> Tensor:
    """Samples with the change of their log density so far, 0: ``(n, d + 1)``."""
    return torch.cat([x.flatten(1), x.new_zeros(len(x), 1)], dim=1)


def _log_density(state: Tensor) -> Tensor:
    """The log density of noise, minus its change on the way there: ``(n,)``."""
    z, change = state[:, :-1], state[:, -1]
    return -z.square().sum(1) / 2 - z.shape[1] * log(2 * pi) / 2 - change
