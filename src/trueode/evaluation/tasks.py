"""What is learned: how a model is called for it, its loss, its metric, and when two predictions count as different."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trueode.catalog import TASKS
from trueode.data import Batch
from trueode.errors import UsageError, nearest
from trueode.solvers import Solution, Solver
from trueode.solvers.control import Reduce

TOLERANCE = 0.01
"""The gap, relative to the scale of the outputs, above which the prediction of a sample counts as another one."""
SHARPNESS = 4.0  # of the distributions whose variation stands for flips
POWER = 8  # of the power mean of gaps: the higher, the closer to what decides, the largest gaps, and the noisier


def keep(x: Tensor) -> Tensor:
    """The sum over ranks, with one rank."""
    return x


def _mean(values: Tensor, reduce: Reduce) -> float:
    """The mean over the samples of all ranks."""
    total, count = reduce(torch.stack([values.double().sum(), values.new_tensor(len(values)).double()])).tolist()
    return float(total / count)


def _finite(own: Tensor, reference: Tensor, reduce: Reduce) -> bool:
    """Whether there are no infinite numbers, and no others than the reference has that are absent (NaN), on any rank."""
    bad = own.isinf() | reference.isinf() | (own.isnan() != reference.isnan())
    return float(reduce(bad.double().sum())) == 0


class Task(ABC):
    """One of classification, regression, time series. All sums and tests are over samples, the first dimension."""

    name: str
    metric_name: str

    def predict(
        self, model: nn.Module, batch: Batch, solver: Solver | None = None, **how: Any
    ) -> tuple[Tensor, Solution[Any]]:
        """The output of a `NeuralODE` ``(batch, …)`` for the inputs of a batch, and its solution; ``how`` goes to the model."""
        output, solution = model(batch.x, solver, return_solution=True, **how)
        return output, solution

    @abstractmethod
    def losses(self, output: Tensor, batch: Batch) -> Tensor:
        """The samples' losses: ``(batch,)``."""

    @abstractmethod
    def metrics(self, output: Tensor, batch: Batch) -> Tensor:
        """The samples' metrics: ``(batch,)``."""

    def loss_sum(self, output: Tensor, batch: Batch) -> Tensor:
        """The sum of the samples' losses."""
        return self.losses(output, batch).sum()

    def metric_sum(self, output: Tensor, batch: Batch) -> Tensor:
        """The sum of the samples' metrics."""
        return self.metrics(output, batch).sum()

    def scale(self, reference: Tensor, reduce: Reduce | None = None) -> Tensor | None:
        """What differences of outputs are relative to; see `flipped`. ``reduce`` sums over the ranks that share a batch."""
        return None

    @abstractmethod
    def difference(self, own: Tensor, reference: Tensor, reduce: Reduce = keep) -> float:
        """How much predictions differ from those in ``reference``: a continuous stand-in for the share of flips.

        It falls as the error of a solver does; infinite where outputs are not finite. ``reduce`` sums over the ranks that share a batch.
        """

    @abstractmethod
    def target(self, fidelity: float) -> float:
        """The `difference` that goes with a share of flips."""

    @abstractmethod
    def flipped(self, own: Tensor, reference: Tensor, scale: Tensor | None = None) -> Tensor:
        """Which samples have another prediction than in ``reference``: ``(batch,)`` of bool; not finite counts as other."""

    @abstractmethod
    def calm(self, before: Tensor, after: Tensor, scale: Tensor | None = None) -> Tensor:
        """Which samples moved by less than a tenth of what could change their prediction: ``(batch,)`` of bool."""


class Classification(Task):
    """Labels ``(batch,)`` from logits ``(batch, classes)``: cross-entropy, accuracy."""

    name, metric_name = "classification", "accuracy"

    def losses(self, output: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(output, batch.y, reduction="none")

    def loss_sum(self, output: Tensor, batch: Batch) -> Tensor:  # of each training step: one call
        return F.cross_entropy(output, batch.y, reduction="sum")

    def metrics(self, output: Tensor, batch: Batch) -> Tensor:
        return output.argmax(1) == batch.y

    def difference(self, own: Tensor, reference: Tensor, reduce: Reduce = keep) -> float:
        """The total variation of sharpened distributions over classes, half the sum of |p - p'|, mean over samples: 0 to 1.

        Logits count four times: in this way the difference is close to the share of flips, whether a model is sure of its
        predictions or not. It does not see flips between classes that are equally likely, as before a model has learned
        anything.
        """
        if not _finite(own, reference, reduce):
            return float("inf")
        variation = ((SHARPNESS * own).softmax(1) - (SHARPNESS * reference).softmax(1)).abs().sum(1) / 2
        return _mean(variation, reduce)

    def target(self, fidelity: float) -> float:
        """The share itself."""
        return fidelity

    def flipped(self, own: Tensor, reference: Tensor, scale: Tensor | None = None) -> Tensor:
        """The most likely class is another one."""
        same = own.argmax(1) == reference.argmax(1)
        return ~(same & own.isfinite().all(1) & reference.isfinite().all(1))

    def calm(self, before: Tensor, after: Tensor, scale: Tensor | None = None) -> Tensor:
        """The class is the same, and no logit moved by a tenth of the margin between the two largest."""
        if after.shape[1] < 2:
            return (before - after).isfinite().all(1)
        first, second = after.topk(2, dim=1).values.unbind(1)
        moved = (after - before).abs().amax(1)
        return ~self.flipped(before, after) & (moved < 0.1 * (first - second))


class _Squares(Task):
    """Mean squared error; predictions differ by their gap."""

    metric_name = "mse"

    def losses(self, output: Tensor, batch: Batch) -> Tensor:
        """The samples' squared errors, averaged over what was observed: ``(batch,)``."""
        return self.metrics(output, batch)

    def metrics(self, output: Tensor, batch: Batch) -> Tensor:
        """The samples' squared errors, averaged over what was observed: ``(batch,)``."""
        observed = ~batch.y.isnan()
        error = torch.where(observed, output - batch.y.nan_to_num(), 0.0).flatten(1)
        return error.square().sum(1) / observed.flatten(1).sum(1).clamp(min=1)

    def scale(self, reference: Tensor, reduce: Reduce | None = None) -> Tensor:
        """The RMS deviation of the reference outputs from their mean, over samples and times, for each component.

        Values that are absent or not finite are left out.
        """
        own = self._by_component(reference).flatten(0, 1)
        known = own.isfinite()

        def mean(values: Tensor) -> Tensor:
            sums = torch.stack([torch.where(known, values, 0.0).sum(0), known.sum(0).to(values)])
            total, count = (sums if reduce is None else reduce(sums)).unbind(0)
            return total / count

        return mean((own - mean(own)).square()).sqrt()

    def difference(self, own: Tensor, reference: Tensor, reduce: Reduce = keep) -> float:
        """The gap relative to the tolerance of 1 %: its power mean over samples, of the power 8.

        Components in which the reference is constant are left out; NaN if it is constant in all, as a single sample is:
        there is nothing to measure a gap by.
        """
        if not _finite(own, reference, reduce):
            return float("inf")
        scale = self.scale(reference, reduce)
        if not bool((scale > 0).any()):
            return float("nan")
        gap = self._gap(own, reference, torch.where(scale > 0, scale, torch.inf)) / TOLERANCE
        return float(_mean(gap.double() ** POWER, reduce) ** (1 / POWER))

    def target(self, fidelity: float) -> float:
        """``fidelity ** (1/8)``: with that power mean, the share of gaps above the tolerance is at most ``fidelity`` (Markov)."""
        return float(fidelity ** (1 / POWER))

    def flipped(self, own: Tensor, reference: Tensor, scale: Tensor | None = None) -> Tensor:
        """The gap, RMS over components and times of (own - reference) / scale, exceeds 1 %."""
        return ~(self._gap(own, reference, scale) <= TOLERANCE)

    def calm(self, before: Tensor, after: Tensor, scale: Tensor | None = None) -> Tensor:
        """The gap is less than a tenth of the tolerance."""
        return self._gap(before, after, scale) < 0.1 * TOLERANCE

    def _gap(self, own: Tensor, reference: Tensor, scale: Tensor | None) -> Tensor:
        scale = self.scale(reference) if scale is None else scale
        difference = self._by_component(own) - self._by_component(reference)
        absent = self._absent(own) & self._absent(reference)
        unmoved = absent | (difference == 0)  # no gap, even where there is no scale
        relative = torch.where(unmoved, 0.0, difference / scale).square().flatten(1)
        return (relative.sum(1) / (~absent).expand_as(difference).flatten(1).sum(1).clamp(min=1)).sqrt()

    def _by_component(self, output: Tensor) -> Tensor:
        """Outputs as ``(batch, times, components)``."""
        return output.flatten(1).unsqueeze(1)

    def _absent(self, output: Tensor) -> Tensor:
        return torch.zeros(1, 1, 1, dtype=torch.bool, device=output.device)


class Regression(_Squares):
    """Targets ``(batch, outputs)``: mean squared error."""

    name = "regression"


class TimeSeries(_Squares):
    """States ``(batch, times, channels, length)`` at given times: mean squared error over the observed ones.

    Outputs are NaN where a sample has no time.
    """

    name = "timeseries"

    def predict(
        self, model: nn.Module, batch: Batch, solver: Solver | None = None, **how: Any
    ) -> tuple[Tensor, Solution[Any]]:
        """The states at the times of the batch, ``(batch, times, …)``."""
        if batch.t is None:
            raise UsageError("A time series needs times.")
        output, solution = super().predict(model, batch, solver, save_at=batch.t, **how)
        output = output.transpose(0, 1)
        if batch.t.dim() == 2:
            absent = batch.t.isnan().view(*batch.t.shape, *[1] * (output.dim() - 2))
            output = output.masked_fill(absent, torch.nan)
        return output, solution

    def _by_component(self, output: Tensor) -> Tensor:
        return output.flatten(2)

    def _absent(self, output: Tensor) -> Tensor:
        return output.flatten(2).isnan().all(2, keepdim=True)


_TASKS: dict[str, Task] = {task.name: task for task in (Classification(), Regression(), TimeSeries())}


def get_task(name: str) -> Task:
    """The task of a name.

    Raises:
        UsageError: an unknown name.
    """
    if name not in _TASKS:
        raise UsageError(f"task = {name!r} is unknown; known are {', '.join(TASKS)}.{nearest(name, TASKS)}")
    return _TASKS[name]
