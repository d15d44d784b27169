"""Anything that can be run under a solver: a model on samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from trueode.data import Batch, Samples
from trueode.errors import DataError, UsageError, calling
from trueode.evaluation.metrics import BATCH, Evaluation, at_once, batches_of, evaluating
from trueode.evaluation.tasks import Classification, Task, TimeSeries
from trueode.models import NeuralODE
from trueode.solvers import FixedStep, Solution, Solver
from trueode.solvers.clock import seconds
from trueode.solvers.problem import Problem
from trueode.solvers.solving import replacement

Metric = Callable[[Tensor, Tensor], Tensor]
"""A metric of one's own: ``metric(outputs, y)`` returns a value for each sample, ``(n,)``."""


class Solving(Protocol):
    """Solves the problems that a model poses in a way of its own, batch by batch."""

    def begin(self, rows: Tensor) -> None:
        """A batch begins, of these rows of the runnable; the problems that follow are those of its
        ODE blocks, in order.
        """

    def __call__(self, problem: Problem, samples: bool) -> Solution[Any]:
        """Solve a problem; ``samples``: whether the first dimension of its state counts the rows of
        the batch.
        """


class Part(NamedTuple):
    """Of what and how a model is run.

    Attributes:
        indices: of the rows that are wanted ``(m,)``, ascending; None: all.
        double: whether in double precision.
        whole: whether batches stay whole where some of their rows are wanted: for solvers whose
            steps a batch shares.
        solving: what solves all problems of the model; None: `solve_problem`.
    """

    indices: Tensor | None = None
    double: bool = False
    whole: bool = False
    solving: Solving | None = None


ALL = Part()


class Runnable(ABC):
    """A model on samples that can be run under any solver.

    Attributes:
        task: what is learned, and what a prediction is.
        n: rows of the outputs: samples, or predictions of which some belong to one sample
            (``groups``).
        y: targets of all rows, on the CPU; None where there are none.
        t: times of a time series, ``(times,)`` or ``(n, times)`` with NaN where a row has none;
            None where they are not known.
        mask: which predictions count, ``(n, …)`` of bool; None: all.
        groups: ``(n,)``: rows of one number count as one sample; None: each is one.
        held_out: whether the model was not trained on the samples: only then targets tell of its
            performance.
        double: whether the model can be run in double precision.
        separable: whether a sample's output is the same in any batch, so that a part of a batch may
            be run by itself.
        per_sample: whether an adaptive solver can control each sample by itself.
        metric: of one's own, in the place of the task's.
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
        """Run the model under a solver (None: the training solver), with its outputs kept. A solver
        that fails leaves NaN.
        """

    @property
    def metric_name(self) -> str:
        """What the metric is called."""
        return (
            self.task.metric_name
            if self.metric is None
            else getattr(self.metric, "__name__", "metric")
        )

    def grid(self, solver: Any) -> Any:
        """What is equal for solvers of the same method that take the same steps, where it is known
        beforehand; else None.
        """
        return None

    def scored(self, found: Evaluation) -> Evaluation:
        """The same with the means of loss and metric; without them where the solver failed.

        Raises:
            UsageError: the outputs are of half precision.
        """
        if found.outputs.dtype in (torch.float16, torch.bfloat16):
            raise UsageError(
                f"The model computes in {found.outputs.dtype}, whose rounding hides what a solver does: audit it in single "
                "precision, model.float(), with inputs of float32."
            )
        if found.status != "success":
            return found
        losses, metrics = self.losses(found.outputs), self.metrics(found.outputs)
        if losses is None or metrics is None:
            return found
        return replace(found, loss=self.mean(losses), metric=self.mean(metrics))

    def mean(self, values: Tensor) -> float:
        """Of values of the predictions that count; of all rows where rows of several predictions
        have one value each.
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
            UsageError: a metric of one's own raised, or returned something else.
        """
        y = self._targets(outputs)
        if y is None or self.y is None:
            return None
        if self.metric is None:
            return _by_prediction(self.task.metrics(outputs, Batch(y, y)))
        given = self.y[: len(outputs)]
        with calling(
            f"The metric failed on outputs of shape {tuple(outputs.shape)} and targets of shape {tuple(given.shape)}"
        ):
            values = self.metric(outputs, given)
        if not isinstance(values, Tensor) or values.shape != (len(outputs),):
            raise UsageError(
                f"The metric must return a value for each of the {len(outputs)} samples, a tensor of shape ({len(outputs)},); "
                f"it returned {tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__}."
            )
        return _by_prediction(values)

    def residual(self, outputs: Tensor) -> Tensor | None:
        """Outputs less what was measured; None where nothing was."""
        y = self._targets(outputs)
        return outputs - y if y is not None and isinstance(self.task, TimeSeries) else None

    def finite(self, outputs: Tensor, rows: Tensor | None = None) -> Tensor:
        """Which of some rows, of the first ones if not given, have finite outputs at all times that
        they have: ``(rows,)`` of bool.
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
        """Which times rows do not have, ``(n, times)`` of bool; None where all have all."""
        return self.t.isnan() if self.t is not None and self.t.dim() == 2 else None

    def valid(self, n: int, k: int) -> Tensor:
        """Which predictions of the first rows count: ``(n, k)`` of bool. Labels to ignore and masks
        take others away.
        """
        count = torch.ones(n, k, dtype=torch.bool, device="cpu")
        for each in self._counting(n):
            if each.shape[1] not in (1, k):
                raise DataError(
                    f"A mask or labels of shape {tuple(each.shape)} do not fit the {k} predictions of each of {n} samples."
                )
            count &= each
        return count

    def _counting(self, n: int) -> list[Tensor]:
        given = [] if self.mask is None else [self.mask]
        if self.y is not None and isinstance(self.task, Classification):
            given.append(self.y != self.task.ignore_index)
        return [each[:n].reshape(n, -1) for each in given]

    def drawn(self, n: int, k: int) -> Tensor:
        """One prediction of each sample, by chance but always the same: numbers
        ``row * k + prediction``, ascending.

        Bounds of a share need independent predictions, and those of one sample are not.

        Raises:
            DataError: there is none that counts.
        """
        valid = self.valid(n, k).flatten()
        if not bool(valid.any()):
            raise DataError(
                "No prediction counts: all labels are to be ignored, or the mask leaves nothing."
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
            DataError: they do not fit the outputs.
        """
        if self.y is None:
            return None
        y = self.y[: len(outputs)]
        if isinstance(self.task, Classification):
            return _labels(y, outputs, self.task.ignore_index)
        if y.numel() != outputs.numel():
            raise DataError(
                f"The targets have shape {tuple(y.shape)} and the outputs {tuple(outputs.shape)}: they must agree. Say with "
                "call=… how the model is called."
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
            f"Classification needs labels of shape {('n', *shape[1:])}, whole numbers; the targets are {y.dtype} of shape "
            f"{tuple(y.shape)}.".replace("'", "").replace(",)", ")")
        )
    labels = y.long().reshape(shape)
    known = labels[labels != ignored]
    if len(known) and not 0 <= int(known.min()) <= int(known.max()) < outputs.shape[1]:
        raise DataError(
            f"The labels lie between {int(known.min())} and {int(known.max())}, but the model has {outputs.shape[1]} classes."
        )
    return labels


def refuse_unknown(what: str, x: Any) -> None:
    """Check that numbers are numbers.

    Raises:
        DataError: some are NaN or infinite.
    """
    if isinstance(x, Tensor) and x.is_floating_point() and not bool(x.isfinite().all()):
        rows = int((~x.isfinite()).reshape(len(x), -1).any(1).sum()) if x.dim() else 1
        raise DataError(
            f"The {what} of {rows} samples hold NaN or infinite numbers: nothing can be said of such samples. Leave them out, or "
            "fill the gaps."
        )


@dataclass
class ModelOnSamples(Runnable):
    """A `NeuralODE` on samples of a data set.

    Args:
        model: the model.
        samples: the samples; targets without any number are none.
        task: what is learned.
        solver: the training solver.
        batch_size: samples solved at once under a solver, which may control the error of a batch.
        held_out: whether the model was not trained on them.
    """

    model: NeuralODE
    samples: Samples
    task: Task
    solver: Solver
    batch_size: int = BATCH
    held_out: bool = True
    per_sample = True

    def __post_init__(self) -> None:
        if not len(self.samples):
            raise DataError("The data holds no samples.")
        self.n, self.t = len(self.samples), self.samples.t
        self.y = self.samples.y.cpu() if self.samples.y.numel() else None
        if hasattr(self.samples, "x"):
            refuse_unknown("inputs", self.samples.x)
        if self.task.name == "regression":
            refuse_unknown("targets", self.y)

    def first(self, n: int) -> ModelOnSamples:
        """The same model on the first samples."""
        return self if n >= self.n else replace(self, samples=self.samples.first(n))

    def run(self, solver: Solver | None = None, part: Part = ALL) -> Evaluation:
        """See `Runnable`."""
        solver = solver or self.solver
        model = self._in_double if part.double else self.model
        samples = self.samples.to(torch.float64) if part.double else self.samples
        rows = None
        if part.indices is not None:
            taken = part.indices
            if part.whole:
                starts = (taken // self.batch_size).unique() * self.batch_size  # type: ignore[no-untyped-call]
                taken = (starts[:, None] + torch.arange(self.batch_size, device="cpu")).flatten()
                taken = taken[taken < self.n]
                rows = torch.searchsorted(taken, part.indices)
            samples = samples.take(taken)
        size = self.batch_size
        if part.solving is not None:  # the exact flow of a sample is the same in any batch
            size = max(
                size, at_once(samples.batch(torch.zeros(1, dtype=torch.long, device="cpu")).x)
            )
        outputs, states, status, message, statuses = (
            list[Tensor](),
            list[Tensor](),
            "success",
            "",
            tuple[str, ...](),
        )
        nfe = n_steps = n_rejected = 0.0
        begun = 0
        with evaluating(model), _solving(part.solving):
            for batch in batches_of(samples, size, model):
                if part.solving is not None:
                    numbers = torch.arange(begun, begun + len(batch.x), device="cpu")
                    part.solving.begin(numbers if part.indices is None else taken[numbers])
                    begun += len(batch.x)
                output, solution = self.task.predict(model, batch, solver, on_failure="return")
                lost = solution.lost()
                if bool(lost.any()):
                    output = output.masked_fill(lost.view(-1, *[1] * (output.dim() - 1)), torch.nan)
                    if status == "success":
                        status, message = solution.status, solution.message
                outputs.append(output.cpu())
                statuses += solution.statuses or ()
                if isinstance(solution.z, Tensor):
                    states.append(
                        solution.z.masked_fill(
                            lost.view(-1, *[1] * (solution.z.dim() - 1)), torch.nan
                        )
                        .flatten(1)
                        .cpu()
                    )
                n = len(batch.x) / len(samples)
                nfe, n_steps = nfe + n * solution.nfe, n_steps + n * solution.mean_steps
                n_rejected += n * float(
                    torch.as_tensor(solution.n_rejected, dtype=torch.float64, device="cpu").mean()
                )
        kept, final = torch.cat(outputs), torch.cat(states) if len(states) == len(outputs) else None
        if rows is not None:
            kept, final = kept[rows], None if final is None else final[rows]
        found = Evaluation(len(kept), nfe=nfe, n_steps=n_steps, n_rejected=n_rejected, solver=solver, outputs=kept,
                           states=final, status=status, message=message,
                           statuses=() if rows is not None else statuses)  # fmt: skip
        return self.scored(found) if part.indices is None else found

    def grid(self, solver: Any) -> Any:
        """The method's name and the ends of its steps as fractions of the interval."""
        if not isinstance(solver, FixedStep):
            return None
        return solver.name, tuple(round(x, 12) for x in solver.fractions(self.length))

    @property
    def length(self) -> float:
        """Of the interval."""
        return abs(seconds(self.model.t[1]) - seconds(self.model.t[0]))

    @cached_property
    def _in_double(self) -> NeuralODE:
        model = deepcopy(self.model).double()
        model.reduce = None
        return model


@contextmanager
def _solving(solving: Solving | None) -> Iterator[None]:
    """All problems are solved in a way of its own."""
    if solving is None:
        yield
        return

    def solve(problem: Problem) -> Solution[Any]:
        return solving(problem, isinstance(problem.z0, Tensor) and problem.z0.dim() > 0)

    token = replacement.set(solve)
    try:
        yield
    finally:
        replacement.reset(token)
