"""The checks of an adaptation rule: comparisons of solvers on a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from trueode.adaptation import Measure
from trueode.data import Batch, Unseen
from trueode.distributed import Ranks
from trueode.evaluation import Task
from trueode.seeds import torch_stream
from trueode.solvers import Solution, Solver
from trueode.training.state import State
from trueode.transfer import send

NOISE = 0.1  # standard deviation of the noise on inputs, relative to that of the inputs
Difference = Callable[[Tensor, Tensor, Batch, int], float]
"""``difference(own, reference, batch, whole)`` compares outputs for this rank's part of a batch of
``whole`` samples on all ranks.
"""


@dataclass(frozen=True)
class Checks:
    """How a rule checks the training solver.

    Attributes:
        task: the task.
        ranks: the processes that train together.
        difference: compares the outputs of two solvers.
        on: ``"batch"``: check on the training batch; ``"noise"``: the training batch with a little
            noise; ``"held_out"``: unseen inputs.
        unseen: validation and certification set, which training does not see; None: there are none,
            and the model is not certified.
        seed: the seed of the noise.
        size: samples of a check on unseen inputs.
        interval: iterations between checks.
        batch_size: the batch size for the certificate; the steps of a solver that controls the
            error of a batch depend on it.
    """

    task: Task
    ranks: Ranks
    difference: Difference
    on: str = "batch"
    unseen: Unseen | None = None
    seed: int = 0
    size: int = 64
    interval: int = 1
    batch_size: int = 128

    def measure(
        self, state: State, batch: Batch, whole: int, output: Tensor | None, nfe: float
    ) -> tuple[Measure[Tensor], int]:
        """Prepare a comparison of solvers at this iteration.

        If the check is on the training batch, the training output is used again.

        Args:
            state: the state of training.
            batch: this rank's part of the training batch.
            whole: samples of the training batch on all ranks.
            output: output of the training solver for this part; None if it was not computed in the
                same way as checks.
            nfe: field evaluations of the training solve per sample.

        Returns:
            The comparison, and its number of samples. A solver that fails has an infinite
            difference from all others.
        """
        seen = batch
        if self.on == "held_out":
            seen, whole = self._control(state.iteration)
        elif self.on == "noise":
            seen = self._noisy(batch, whole, state.iteration)

        def run(solver: Solver) -> tuple[Tensor | None, float]:
            with torch.no_grad():
                found, solved = self.task.predict(state.model, seen, solver, on_failure="return")
            return found if solved.status == "success" else None, calls(
                solved, seen, solver, whole, self.ranks
            )

        measure = Measure(run, lambda one, other: self.difference(one, other, seen, whole))
        if self.on == "batch" and output is not None:
            measure.seed(state.solver, output.detach(), nfe)
        return measure, whole

    def _control(self, iteration: int) -> tuple[Batch, int]:
        """This rank's part of the next validation samples, and their number on all ranks.

        After the last sample, the first one follows.
        """
        assert self.unseen is not None
        pool = self.unseen.control
        size = min(self.size, len(pool))
        start = iteration // self.interval * size
        rank, world = self.ranks.rank, self.ranks.world_size
        part = torch.arange(
            start + size * rank // world, start + size * (rank + 1) // world, device="cpu"
        ) % len(pool)
        return pool.batch(part, self.ranks.device), size

    def _noisy(self, batch: Batch, whole: int, iteration: int) -> Batch:
        """Add noise of a tenth of the inputs' standard deviation to a batch.

        The noise does not depend on the number of ranks.
        """
        x, (rank, world) = batch.x, (self.ranks.rank, self.ranks.world_size)
        generator = torch_stream(self.seed, "noise", iteration)
        noise = torch.randn((whole, *x.shape[1:]), generator=generator, dtype=x.dtype, device="cpu")
        part = send(noise[whole * rank // world : whole * (rank + 1) // world], x.device)
        numbers = whole * prod(x.shape[1:])
        mean = self.ranks.sum(x.double().sum()) / numbers
        deviation = (self.ranks.sum((x.double() - mean).square().sum()) / numbers).sqrt()
        return batch._replace(x=x + (NOISE * deviation).to(x.dtype) * part)


def accuracy_difference(task: Task, ranks: Ranks) -> Difference:
    """The paper's difference, between accuracies; for other tasks the share of flips (ours)."""

    def difference(one: Tensor, other: Tensor, batch: Batch, whole: int) -> float:
        if task.name == "classification":
            count = task.metric_sum(one, batch) - task.metric_sum(other, batch)
        else:
            allowed = task.allowed(other, None, ranks.sum)
            count = task.flipped(one, other, allowed).sum()
            if allowed is not None:  # without a spread, as for a single sample, there is no scale
                count = count.masked_fill((allowed == 0).any(), 0)
        return abs(float(ranks.sum(count.double()))) / whole

    return difference


def prediction_difference(task: Task, ranks: Ranks) -> Difference:
    """Our difference, between predictions; it needs no labels."""
    return lambda one, other, batch, whole: task.difference(one, other, ranks.sum)


def calls(solution: Solution[Any], batch: Batch, solver: Solver, whole: int, ranks: Ranks) -> float:
    """Field evaluations per sample, averaged over all ranks.

    Ranks need different numbers under per-sample control, or if samples have different times; only
    then do they communicate.

    Args:
        solution: the solution of this rank.
        batch: this rank's part of the batch.
        solver: the solver.
        whole: samples of all ranks.
        ranks: the processes that train together.
    """
    differ = getattr(solver, "per_sample", False) or (batch.t is not None and batch.t.dim() == 2)
    if ranks.world_size == 1 or not differ:
        return solution.nfe
    spent = torch.tensor(float(solution.nfe * len(batch.x)), device="cpu")
    return float(ranks.sum(spent)) / whole
