"""What running a model on its data gives, under one solver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trueode.auditing.problem import FoundSolver, Solved
from trueode.auditing.samples import refuse_shapes
from trueode.errors import UsageError
from trueode.evaluation import Task


@dataclass(frozen=True)
class Ran:
    """A model on its data, under one solver.

    Attributes:
        outputs: ``(n, …)`` on the CPU; NaN where the solver failed.
        states: final states of the last ODE block, ``(n, d)``; None where they are not known.
        nfe: field evaluations for a sample, over all ODE blocks.
        n_steps: accepted steps, mean over samples; the largest number over the ODE blocks.
        n_rejected: rejected steps, likewise.
        found: the solvers that the model asked for itself, one for each ODE block.
        status: ``"success"``, or why the first solve that failed did so.
        message: what happened, for a failure.
    """

    outputs: Tensor
    states: Tensor | None
    nfe: float
    n_steps: float
    n_rejected: float
    found: tuple[FoundSolver, ...]
    status: str = "success"
    message: str = ""


def checked_output(output: Any, n: int, task: Task) -> Tensor:
    """Outputs on the CPU in the shape that the task needs.

    Raises:
        UsageError: they are no such outputs.
    """
    if not isinstance(output, Tensor) or not output.is_floating_point():
        kind = str(output.dtype) if isinstance(output, Tensor) else type(output).__name__
        raise UsageError(
            f"The model returned {kind}; outputs must be a floating point tensor, samples first. Say with call=… how it is "
            "called, e.g. call=lambda model, batch: model(batch[0])[1][-1]."
        )
    if output.dim() == 0 or len(output) != n:
        raise UsageError(
            f"The model returned shape {tuple(output.shape)} for {n} samples; they must come first. Say with call=… how it "
            "is called, e.g. call=lambda model, batch: model(*batch).transpose(0, 1)."
        )
    checked: Tensor = output.detach().cpu()
    return _shaped(checked, n, task)


def _shaped(output: Tensor, n: int, task: Task) -> Tensor:
    """Outputs in the shape that the task needs."""
    if task.name == "classification":
        if output.dim() == 2 and output.shape[1] == 1:
            output = output[:, 0]
        if output.dim() == 1:  # one logit for two classes
            output = torch.stack([torch.zeros_like(output), output], dim=1)
        if output.dim() != 2:
            raise UsageError(
                f"The model returned shape {tuple(output.shape)}; classification needs logits (n, classes), or one logit "
                "(n,) for two classes. Other targets need task='regression' or 'timeseries'."
            )
    elif task.name == "regression":
        output = output.reshape(n, -1)
    elif output.dim() < 3:
        output = output.reshape(n, -1, 1)
    return output


def final_state(solved: Solved, n: int) -> Tensor | None:
    """The final states of a solve of ``n`` samples, ``(n, d)`` on the CPU; None where they are not known."""
    final = solved.final
    return None if final is None or len(final) != n else final.detach().flatten(1).cpu()


def summed(outputs: list[Tensor], states: list[Tensor | None], solves: list[tuple[int, list[Solved]]]) -> Ran:
    """Batches put together: what solves cost is the mean over samples.

    Args:
        outputs: of each batch.
        states: final states of each batch, where they are known.
        solves: of each batch the number of its samples and its solves, one for each ODE block.
    """
    n = sum(size for size, _ in solves)
    known = [part for part in states if part is not None]

    def mean(value: Callable[[list[Solved]], float]) -> float:
        return sum(size * value(group) for size, group in solves) / n

    refuse_shapes(outputs)
    failed = next((solve for _, group in solves for solve in group if solve.status != "success"), None)
    return Ran(
        torch.cat(outputs),
        torch.cat(known) if len(known) == len(states) and len({part.shape[1] for part in known}) == 1 else None,
        mean(lambda group: sum(solve.nfe for solve in group)),
        mean(lambda group: max(solve.n_steps for solve in group)),
        mean(lambda group: max(solve.n_rejected for solve in group)),
        tuple(solve.found for solve in solves[0][1]),
        "success" if failed is None else failed.status,
        "" if failed is None else failed.message,
    )
