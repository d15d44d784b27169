"""Count flips of a model on unseen inputs, for a certificate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import torch
from torch import Tensor

from trueode.data import Samples, Split
from trueode.distributed import Ranks
from trueode.evaluation import Flips, ModelOnSamples, Task, count_flips, exact_flow
from trueode.evaluation.likelihood import Likelihood
from trueode.evaluation.metrics import ALONE, BATCH
from trueode.models import NeuralODE
from trueode.precision import ieee
from trueode.solvers import Solver

COUNTS = tuple(each.name for each in fields(Flips))[:8]  # the numbers that the ranks share
MEAN = fields(Likelihood)


class ModelInspection:
    """An `Inspection` of a model.

    Args:
        model: the model; wrap one of another library as
            ``NeuralODE(field, upstream, downstream)``.
        inputs: returns the inputs of an attempt, counted from 1: ``(n, …)``, or a split of a data
            set (time series need their times). Neither training nor the rule may have seen them. If
            possible, return new ones for each attempt.
        task: the task.
        batch_size: samples of a batch; pass the batch size of the training if the solver controls
            the error of a batch.
        source: the origin of the inputs, in words; a certificate holds for such inputs.
        ranks: the processes that train together; the main one counts, and the others receive the
            result.

    Attributes:
        evaluations: field evaluations spent, counted in samples.
    """

    def __init__(
        self,
        model: NeuralODE,
        inputs: Callable[[int], Tensor | Samples],
        task: Task,
        *,
        batch_size: int = BATCH,
        source: str = "",
        ranks: Ranks = ALONE,
    ) -> None:
        self._model, self._inputs, self.task, self._ranks = model, inputs, task, ranks
        self._batch_size, self.source = batch_size, source
        self._known: tuple[int, Samples] | None = None
        self.evaluations = 0.0

    def size(self, attempt: int) -> int:
        """The number of inputs of an attempt."""
        return len(self._of(attempt))

    @ieee()
    def count(self, solver: Solver, attempt: int) -> Flips:
        """Flips among the inputs of an attempt."""
        facts, trouble = torch.zeros(8 + len(MEAN), dtype=torch.float64, device="cpu"), ""
        if self._ranks.is_main:
            # the other ranks do not take part
            reduce, self._model.reduce = self._model.reduce, None
            try:
                runnable = ModelOnSamples(
                    self._model, self._of(attempt), self.task, solver, self._batch_size
                )
                own = runnable.run()
                found = count_flips(runnable, None, own, exact_flow(runnable, own))
            finally:
                self._model.reduce = reduce
            values, trouble = found.to_dict(), found.trouble
            values["evaluations"] += own.nfe * own.n
            facts[:8] = facts.new_tensor([float(values[name]) for name in COUNTS])
            if found.likelihood is not None:
                facts[8:] = facts.new_tensor(list(vars(found.likelihood).values()))
        facts = self._ranks.sum(facts)
        *counts, share, constant, evaluations = facts[:8].tolist()
        self.evaluations += evaluations
        n, flips, blown_up, unresolved, rounding = map(round, counts)
        known, *mean = facts[8:].tolist()
        return Flips(
            n, flips, blown_up, unresolved, rounding, share, bool(constant), evaluations, trouble,
            likelihood=Likelihood(round(known), *mean) if self.task.name == "density" else None,
        )  # fmt: skip

    def _of(self, attempt: int) -> Samples:
        """The samples of an attempt, requested once."""
        if self._known is None or self._known[0] != attempt:
            x = self._inputs(attempt)
            self._known = (
                attempt,
                Split(x, x.new_empty(len(x), 0), dtype=x.dtype) if isinstance(x, Tensor) else x,
            )
        return self._known[1]
