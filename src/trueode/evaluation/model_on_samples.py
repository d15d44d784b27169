"""A `NeuralODE` on samples of a data set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from trueode.data import Samples, Split
from trueode.errors import DataError
from trueode.evaluation.metrics import BATCH, Evaluation, at_once, batches_of, evaluating
from trueode.evaluation.runnable import ALL, Part, Runnable, Solving, refuse_unknown
from trueode.evaluation.task import Task
from trueode.models import NeuralODE
from trueode.solvers import FixedStep, Solution, Solver
from trueode.solvers.clock import seconds
from trueode.solvers.problem import Problem
from trueode.solvers.solving import replacement


@dataclass
class ModelOnSamples(Runnable):
    """A `NeuralODE` on samples of a data set.

    Args:
        model: the model.
        samples: the samples; an empty tensor of targets means no targets.
        task: the task.
        solver: the training solver.
        batch_size: samples of a batch. The result of a solver that controls the error of a batch
            depends on it.
        held_out: whether the model was not trained on the samples.

    Raises:
        DataError: there are no samples, or some are not finite.
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
        if not self.task.needs_targets:
            first = self.samples.batch(torch.zeros(1, dtype=torch.long, device="cpu"))
            self.task = self.task.fitted(first.x.shape[1:])

    def first(self, n: int) -> ModelOnSamples:
        """The same model on the first samples."""
        return self if n >= self.n else replace(self, samples=self.samples.first(n))

    @property
    def inputs(self) -> Tensor:
        """See `Runnable`."""
        return self.samples.batch(torch.arange(self.n, device="cpu")).x

    def at(self, inputs: Tensor) -> ModelOnSamples:
        """See `Runnable`."""
        none = inputs.new_empty(len(inputs), 0)
        return replace(self, samples=Split(inputs, none, dtype=self.samples.dtype))

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
            first = samples.batch(torch.zeros(1, dtype=torch.long, device="cpu"))
            size = max(size, at_once(first.x))
        outputs, states = list[Tensor](), list[Tensor]()
        status, message, statuses = "success", "", tuple[str, ...]()
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
                outputs.append(output.cpu() if output.dim() > 1 else output.cpu()[:, None])
                statuses += solution.statuses or ()
                if isinstance(solution.z, Tensor):
                    gone = lost.view(-1, *[1] * (solution.z.dim() - 1))
                    states.append(solution.z.masked_fill(gone, torch.nan).flatten(1).cpu())
                n = len(batch.x) / len(samples)
                nfe, n_steps = nfe + n * solution.nfe, n_steps + n * solution.mean_steps
                n_rejected += n * float(
                    torch.as_tensor(solution.n_rejected, dtype=torch.float64, device="cpu").mean()
                )
        kept, final = torch.cat(outputs), torch.cat(states) if len(states) == len(outputs) else None
        if rows is not None:
            kept, final = kept[rows], None if final is None else final[rows]
        found = Evaluation(
            len(kept), nfe=nfe, n_steps=n_steps, n_rejected=n_rejected, solver=solver,
            outputs=kept, states=final, status=status, message=message,
            statuses=() if rows is not None else statuses,
        )  # fmt: skip
        return self.scored(found) if part.indices is None else found

    def grid(self, solver: Any) -> Any:
        """The name of a fixed-step method, and the ends of its steps as fractions of the interval.

        None for other solvers.
        """
        if not isinstance(solver, FixedStep):
            return None
        return solver.name, tuple(round(x, 12) for x in solver.fractions(self.length))

    @property
    def length(self) -> float:
        """The length of the interval."""
        return abs(seconds(self.model.t[1]) - seconds(self.model.t[0]))

    @cached_property
    def _in_double(self) -> NeuralODE:
        model = deepcopy(self.model).double()
        model.reduce = None
        return model


@contextmanager
def _solving(solving: Solving | None) -> Iterator[None]:
    """Solve all problems by ``solving`` within the block."""
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
