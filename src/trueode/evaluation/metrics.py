"""A model on samples under one solver: its results and their cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import nan
from typing import Any

import torch
from torch import Tensor

from trueode.data import Batch, Batches, Samples
from trueode.distributed import Ranks
from trueode.evaluation.task import Task
from trueode.models import NeuralODE
from trueode.solvers import Solver

BATCH = 256  # samples of a batch
LARGEST, NUMBERS = 2048, 2**16  # most samples of a larger batch, and most numbers in it
NONE = torch.empty(0, device="cpu")
ALONE = Ranks(0, 1, torch.device("cpu"))


@dataclass(frozen=True)
class Evaluation:
    """The results of a model on samples under one solver. All means are over samples.

    Attributes:
        n: number of samples.
        loss: mean loss; NaN without targets.
        metric: mean metric: accuracy as a share, or mse; NaN without targets.
        nfe: field evaluations per sample, summed over the ODE blocks.
        n_steps: accepted steps per sample; the largest number over the ODE blocks.
        n_rejected: rejected steps, likewise.
        solver: the solver: one of this package, or a description of another library's.
        outputs: outputs ``(n, …)`` on the CPU, NaN where the solver failed; empty if they were not
            kept.
        states: final states of the last ODE block ``(n, d)``; None if unknown.
        status: ``"success"``, or the reason of the first failure.
        message: a description of the failure.
        statuses: the status of each row, if the solver controls each row separately.
    """

    n: int
    loss: float = nan
    metric: float = nan
    nfe: float = nan
    n_steps: float = nan
    n_rejected: float = 0.0
    solver: Any = None
    outputs: Tensor = NONE
    states: Tensor | None = None
    status: str = "success"
    message: str = ""
    statuses: tuple[str, ...] = ()


def evaluate(
    model: NeuralODE,
    split: Samples,
    task: Task,
    solver: Solver | None = None,
    *,
    ranks: Ranks = ALONE,
    batch_size: int = BATCH,
) -> Evaluation:
    """Evaluate a model in evaluation mode, without gradients and without keeping its outputs.

    Args:
        model: the model; its mode is restored afterwards.
        split: the samples, taken in order.
        task: the task.
        solver: the solver; None takes the model's default.
        ranks: the processes that share the work; all must call this function.
        batch_size: samples of a batch. The steps of a solver that controls the error of a batch
            depend on it.

    Raises:
        SolveError: the solver failed.
    """
    n, nfe, n_steps = 0, 0.0, 0.0
    sums: Any = 0.0  # of losses and metrics; on the model's device, and read once
    with evaluating(model):
        for batch in batches_of(split, batch_size, model, ranks):
            output, solution = task.predict(model, batch, solver)
            part = len(batch.x)
            scores = task.loss_sum(output, batch), task.metric_sum(output, batch)
            sums = sums + torch.stack([score.double() for score in scores])
            n, nfe = n + part, nfe + part * solution.nfe
            n_steps += part * solution.mean_steps if part else 0.0
    counts = torch.tensor([n, nfe, n_steps], dtype=torch.float64, device="cpu")
    whole, nfe, n_steps, loss, metric = ranks.sum(torch.cat([counts, sums.cpu()])).tolist()
    return Evaluation(
        int(whole),
        loss / whole,
        metric / whole,
        nfe / whole,
        n_steps / whole,
        solver=solver or model.solver,
    )


def at_once(sample: Tensor) -> int:
    """The batch size for samples like this one, if the result does not depend on it."""
    return max(BATCH, min(LARGEST, NUMBERS // max(sample.numel(), 1)))


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """A block in evaluation mode and without gradients; all modes are restored afterwards."""
    modes = [(module, module.training) for module in model.modules()]  # they may differ
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def batches_of(
    split: Samples, batch_size: int, model: torch.nn.Module, ranks: Ranks = ALONE
) -> Iterator[Batch]:
    """This rank's part of all batches in order, on the model's device.

    A part may be empty: all ranks take the same number of batches.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return Batches(
        split,
        batch_size,
        shuffle=False,
        rank=ranks.rank,
        world_size=ranks.world_size,
        device=device,
    ).in_order()
