"""A task: how a model is called, its loss and metric, and when two predictions differ."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trueode.data import Batch
from trueode.errors import UsageError, calling
from trueode.evaluation.statistics import FEWEST, samples_for
from trueode.solvers import Solution, Solver
from trueode.solvers.control import Reduce

DecisionFunction = Callable[[Tensor], Tensor]
"""``decision(outputs)`` returns the decisions that follow from outputs: ``(n,)`` or ``(n, …)`` of
bool or integers.
"""


def keep(x: Tensor) -> Tensor:
    """The sum over ranks when there is one rank."""
    return x


def comparable(own: Tensor, reference: Tensor) -> Tensor:
    """Whether there is no infinite number, and no NaN (an absent value) in one tensor only."""
    return ~(own.isinf() | reference.isinf() | (own.isnan() != reference.isnan())).any()


def mean_over_ranks(values: Tensor, valid: Tensor, reduce: Reduce) -> float:
    """The mean over the samples of all ranks; infinite unless ``valid`` is true on all of them.

    The host reads from the device once.
    """
    count = torch.full_like(valid, len(values), dtype=torch.float64)
    sums = reduce(torch.stack([values.double().sum(), count, (~valid).double()]))
    total, count, invalid = sums.tolist()
    return float("inf") if invalid else float(total / count)


@dataclass(frozen=True)
class Task(ABC):
    """Classification, regression, time series, density or sampler. Samples are the first dimension.

    Attributes:
        decision: computes decisions from outputs; they replace the task's own predictions.
        needs_targets: whether losses and metrics compare outputs with targets.
        instead: what to pass instead of options that the task does not have.
    """

    decision: DecisionFunction | None = None

    name = ""
    needs_targets = True
    instead = ""

    @property
    def metric_name(self) -> str:
        """The name of the metric that `metrics` computes."""
        return "accuracy"

    def fitted(self, shape: Sequence[int] | None, margin: float | None = None) -> Task:
        """The task for inputs of a shape, judged at a margin.

        Args:
            shape: the shape of a sample of the inputs; None: not known.
            margin: as in `decide`; None: that of the task, if it has one.

        Raises:
            UsageError: the task needs the shape.
        """
        return self

    def predict(
        self, model: nn.Module, batch: Batch, solver: Solver | None = None, **how: Any
    ) -> tuple[Tensor, Solution[Any]]:
        """The output ``(batch, …)`` of a `NeuralODE` for the inputs of a batch, and its solution.

        Args:
            model: the model.
            batch: the inputs.
            solver: the solver; None takes the model's default.
            how: further arguments of the model.
        """
        output, solution = model(batch.x, solver, return_solution=True, **how)
        return output, solution

    @abstractmethod
    def losses(self, output: Tensor, batch: Batch) -> Tensor:
        """The loss of each prediction.

        Returns:
            ``(batch,)``, or ``(batch, …)`` if a sample has several predictions.
        """

    @abstractmethod
    def metrics(self, output: Tensor, batch: Batch) -> Tensor:
        """The metric of each prediction, in the shape of `losses`."""

    def loss_sum(self, output: Tensor, batch: Batch) -> Tensor:
        """The sum of the samples' losses."""
        return self.losses(output, batch).sum()

    def metric_sum(self, output: Tensor, batch: Batch) -> Tensor:
        """The sum of the samples' metrics."""
        return self.metrics(output, batch).sum()

    def spread(self, reference: Tensor, reduce: Reduce | None = None) -> Tensor | None:
        """The scale of output differences, for each component; None for classes.

        Args:
            reference: outputs.
            reduce: sums over the ranks that share a batch.
        """
        return None

    def allowed(
        self, reference: Tensor, residual: Tensor | None = None, reduce: Reduce | None = None
    ) -> Tensor | None:
        """How far each output component may move without changing the prediction.

        Args:
            reference: outputs.
            residual: outputs under the training solver minus measurements, of the same shape.
            reduce: sums over the ranks that share a batch.

        Returns:
            ``(components,)``; None for classes.
        """
        return None

    @abstractmethod
    def difference(self, own: Tensor, reference: Tensor, reduce: Reduce = keep) -> float:
        """How much predictions differ from ``reference``: a continuous proxy for the flip share.

        It falls with the error of a solver. It is infinite if outputs are not finite. ``reduce``
        sums over the ranks that share a batch.
        """

    @abstractmethod
    def distance(self, own: Tensor, other: Tensor) -> Tensor:
        """How far predictions lie apart, in the units of the loss, with gradients: ``(batch,)``."""

    @abstractmethod
    def target(self, fidelity: float) -> float:
        """The `difference` that corresponds to a share of flips."""

    def fewest(self, margin: float, level: float) -> int:
        """The least number of samples with which `decide` can answer ``ode``.

        Args:
            margin: as in `decide`.
            level: likewise.
        """
        # without targets, a mean decides
        return samples_for(margin, 1 - level) if self.needs_targets else FEWEST

    def flipped(self, own: Tensor, reference: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Which predictions differ from ``reference``; outputs that are not finite always differ.

        Returns:
            ``(batch, predictions)`` of bool.
        """
        if self.decision is None:
            return self._flipped(own, reference, allowed)
        finite = own.isfinite().flatten(1).all(1) & reference.isfinite().flatten(1).all(1)
        return (self.decided(own) != self.decided(reference)) | ~finite[:, None]

    def settled(
        self, before: Tensor, after: Tensor, allowed: Tensor | None = None, share: float = 0.1
    ) -> Tensor:
        """Which predictions have converged: they agree, and outputs moved by less than ``share`` of
        the change that could flip them.

        Returns:
            ``(batch, predictions)`` of bool.
        """
        if self.decision is None:
            return self._settled(before, after, allowed, share)
        # The thresholds of the function are unknown: require the same decision after moves that
        # are 1 / share times as large.
        moves = (after, before, after + (after - before) / share, after - (after - before) / share)
        return ~torch.stack([self.flipped(move, after) for move in moves]).any(0)

    @abstractmethod
    def _flipped(self, own: Tensor, reference: Tensor, allowed: Tensor | None) -> Tensor: ...

    @abstractmethod
    def _settled(
        self, before: Tensor, after: Tensor, allowed: Tensor | None, share: float
    ) -> Tensor: ...

    def decided(self, outputs: Tensor) -> Tensor:
        """The decisions of the function ``decision``, ``(n, predictions)``.

        Raises:
            UsageError: the function failed, or did not return a tensor with samples first.
        """
        assert self.decision is not None
        advice = " It takes the outputs and returns decisions, e.g. lambda outputs: outputs > 0."
        with calling(f"decision=… failed on outputs of shape {tuple(outputs.shape)}", advice):
            found = self.decision(outputs)
        if not isinstance(found, Tensor) or found.dim() == 0 or len(found) != len(outputs):
            given = (
                f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            )
            raise UsageError(
                f"decision=… returned {given} for {len(outputs)} samples. It must return a tensor "
                "with samples first, e.g. lambda outputs: outputs > 0."
            )
        return found.flatten(1) if found.dim() > 1 else found[:, None]
