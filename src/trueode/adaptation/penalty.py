"""The discretisation-error penalty: a term of the loss that keeps a model an ODE."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import isfinite
from typing import overload

import torch
from torch import Tensor

from trueode.catalog import PENALTY
from trueode.errors import UsageError
from trueode.evaluation import Task, get_task
from trueode.seeds import torch_stream
from trueode.solvers import FixedStep, Solver


@dataclass(frozen=True)
class DiscretisationPenalty:
    """Penalises the difference between the predictions of the training solver and of a finer one.

    Every ``interval`` iterations, every ``stride``-th sample of the batch is also solved by a
    partner of the training solver, and the loss grows by ``weight * interval`` times the mean
    distance between both predictions. Gradients flow through both solves. The partner of N steps
    takes a random number of steps, from N + 1 to 2 N + 1: at a fixed ratio a field could learn to
    agree on these two grids and on no others (aliasing).

    The distance is in the units of the loss (see ``Task.distance``): the total variation of two
    class distributions, the mean squared difference of numbers and states.

    Related terms: error estimates of the solver (Pal et al., ICML 2021), kinetic energy and the
    norm of the Jacobian (Finlay et al., ICML 2020), higher derivatives (Kelly et al., NeurIPS
    2020), random end times (Ghosh et al., NeurIPS 2020). Self-consistency over step sizes is known
    from generative samplers (Frans et al., arXiv 2410.12557).

    Args:
        weight: the weight of the penalty.
        interval: iterations between penalties.
        stride: one over the share of the samples that are compared.
        seed: the seed of the partners.
        task: computes the distance.

    Raises:
        UsageError: a number is out of range.
    """

    weight: float = PENALTY
    interval: int = 4
    stride: int = 4
    seed: int = 0
    task: Task = field(default_factory=lambda: get_task("classification"))

    def __post_init__(self) -> None:
        if not (isfinite(self.weight) and self.weight > 0):
            raise UsageError(f"weight must be a positive number, got {self.weight!r}.")
        for name in ("interval", "stride"):
            if (value := getattr(self, name)) < 1 or int(value) != value:
                raise UsageError(f"{name} must be a whole number of at least 1, got {value!r}.")

    def due(self, iteration: int) -> bool:
        """Whether this iteration has a penalty."""
        return iteration % self.interval == 0

    def rows(self, first: int = 0) -> slice:
        """The samples of a batch that are compared.

        Args:
            first: the number of the first sample of this rank, if several ranks share a batch.
        """
        return slice(-first % self.stride, None, self.stride)

    def part(self, samples: Tensor) -> Tensor:
        """The samples that are compared, or their outputs, of ``(batch, …)``."""
        return samples[self.rows()]

    @overload
    def partner(self, solver: int, iteration: int) -> int: ...

    @overload
    def partner(self, solver: Solver, iteration: int) -> Solver: ...

    def partner(self, solver: int | Solver, iteration: int) -> int | Solver:
        """The finer solver of this iteration, or its number of steps.

        It depends only on the seed, the iteration and the solver. A step size is divided by a
        random number between 1 and 2, a tolerance by one between 1 and 2^p, where p is the order.
        A limit on the number of steps does not hold for the partner.
        """
        generator = torch_stream(self.seed, "partner", iteration)
        share = float(torch.rand((), generator=generator, device="cpu"))
        if isinstance(solver, int):
            return solver + 1 + int(share * (solver + 1))
        if isinstance(solver, FixedStep):
            solver = replace(solver, max_steps=None)
            if solver.n_steps is not None:
                return replace(solver, n_steps=self.partner(solver.n_steps, iteration))
        return solver.refined(1.0 + share)

    def __call__(self, own: Tensor, other: Tensor, whole: int | None = None) -> Tensor:
        """The penalty, to be added to the mean loss of the batch: a scalar.

        Args:
            own: outputs of `part` under the training solver, ``(n, …)``.
            other: their outputs under the partner.
            whole: the number of compared samples of all ranks that share the batch; None: n.
        """
        distances = self.task.distance(own, other)
        return self.weight * self.interval * distances.sum() / (whole or len(own))
