"""One step of a Runge-Kutta method, by calling the field."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trueode.solvers.clock import Clock, Span, Step
from trueode.solvers.control import Control
from trueode.solvers.dense_output import Taken, interpolate
from trueode.solvers.saving import Inside
from trueode.solvers.tableau import ButcherTableau

Field = Callable[[Tensor, Tensor], Tensor]


class StepResult(NamedTuple):
    """The result of a step: the new state, and optional values that were requested or are free."""

    z: Tensor
    end: Tensor | None  # the field at the end of the step
    saved: Tensor | None  # states inside the step
    error: Tensor | None  # estimate of the local error, without gradient


def combine(z: Tensor, h: Step, weights: Sequence[float], stages: Sequence[Tensor]) -> Tensor:
    """``z + h sum_i weights_i stages_i``."""
    terms = [(w, k) for w, k in zip(weights, stages, strict=False) if w]
    if not terms:  # a node at the start of the step
        return z
    if isinstance(h, Tensor):
        return z + h * weighted_sum(terms)
    (w, k), *rest = terms
    total = torch.add(z, k, alpha=w * h)
    for w, k in rest:
        total.add_(k, alpha=w * h)  # in place is safe: `add` saves nothing for the backward pass
    return total


def weighted_sum(terms: Sequence[tuple[float, Tensor]]) -> Tensor:
    """``sum_i w_i k_i`` over pairs ``(w_i, k_i)``."""
    (w, k), *rest = terms
    total = k * w
    for w, k in rest:
        total = total.add_(k, alpha=w)
    return total


@dataclass(frozen=True)
class Stepper:
    """Takes steps of a method by calling a field; autograd records them.

    Args:
        field: the field, ``field(t, z)``.
        tableau: the method.
        clock: the times of the solve.
        recompute: keep only the state at the start of each step, and compute the step again in the
            backward pass.
        watched: the number of leading entries of a flat state that error control considers; None:
            all, for any shape.
        control: error control beyond what the solver says.
    """

    field: Field
    tableau: ButcherTableau
    clock: Clock
    recompute: bool = False
    watched: int | None = None
    control: Control | None = None

    def start(self, theta: float, z: Tensor) -> Tensor:
        """The field at a grid point."""
        return self.field(self.clock.time(theta), z)

    def start_per_sample(self, theta: Tensor, z: Tensor) -> Tensor:
        """The field at each sample's grid point: fractions ``(samples,)``, states
        ``(samples, …)``.
        """
        return self.field(self.clock.tensor(theta.view(-1, *[1] * (z.dim() - 1))), z)

    def span_per_sample(self, before: Tensor, after: Tensor, z: Tensor) -> Span:
        """The step of each sample between two fractions ``(samples,)``; times and step sizes have
        shape ``(samples, 1, …)``.
        """
        start, end = (theta.view(-1, *[1] * (z.dim() - 1)) for theta in (before, after))
        return self.clock.span_per_sample(start, end, self.tableau.c)

    def controlled(self, x: Tensor) -> Tensor:
        """The part of a state, or of its error, that error control considers."""
        return x.detach() if self.watched is None else x.detach()[: self.watched]

    def step(
        self,
        span: Span,
        z: Tensor,
        first: Tensor | None = None,
        inside: Inside | None = None,
        with_error: bool = False,
    ) -> StepResult:
        """Take one step.

        Args:
            span: the step's times and size.
            z: state at the start.
            first: the field at the start, if known.
            inside: the points inside the step at which the state is computed.
            with_error: estimate the error, which needs all stages.
        """
        if self.recompute and torch.is_grad_enabled():
            return StepResult(
                *checkpoint(self._step, span, z, first, inside, with_error, use_reentrant=False)
            )
        return self._step(span, z, first, inside, with_error)

    def _step(
        self, span: Span, z: Tensor, first: Tensor | None, inside: Inside | None, with_error: bool
    ) -> StepResult:
        tableau, (times, h) = self.tableau, span
        whole = with_error or (inside is not None and tableau.dense is not None)
        stages = [self.field(times[0], z) if first is None else first]
        y = z
        for i in range(1, tableau.stages if whole else tableau.advancing_stages):
            y = combine(z, h, tableau.a[i], stages)
            stages.append(self.field(times[i], y))
        free_end = tableau.fsal and len(stages) == tableau.stages
        after = y if free_end else combine(z, h, tableau.b, stages)
        end = stages[-1] if free_end else None
        saved = None
        if inside is not None:
            if end is None and any(tableau.continuous[-1]):
                end = self.field(times[-1], after)
            taken = Taken(h, z, stages, stages[-1] if end is None else end)
            saved = interpolate(tableau, inside.theta, taken.of(inside.rows))
        error = None
        if with_error:
            with torch.no_grad():
                terms = [(w, k) for w, k in zip(tableau.error_weights, stages, strict=True) if w]
                error = h * weighted_sum(terms)
        return StepResult(after, end, saved, error)
