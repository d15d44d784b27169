"""`Runnable`: a model on samples that can be run under any solver."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from trueode.data import Batch
from trueode.errors import DataError, UsageError, calling
from trueode.evaluation.metrics import Evaluation
from trueode.evaluation.task import Task
from trueode.evaluation.tasks import Classification, TimeSeries
from trueode.solvers import Solution, Solver
from trueode.solvers.problem import Problem

Metric = Callable[[Tensor, Any], Tensor]
"""A user's metric: ``metric(outputs, y)`` returns a value for each sample, ``(n,)``. Densities and
samplers need no targets: ``y`` may be None, and the value may be a single one of the whole set.
"""


class Solving(Protocol):
    """A replacement for the solver: solves the problems of a model, batch by batch.

    With a true attribute ``stepped`` it is given the steps that the solver takes without it: those
    of other libraries also end at the times that a model asks for.
    """

    def begin(self, rows: Tensor) -> None:
        """Start a batch of these rows of the runnable.

        The problems that follow belong to the model's ODE blocks, in order.
        """

    def __call__(self, problem: Problem, samples: bool) -> Solution[Any]:
        """Solve a problem.

        Args:
            problem: the problem.
            samples: whether the first dimension of the state counts the rows of the batch.
        """


class Part(NamedTuple):
    """Which rows a model is run on, and how.

    Attributes:
        indices: the row numbers ``(m,)``, ascending; None: all rows.
        double: whether to compute in double precision.
        whole: whether to solve the whole batch of each row, for solvers whose steps a batch
            shares.
        solving: the replacement for the solver; None: `solve_problem`.
    """

    indices: Tensor | None = None
    double: bool = False
    whole: bool = False
    solving: Solving | None = None


ALL = Part()


class Runnable(ABC):
    """A model on samples that can be run under any solver.

    Attributes:
        task: defines the loss, the metric and the predictions.
        n: number of output rows. A row is a sample, unless ``groups`` joins several.
        y: targets of all rows, on the CPU; None without targets.
        t: times of a time series, ``(times,)``, or ``(n, times)`` with NaN where a row has none;
            None if unknown.
        mask: which predictions count, ``(n, …)`` of bool; None: all.
        groups: the sample number of each row ``(n,)``; None: each row is a sample.
        held_out: whether the model was not trained on the samples. Only then is its performance
            compared.
        double: whether the model can be run in double precision.
        separable: whether a sample's output does not depend on its batch, so that a part of a batch
            can be run alone.
        per_sample: whether an adaptive solver can control the error of each sample separately.
        metric: the user's metric; it replaces the task's.
    """

    task: Task
    n: int
    y: Tensor | None = None
    t: Tensor | None = None
    mask: Tensor | None = None
    groups: Tensor | None = None
    held_out: bool = True
    double: bool = True
    separable: bool = True
    per_sample: bool = False
    metric: Metric | None = None

    @abstractmethod
    def run(self, solver: Solver | None = None, part: Part = ALL) -> Evaluation:
        """Run the model and keep its outputs, with NaN where the solver fails.

        Args:
            solver: the solver; None: the training solver.
            part: which rows to run, and how.
        """

    @property
    def inputs(self) -> Tensor | None:
        """The inputs of all rows, ``(n, …)``; None if they are no single tensor."""
        return None

    def at(self, inputs: Tensor) -> Runnable | None:
        """The same model at other inputs ``(m, …)``, without targets; None if it cannot be."""
        return None

    @property
    def metric_name(self) -> str:
        """The name of the metric."""
        return (
            self.task.metric_name
            if self.metric is None
            else getattr(self.metric, "__name__", "metric")
        )

    def grid(self, solver: Any) -> Any:
        """A key that solvers of one method share if they take the same steps; None if these are
        unknown before the solve.
        """
        return None

    def scored(self, found: Evaluation) -> Evaluation:
        """Add mean loss and mean metric to an evaluation, unless the solver failed.

        Raises:
            UsageError: the outputs have half precision.
        """
        if found.outputs.dtype in (torch.float16, torch.bfloat16):
            raise UsageError(
                f"The model computes in {found.outputs.dtype}, whose rounding hides the errors of "
                "solvers. Audit it in single precision: model.float(), with inputs of float32."
            )
        if found.status != "success":
            return found
        losses, metrics = self.losses(found.outputs), self.metrics(found.outputs)
        if losses is None or metrics is None:
            return found
        return replace(found, loss=self.mean(losses), metric=self.mean(metrics))

    def mean(self, values: Tensor) -> float:
        """The mean over the predictions that count.

        A row of several predictions may have a single value; the mean is then over all rows.
        """
        n, k = values.shape
        one = k == 1 and any(given.shape[1] > 1 for given in self._counting(n))
        return float((values if one else values[self.valid(n, k)]).mean())

    def losses(self, outputs: Tensor) -> Tensor | None:
        """The loss of each prediction, ``(rows, predictions)`` in float64; None without targets."""
        y = self._targets(outputs)
        return None if y is None else _by_prediction(self.task.losses(outputs, Batch(y, y)))

    def metrics(self, outputs: Tensor) -> Tensor | None:
        """The metric of each prediction, ``(rows, predictions)`` in float64; None without targets.

        Raises:
            UsageError: the user's metric failed, or did not return a value for each sample.
        """
        y = self._targets(outputs)
        if y is None:
            return None
        if self.metric is None:
            return _by_prediction(self.task.metrics(outputs, Batch(y, y)))
        given = None if self.y is None else self.y[: len(outputs)]
        targets = "no targets" if given is None else f"targets of shape {tuple(given.shape)}"
        with calling(f"The metric failed on outputs of shape {tuple(outputs.shape)} and {targets}"):
            values = self.metric(outputs, given)
        if isinstance(values, Tensor) and values.dim() == 0 and not self.task.needs_targets:
            values = values.expand(len(outputs))  # of the whole set
        if not isinstance(values, Tensor) or values.shape != (len(outputs),):
            returned = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise UsageError(
                f"The metric must return a value for each of the {len(outputs)} samples, a tensor "
                f"of shape ({len(outputs)},); it returned {returned}."
            )
        return _by_prediction(values)

    def residual(self, outputs: Tensor) -> Tensor | None:
        """Outputs minus measurements; None if the targets are not measurements."""
        y = self._targets(outputs)
        return outputs - y if y is not None and isinstance(self.task, TimeSeries) else None

    def finite(self, outputs: Tensor, rows: Tensor | None = None) -> Tensor:
        """Which rows have finite outputs at all their times, ``(rows,)`` of bool.

        Args:
            outputs: outputs of the rows.
            rows: the row numbers; None: the first rows.
        """
        known = outputs.isfinite().flatten(1)
        if (
            self.absent is not None
            and outputs.dim() > 1
            and outputs.shape[1] == self.absent.shape[1]
        ):
            absent = self.absent[: len(outputs)] if rows is None else self.absent[rows]
            known = outputs.isfinite().flatten(2).all(2) | (
                absent & outputs.isnan().flatten(2).all(2)
            )
        return known.all(1)

    @property
    def absent(self) -> Tensor | None:
        """Which times are absent in a row, ``(n, times)`` of bool; None if none is."""
        return self.t.isnan() if self.t is not None and self.t.dim() == 2 else None

    def valid(self, n: int, k: int) -> Tensor:
        """Which predictions of the first rows count, ``(n, k)`` of bool.

        The mask and the ignored label exclude the others.

        Raises:
            DataError: the mask or the labels do not fit the predictions.
        """
        count = torch.ones(n, k, dtype=torch.bool, device="cpu")
        for each in self._counting(n):
            if each.shape[1] not in (1, k):
                raise DataError(
                    f"A mask or labels of shape {tuple(each.shape)} do not fit the {k} predictions "
                    f"of each of {n} samples."
                )
            count &= each
        return count

    def _counting(self, n: int) -> list[Tensor]:
        given = [] if self.mask is None else [self.mask]
        if self.y is not None and isinstance(self.task, Classification):
            given.append(self.y != self.task.ignore_index)
        return [each[:n].reshape(n, -1) for each in given]

    def drawn(self, n: int, k: int) -> Tensor:
        """Draw one prediction of each sample, with a fixed seed.

        The bounds of a share need independent predictions; those of one sample are dependent.

        Returns:
            Numbers ``row * k + prediction``, ascending.

        Raises:
            DataError: no prediction counts.
        """
        valid = self.valid(n, k).flatten()
        if not bool(valid.any()):
            raise DataError(
                "No prediction counts: all labels are ignored, or the mask excludes everything."
            )
        if k == 1 and self.groups is None:
            return valid.nonzero()[:, 0]
        order = torch.rand(
            n * k, generator=torch.Generator("cpu").manual_seed(0), device="cpu"
        ).argsort()
        order = order[valid[order]]
        order = order[self.samples_of(n, k)[order].argsort(stable=True)]
        sample = self.samples_of(n, k)[order]
        first = torch.cat(
            [torch.ones(1, dtype=torch.bool, device="cpu"), sample[1:] != sample[:-1]]
        )
        return order[first].sort().values

    def samples_of(self, n: int, k: int) -> Tensor:
        """The sample that each prediction belongs to, ``(n * k,)``."""
        rows = torch.arange(n, device="cpu") if self.groups is None else self.groups[:n]
        return rows.repeat_interleave(k)

    def _targets(self, outputs: Tensor) -> Tensor | None:
        """The targets of the first rows, in the form that the task's loss and metric need.

        Raises:
            DataError: the targets do not fit the outputs.
        """
        if not self.task.needs_targets:
            return outputs  # they are ignored
        if self.y is None:
            return None
        y = self.y[: len(outputs)]
        if isinstance(self.task, Classification):
            return _labels(y, outputs, self.task.ignore_index)
        if y.numel() != outputs.numel():
            raise DataError(
                f"The targets have shape {tuple(y.shape)} and the outputs {tuple(outputs.shape)}: "
                "they must agree. If the model is not called as model(x), pass call=…."
            )
        y = y.to(outputs.dtype).reshape(outputs.shape)
        if self.absent is not None and outputs.shape[1] == self.absent.shape[1]:
            y = y.masked_fill(
                self.absent[: len(y)].view(*outputs.shape[:2], *[1] * (y.dim() - 2)), torch.nan
            )
        return y


def _by_prediction(values: Tensor) -> Tensor:
    values = values.double()
    return values.flatten(1) if values.dim() > 1 else values[:, None]


def _labels(y: Tensor, outputs: Tensor, ignored: int) -> Tensor:
    shape = (len(outputs), *outputs.shape[2:])
    if y.numel() != torch.Size(shape).numel() or (
        y.is_floating_point() and bool((y != y.round()).any())
    ):
        raise DataError(
            f"Classification needs labels of shape {('n', *shape[1:])}, whole numbers; the "
            f"targets are {y.dtype} of shape {tuple(y.shape)}.".replace("'", "").replace(",)", ")")
        )
    labels = y.long().reshape(shape)
    known = labels[labels != ignored]
    if len(known) and not 0 <= int(known.min()) <= int(known.max()) < outputs.shape[1]:
        signs = known.unique().tolist() == [-1, 1]  # type: ignore[no-untyped-call]
        raise DataError(
            f"The labels lie between {int(known.min())} and {int(known.max())}, but the model has "
            f"{outputs.shape[1]} classes."
            f"{' For signs pass task=regression and decision=torch.sign.' if signs else ''}"
        )
    return labels


def refuse_unknown(what: str, x: Any) -> None:
    """Check that all numbers are finite.

    Raises:
        DataError: some are NaN or infinite.
    """
    if isinstance(x, Tensor) and x.is_floating_point() and not bool(x.isfinite().all()):
        rows = int((~x.isfinite()).reshape(len(x), -1).any(1).sum()) if x.dim() else 1
        raise DataError(
            f"The {what} of {rows} samples hold NaN or infinite numbers. Leave such samples "
            "out, or fill the gaps."
        )
