"""The tasks: classification, regression, time series, density and sampler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trueode.data import Batch
from trueode.errors import UsageError, nearest
from trueode.evaluation.density import Density
from trueode.evaluation.task import Task, comparable, keep, mean_over_ranks
from trueode.solvers import Solution, Solver
from trueode.solvers.control import Reduce

TOLERANCE = 0.01
"""A prediction changes if its gap exceeds this share of the spread of the outputs."""
RESIDUAL = 0.1  # share of the RMS residual of a measured series by which its prediction may move
SHARPNESS = 4.0  # factor on logits before the total variation that approximates flips
POWER = 8  # of the power mean of gaps: a higher one is closer to the largest gap, but noisier


@dataclass(frozen=True)
class Classification(Task):
    """Classification by logits, with cross-entropy and accuracy.

    Labels ``(batch,)`` belong to logits ``(batch, classes)``, labels ``(batch, …)`` to
    ``(batch, classes, …)``.

    Attributes:
        ignore_index: the label of predictions that do not count.
    """

    ignore_index: int = -100

    name = "classification"

    def losses(self, output: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(output, batch.y, reduction="none", ignore_index=self.ignore_index)

    def loss_sum(self, output: Tensor, batch: Batch) -> Tensor:  # one call in each training step
        return F.cross_entropy(output, batch.y, reduction="sum", ignore_index=self.ignore_index)

    def metrics(self, output: Tensor, batch: Batch) -> Tensor:
        if self.decision is not None:
            return (
                self.decided(output) == batch.y.flatten(1)
                if batch.y.dim() > 1
                else self.decided(output)[:, 0] == batch.y
            )
        return output.argmax(1) == batch.y

    def difference(self, own: Tensor, reference: Tensor, reduce: Reduce = keep) -> float:
        """The mean total variation of sharpened class distributions, between 0 and 1.

        The total variation is half the sum of |p - p'|. Logits are multiplied by four, which keeps
        the difference close to the share of flips for confident and for unsure models. It misses
        flips between equally likely classes, as in an untrained model.
        """
        variation = ((SHARPNESS * own).softmax(1) - (SHARPNESS * reference).softmax(1)).abs().sum(
            1
        ) / 2
        return mean_over_ranks(variation, comparable(own, reference), reduce)

    def distance(self, own: Tensor, other: Tensor) -> Tensor:
        """The total variation of the class distributions, averaged over a sample's predictions."""
        variation = (own.softmax(1) - other.softmax(1)).abs().sum(1) / 2
        return variation if variation.dim() == 1 else variation.flatten(1).mean(1)

    def target(self, fidelity: float) -> float:
        """The share of flips itself."""
        return fidelity

    def _flipped(self, own: Tensor, reference: Tensor, allowed: Tensor | None) -> Tensor:
        """The most likely class differs."""
        same = own.argmax(1) == reference.argmax(1)
        flipped = ~(same & own.isfinite().all(1) & reference.isfinite().all(1))
        return flipped.flatten(1) if flipped.dim() > 1 else flipped[:, None]

    def _settled(
        self, before: Tensor, after: Tensor, allowed: Tensor | None, share: float
    ) -> Tensor:
        """The class is the same, and each logit moved by less than a share of the margin, the gap
        between the two largest logits.
        """
        same = ~self._flipped(before, after, None)
        if after.shape[1] < 2:
            return same
        first, second = after.topk(2, dim=1).values.unbind(1)
        still = (after - before).abs().amax(1) < share * (first - second)
        return same & still.view(same.shape)


@dataclass(frozen=True)
class _Squares(Task):
    """Mean squared error. A prediction changes if its gap exceeds a tolerance.

    Attributes:
        tolerance: the allowed move of a prediction, relative to the spread of the outputs.
        absolute: the allowed move in the units of the outputs; it replaces ``tolerance``.
    """

    tolerance: float = TOLERANCE
    absolute: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("tolerance", self.tolerance), ("absolute", self.absolute)):
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(
                    f"{name} must be a positive number, got {value!r}. A prediction that moves by "
                    "less counts as the same."
                )

    @property
    def metric_name(self) -> str:
        return "mse" if self.decision is None else "accuracy"

    def losses(self, output: Tensor, batch: Batch) -> Tensor:
        """The squared errors, averaged over the observed values of each sample: ``(batch,)``."""
        observed = ~batch.y.isnan()
        error = torch.where(observed, output - batch.y.nan_to_num(), 0.0).flatten(1)
        return error.square().sum(1) / observed.flatten(1).sum(1).clamp(min=1)

    def metrics(self, output: Tensor, batch: Batch) -> Tensor:
        """The losses; with ``decision``, whether outputs and targets lead to the same decision."""
        return (
            self.losses(output, batch)
            if self.decision is None
            else self.decided(output) == self.decided(batch.y)
        )

    def spread(self, reference: Tensor, reduce: Reduce | None = None) -> Tensor:
        """The standard deviation of each component of the reference, over samples and times.

        Values that are absent or not finite are left out.
        """
        own = self._by_component(reference).flatten(0, 1)
        own = own - self._component_mean(own, reduce)
        return self._component_mean(own.square(), reduce).sqrt()

    def allowed(
        self, reference: Tensor, residual: Tensor | None = None, reduce: Reduce | None = None
    ) -> Tensor:
        """The tolerance in the units of each output component."""
        spread = self.spread(reference, reduce)
        return (
            self.tolerance * spread
            if self.absolute is None
            else torch.full_like(spread, self.absolute)
        )

    def _component_mean(self, values: Tensor, reduce: Reduce | None) -> Tensor:
        """The mean of the finite values ``(…, components)`` over all but the last dimension."""
        known = values.isfinite()
        sums = torch.stack([torch.where(known, values, 0.0).sum(0), known.sum(0).to(values)])
        total, count = (sums if reduce is None else reduce(sums)).unbind(0)
        return total / count

    def difference(self, own: Tensor, reference: Tensor, reduce: Reduce = keep) -> float:
        """The power mean, of power 8, of the samples' gaps relative to the tolerance.

        Components in which the reference is constant are left out. The result is NaN if all are
        constant, as for a single sample, because there is no scale for a gap.
        """
        allowed = self.allowed(reference, None, reduce)
        gap = self.gap(own, reference, torch.where(allowed > 0, allowed, torch.inf))
        powers = torch.where((allowed > 0).any(), gap.double() ** POWER, torch.nan)
        return float(mean_over_ranks(powers, comparable(own, reference), reduce) ** (1 / POWER))

    def distance(self, own: Tensor, other: Tensor) -> Tensor:
        """The mean over components and times of the squared difference, as in the loss."""
        return self._mean_square(own, other, own.new_ones(()), (1, 2))

    def target(self, fidelity: float) -> float:
        """``fidelity ** (1/8)``.

        A power mean of this size implies that at most a share ``fidelity`` of the gaps exceeds the
        tolerance (Markov's inequality).
        """
        return float(fidelity ** (1 / POWER))

    def _flipped(self, own: Tensor, reference: Tensor, allowed: Tensor | None) -> Tensor:
        """The gap exceeds the tolerance."""
        return ~(self.gap(own, reference, allowed) <= 1)[:, None]

    def _settled(
        self, before: Tensor, after: Tensor, allowed: Tensor | None, share: float
    ) -> Tensor:
        """The gap is less than a share of the tolerance."""
        return (self.gap(before, after, allowed) < share)[:, None]

    def gap(self, own: Tensor, reference: Tensor, allowed: Tensor | None) -> Tensor:
        """RMS over components and times of (own - reference) / allowed: ``(batch,)``."""
        return self._mean_square(own, reference, allowed, (1, 2)).sqrt()

    def _mean_square(
        self, own: Tensor, reference: Tensor, allowed: Tensor | None, over: tuple[int, ...]
    ) -> Tensor:
        allowed = self.allowed(reference) if allowed is None else allowed
        difference = self._by_component(own) - self._by_component(reference)
        absent = self._absent(own) & self._absent(reference)
        unmoved = absent | (difference == 0)  # avoids 0 / 0 where the tolerance is 0
        relative = torch.where(unmoved, 0.0, difference / allowed).square()
        return relative.sum(over) / (~absent).expand_as(difference).sum(over).clamp(min=1)

    def _by_component(self, output: Tensor) -> Tensor:
        """Outputs as ``(batch, times, components)``."""
        return output.flatten(1).unsqueeze(1)

    def _absent(self, output: Tensor) -> Tensor:
        return torch.zeros(1, 1, 1, dtype=torch.bool, device=output.device)


@dataclass(frozen=True)
class Regression(_Squares):
    """Targets ``(batch, outputs)``: mean squared error."""

    name = "regression"


@dataclass(frozen=True)
class Sampler(_Squares):
    """Samples ``(batch, …)`` drawn from given noise. There are no targets, and no loss.

    A solver is judged by the RMS error of its samples, relative to the spread of the exact ones:
    over all numbers of a sample and all samples.
    """

    name = "sampler"
    needs_targets = False
    instead = (
        " The RMS error of the samples is judged: tolerance=… allows it to be such a share of "
        "their spread, absolute=… such a number in their units."
    )

    @property
    def metric_name(self) -> str:
        return "metric"

    def losses(self, output: Tensor, batch: Batch) -> Tensor:
        """NaN, ``(batch,)``: there is nothing to compare with."""
        return output.new_full((len(output),), torch.nan)

    def metrics(self, output: Tensor, batch: Batch) -> Tensor:
        """NaN, ``(batch,)``, likewise."""
        return self.losses(output, batch)

    def spread(self, reference: Tensor, reduce: Reduce | None = None) -> Tensor:
        """The RMS deviation of the reference from its mean over samples: ``(1,)``."""
        return super().spread(reference, reduce).square().mean().sqrt()[None]


@dataclass(frozen=True)
class TimeSeries(_Squares):
    """States ``(batch, times, channels, length)`` at given times, with the mean squared error over
    the observed ones.

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
            output = output.masked_fill(absent.to(output.device, non_blocking=True), torch.nan)
        return output, solution

    def allowed(
        self, reference: Tensor, residual: Tensor | None = None, reduce: Reduce | None = None
    ) -> Tensor:
        """The tolerance, or a tenth of the RMS residual of the measurements if that is larger.

        Changes far below the residual cannot be seen in the measurements.
        """
        own = super().allowed(reference, None, reduce)
        if residual is None or self.absolute is not None:
            return own
        squares = self._by_component(residual.to(reference)).flatten(0, 1).square()
        return own.maximum(RESIDUAL * self._component_mean(squares, reduce).nan_to_num().sqrt())

    def error_over_time(self, own: Tensor, reference: Tensor, allowed: Tensor) -> Tensor:
        """The gap at each time, as the RMS over components: ``(batch, times)``."""
        return self._mean_square(own, reference, allowed, (2,)).sqrt()

    def _by_component(self, output: Tensor) -> Tensor:
        return output.flatten(2)

    def _absent(self, output: Tensor) -> Tensor:
        return output.flatten(2).isnan().all(2, keepdim=True)


_TASKS: dict[str, type[Task]] = {
    task.name: task for task in (Classification, Regression, TimeSeries, Density, Sampler)
}
_DEFAULT = {name: kind() for name, kind in _TASKS.items()}


def get_task(name: str, **options: Any) -> Task:
    """Return the task of a name. Options that are None take the task's defaults.

    Raises:
        UsageError: the name is unknown, or the task does not have an option.
    """
    if name not in _TASKS:
        raise UsageError(
            f"task = {name!r} is unknown; known are {', '.join(_TASKS)}.{nearest(name, _TASKS)}"
        )
    given = {key: value for key, value in options.items() if value is not None}
    known = set(_TASKS[name].__dataclass_fields__)
    if not _TASKS[name].needs_targets:  # a mean decides
        known.remove("decision")
    if foreign := given.keys() - known:
        raise UsageError(
            f"{' and '.join(sorted(foreign))} does not go with {name}: leave it out, or pass "
            f"another task=….{_TASKS[name].instead}"
        )
    return _TASKS[name](**given) if given else _DEFAULT[name]
