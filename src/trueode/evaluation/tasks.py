"""What is learned: how a model is called for it, its loss, its metric, and when two predictions
count as different.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trueode.data import Batch
from trueode.errors import UsageError, calling, nearest
from trueode.solvers import Solution, Solver
from trueode.solvers.control import Reduce

TOLERANCE = 0.01
"""The gap, relative to the spread of the outputs, above which the prediction of a sample counts as
another one.
"""
NATS = 0.1  # by which a log density may move
RESIDUAL = 0.1  # share of the RMS residual of a measured series that its prediction may move
SHARPNESS = 4.0  # of the distributions whose variation stands for flips
POWER = 8  # of the power mean of gaps: the higher, the closer to what decides, the largest gaps, and the noisier

DecisionFunction = Callable[[Tensor], Tensor]
"""``decision(outputs)`` returns what is decided by outputs: ``(n,)`` or ``(n, …)`` of bool or
integers.
"""


def keep(x: Tensor) -> Tensor:
    """The sum over ranks, with one rank."""
    return x


def _mean(values: Tensor, reduce: Reduce) -> float:
    """The mean over the samples of all ranks."""
    total, count = reduce(
        torch.stack([values.double().sum(), values.new_tensor(len(values)).double()])
    ).tolist()
    return float(total / count)


def _finite(own: Tensor, reference: Tensor, reduce: Reduce) -> bool:
    """Whether there are no infinite numbers, and no others than the reference has that are absent
    (NaN), on any rank.
    """
    bad = own.isinf() | reference.isinf() | (own.isnan() != reference.isnan())
    return float(reduce(bad.double().sum())) == 0


@dataclass(frozen=True)
class Task(ABC):
    """One of classification, regression, time series, density. All sums and tests are over samples,
    the first dimension.

    Attributes:
        decision: what is decided by outputs, if it is not what the task itself takes for a
            prediction.
    """

    decision: DecisionFunction | None = None

    name = ""

    @property
    def metric_name(self) -> str:
        """What `metrics` gives."""
        return "accuracy"

    def predict(
        self, model: nn.Module, batch: Batch, solver: Solver | None = None, **how: Any
    ) -> tuple[Tensor, Solution[Any]]:
        """The output of a `NeuralODE` ``(batch, …)`` for the inputs of a batch, and its solution;
        ``how`` goes to the model.
        """
        output, solution = model(batch.x, solver, return_solution=True, **how)
        return output, solution

    @abstractmethod
    def losses(self, output: Tensor, batch: Batch) -> Tensor:
        """The losses of the predictions: ``(batch,)``, or ``(batch, …)`` where a sample has
        several.
        """

    @abstractmethod
    def metrics(self, output: Tensor, batch: Batch) -> Tensor:
        """The metric of the predictions, of the shape of `losses`."""

    def loss_sum(self, output: Tensor, batch: Batch) -> Tensor:
        """The sum of the samples' losses."""
        return self.losses(output, batch).sum()

    def metric_sum(self, output: Tensor, batch: Batch) -> Tensor:
        """The sum of the samples' metrics."""
        return self.metrics(output, batch).sum()

    def spread(self, reference: Tensor, reduce: Reduce | None = None) -> Tensor | None:
        """What differences of outputs are relative to, for each component; ``reduce`` sums over the
        ranks that share a batch.
        """
        return None

    def allowed(
        self, reference: Tensor, residual: Tensor | None = None, reduce: Reduce | None = None
    ) -> Tensor | None:
        """By how much numbers may move and count as the same prediction, for each component; None
        where there are classes.

        Args:
            reference: outputs.
            residual: outputs under the training solver less what was measured, of the same shape.
            reduce: sums over the ranks that share a batch.
        """
        return None

    @abstractmethod
    def difference(self, own: Tensor, reference: Tensor, reduce: Reduce = keep) -> float:
        """How much predictions differ from those in ``reference``: a continuous stand-in for the
        share of flips.

        It falls as the error of a solver does; infinite where outputs are not finite. ``reduce``
        sums over the ranks that share a batch.
        """

    @abstractmethod
    def target(self, fidelity: float) -> float:
        """The `difference` that goes with a share of flips."""

    def flipped(self, own: Tensor, reference: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Which predictions are other ones than in ``reference``: ``(batch, predictions)`` of bool;
        not finite counts as other.
        """
        if self.decision is None:
            return self._flipped(own, reference, allowed)
        finite = own.isfinite().flatten(1).all(1) & reference.isfinite().flatten(1).all(1)
        return (self.decided(own) != self.decided(reference)) | ~finite[:, None]

    def settled(
        self, before: Tensor, after: Tensor, allowed: Tensor | None = None, share: float = 0.1
    ) -> Tensor:
        """Which predictions are the same, and moved by less than a share of what could change them:
        ``(batch, predictions)``.
        """
        if self.decision is None:
            return self._settled(before, after, allowed, share)
        # what a function decides by is not known: it must not decide otherwise for moves that are 1
        # / share times as large
        moves = (after, before, after + (after - before) / share, after - (after - before) / share)
        return ~torch.stack([self.flipped(move, after) for move in moves]).any(0)

    @abstractmethod
    def _flipped(self, own: Tensor, reference: Tensor, allowed: Tensor | None) -> Tensor: ...

    @abstractmethod
    def _settled(
        self, before: Tensor, after: Tensor, allowed: Tensor | None, share: float
    ) -> Tensor: ...

    def decided(self, outputs: Tensor) -> Tensor:
        """What the function ``decision`` decides, ``(n, predictions)``.

        Raises:
            UsageError: it raised, or returned something else.
        """
        assert self.decision is not None
        advice = (
            " It takes the outputs and returns what they decide, e.g. lambda outputs: outputs > 0."
        )
        with calling(f"decision=… failed on outputs of shape {tuple(outputs.shape)}", advice):
            found = self.decision(outputs)
        if not isinstance(found, Tensor) or found.dim() == 0 or len(found) != len(outputs):
            given = (
                f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            )
            raise UsageError(
                f"decision=… returned {given} for {len(outputs)} samples; it must return a tensor with samples first, e.g. "
                "lambda outputs: outputs > 0."
            )
        return found.flatten(1) if found.dim() > 1 else found[:, None]


@dataclass(frozen=True)
class Classification(Task):
    """Labels ``(batch,)`` from logits ``(batch, classes)``, or ``(batch, …)`` from
    ``(batch, classes, …)``: cross-entropy, accuracy.

    Attributes:
        ignore_index: the label of predictions that do not count.
    """

    ignore_index: int = -100

    name = "classification"

    def losses(self, output: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(output, batch.y, reduction="none", ignore_index=self.ignore_index)

    def loss_sum(self, output: Tensor, batch: Batch) -> Tensor:  # of each training step: one call
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
        """The total variation of sharpened distributions over classes, half the sum of |p - p'|,
        mean over samples: 0 to 1.

        Logits count four times: in this way the difference is close to the share of flips, whether
        a model is sure of its predictions or not. It does not see flips between classes that are
        equally likely, as before a model has learned anything.
        """
        if not _finite(own, reference, reduce):
            return float("inf")
        variation = ((SHARPNESS * own).softmax(1) - (SHARPNESS * reference).softmax(1)).abs().sum(
            1
        ) / 2
        return _mean(variation, reduce)

    def target(self, fidelity: float) -> float:
        """The share itself."""
        return fidelity

    def _flipped(self, own: Tensor, reference: Tensor, allowed: Tensor | None) -> Tensor:
        """The most likely class is another one."""
        same = own.argmax(1) == reference.argmax(1)
        flipped = ~(same & own.isfinite().all(1) & reference.isfinite().all(1))
        return flipped.flatten(1) if flipped.dim() > 1 else flipped[:, None]

    def _settled(
        self, before: Tensor, after: Tensor, allowed: Tensor | None, share: float
    ) -> Tensor:
        """The class is the same, and no logit moved by a share of the margin between the two
        largest.
        """
        same = ~self._flipped(before, after, None)
        if after.shape[1] < 2:
            return same
        first, second = after.topk(2, dim=1).values.unbind(1)
        still = (after - before).abs().amax(1) < share * (first - second)
        return same & still.view(same.shape)


@dataclass(frozen=True)
class _Squares(Task):
    """Mean squared error; predictions differ by their gap.

    Attributes:
        tolerance: what a prediction may move, relative to the spread of the outputs.
        absolute: the same in the units of the outputs, in the place of ``tolerance``.
    """

    tolerance: float = TOLERANCE
    absolute: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("tolerance", self.tolerance), ("absolute", self.absolute)):
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(
                    f"{name} must be a positive number, got {value!r}: it is how far a prediction may move and count as the same."
                )

    @property
    def metric_name(self) -> str:
        return "mse" if self.decision is None else "accuracy"

    def losses(self, output: Tensor, batch: Batch) -> Tensor:
        """The samples' squared errors, averaged over what was observed: ``(batch,)``."""
        observed = ~batch.y.isnan()
        error = torch.where(observed, output - batch.y.nan_to_num(), 0.0).flatten(1)
        return error.square().sum(1) / observed.flatten(1).sum(1).clamp(min=1)

    def metrics(self, output: Tensor, batch: Batch) -> Tensor:
        """The losses; with a function ``decision``, whether it decides by outputs as by targets."""
        return (
            self.losses(output, batch)
            if self.decision is None
            else self.decided(output) == self.decided(batch.y)
        )

    def spread(self, reference: Tensor, reduce: Reduce | None = None) -> Tensor:
        """The RMS deviation of the reference outputs from their mean, over samples and times, for
        each component.

        Values that are absent or not finite are left out.
        """
        own = self._by_component(reference).flatten(0, 1)
        own = own - self._component_mean(own, reduce)
        return self._component_mean(own.square(), reduce).sqrt()

    def allowed(
        self, reference: Tensor, residual: Tensor | None = None, reduce: Reduce | None = None
    ) -> Tensor:
        """The tolerance, for each component of the outputs."""
        spread = self.spread(reference, reduce)
        return (
            self.tolerance * spread
            if self.absolute is None
            else torch.full_like(spread, self.absolute)
        )

    def _component_mean(self, values: Tensor, reduce: Reduce | None) -> Tensor:
        """The mean of known values ``(…, components)``."""
        known = values.isfinite()
        sums = torch.stack([torch.where(known, values, 0.0).sum(0), known.sum(0).to(values)])
        total, count = (sums if reduce is None else reduce(sums)).unbind(0)
        return total / count

    def difference(self, own: Tensor, reference: Tensor, reduce: Reduce = keep) -> float:
        """The gap relative to the tolerance: its power mean over samples, of the power 8.

        Components in which the reference is constant are left out; NaN if it is constant in all, as
        a single sample is: there is nothing to measure a gap by.
        """
        if not _finite(own, reference, reduce):
            return float("inf")
        allowed = self.allowed(reference, None, reduce)
        if not bool((allowed > 0).any()):
            return float("nan")
        gap = self.gap(own, reference, torch.where(allowed > 0, allowed, torch.inf))
        return float(_mean(gap.double() ** POWER, reduce) ** (1 / POWER))

    def target(self, fidelity: float) -> float:
        """``fidelity ** (1/8)``: with that power mean, the share of gaps above the tolerance is at
        most ``fidelity`` (Markov).
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
        unmoved = absent | (difference == 0)  # no gap, even where nothing is allowed
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
class Density(_Squares):
    """Log densities of the samples ``(batch,)``, in nats: a prediction is another one where it
    moves by more than 0.1.
    """

    absolute: float | None = NATS

    name = "density"


@dataclass(frozen=True)
class TimeSeries(_Squares):
    """States ``(batch, times, channels, length)`` at given times: mean squared error over the
    observed ones.

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

    def allowed(
        self, reference: Tensor, residual: Tensor | None = None, reduce: Reduce | None = None
    ) -> Tensor:
        """The tolerance; where there are measurements, at least a tenth of the RMS residual: what
        they cannot see is no change.
        """
        own = super().allowed(reference, None, reduce)
        if residual is None or self.absolute is not None:
            return own
        squares = self._by_component(residual.to(reference)).flatten(0, 1).square()
        return own.maximum(RESIDUAL * self._component_mean(squares, reduce).nan_to_num().sqrt())

    def error_over_time(self, own: Tensor, reference: Tensor, allowed: Tensor) -> Tensor:
        """The gap at each time, RMS over components: ``(batch, times)``."""
        return self._mean_square(own, reference, allowed, (2,)).sqrt()

    def _by_component(self, output: Tensor) -> Tensor:
        return output.flatten(2)

    def _absent(self, output: Tensor) -> Tensor:
        return output.flatten(2).isnan().all(2, keepdim=True)


_TASKS: dict[str, type[Task]] = {
    task.name: task for task in (Classification, Regression, TimeSeries, Density)
}
_DEFAULT = {name: kind() for name, kind in _TASKS.items()}


def get_task(name: str, **options: Any) -> Task:
    """The task of a name, with options of its class that are not None.

    Raises:
        UsageError: an unknown name, or an option that the task does not have.
    """
    if name not in _TASKS:
        raise UsageError(
            f"task = {name!r} is unknown; known are {', '.join(_TASKS)}.{nearest(name, _TASKS)}"
        )
    given = {key: value for key, value in options.items() if value is not None}
    if foreign := given.keys() - _TASKS[name].__dataclass_fields__:
        raise UsageError(
            f"{' and '.join(sorted(foreign))} does not go with {name}: leave it out, or give another task=…."
        )
    return _TASKS[name](**given) if given else _DEFAULT[name]
