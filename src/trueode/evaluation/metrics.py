"""A model on a data set, under any solver."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from trueode.data import Batch, Batches, Samples
from trueode.distributed import Ranks
from trueode.evaluation.tasks import Task
from trueode.models import NeuralODE
from trueode.solvers import Solver

BATCH = 256
ALONE = Ranks(0, 1, torch.device("cpu"))


@dataclass(frozen=True)
class Evaluation:
    """A model on a data set; every mean is over samples, whatever the sizes of the batches.

    Attributes:
        n: samples.
        loss: mean loss.
        metric: mean metric: accuracy as a share, or mse.
        nfe: field evaluations for a sample.
        n_steps: accepted steps for a sample.
        outputs: ``(n, …)`` on the CPU, if they were asked for.
    """

    n: int
    loss: float
    metric: float
    nfe: float
    n_steps: float
    outputs: Tensor | None = None


def evaluate(
    model: NeuralODE,
    split: Samples,
    task: Task,
    solver: Solver | None = None,
    *,
    ranks: Ranks = ALONE,
    batch_size: int = BATCH,
    keep_outputs: bool = False,
) -> Evaluation:
    """Evaluate a model in evaluation mode, without gradients.

    Args:
        model: the model; it is left in the mode in which it was.
        split: the samples, taken in order.
        task: what is learned.
        solver: under which; None takes the model's default.
        ranks: the processes that share the work; all must call.
        batch_size: samples of a batch; the steps of a solver that controls the error of a batch depend on it.
        keep_outputs: whether the outputs are wanted (on one process only).

    Raises:
        SolveError: the solver failed.
    """
    outputs: list[Tensor] = []
    total = torch.zeros(5, dtype=torch.float64, device="cpu")
    with evaluating(model):
        for batch in batches_of(split, batch_size, model, ranks):
            output, solution = task.predict(model, batch, solver)
            n = len(batch.x)
            loss, metric = task.loss_sum(output, batch), task.metric_sum(output, batch)
            total += torch.tensor(
                [n, float(loss), float(metric), n * solution.nfe, n * solution.mean_steps if n else 0.0],
                dtype=torch.float64,
                device="cpu",
            )
            if keep_outputs:
                outputs.append(output.cpu())
    n, loss_sum, metric_sum, nfe, n_steps = ranks.sum(total).tolist()
    kept = torch.cat(outputs) if keep_outputs else None
    return Evaluation(int(n), loss_sum / n, metric_sum / n, nfe / n, n_steps / n, kept)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, for a while."""
    modes = [(module, module.training) for module in model.modules()]  # parts may have modes of their own
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def batches_of(split: Samples, batch_size: int, model: torch.nn.Module, ranks: Ranks = ALONE) -> Iterator[Batch]:
    """This rank's part of all batches in order, on the model's device; a part may be empty, so that ranks keep in step."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    batches = Batches(split, batch_size, shuffle=False, rank=ranks.rank, world_size=ranks.world_size)
    for batch, _ in islice(batches.from_iteration(0), len(batches)):
        yield to_device(batch, device)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device."""
    if device.type == "cpu":
        return batch
    t = None if batch.t is None else batch.t.to(device, non_blocking=True)
    return Batch(batch.x.to(device, non_blocking=True), batch.y.to(device, non_blocking=True), t)
