"""The outputs of a model under test, in the shape that its task needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trueode.auditing.problem import Solved
from trueode.errors import UsageError
from trueode.evaluation import Task


def checked_output(output: Any, n: int, task: Task, y: Tensor | None = None) -> Tensor:
    """Move outputs to the CPU, in the shape that the task needs. Classification takes outputs of
    the shape of the targets ``y`` as one logit each, unless these are one-hot.

    Raises:
        UsageError: the outputs do not fit the task.
    """
    if not isinstance(output, Tensor) or not output.is_floating_point():
        kind = str(output.dtype) if isinstance(output, Tensor) else type(output).__name__
        raise UsageError(
            f"The model returned {kind}; outputs must be a floating point tensor, samples first. "
            "Pass call=…, e.g. call=lambda model, batch: model(batch[0])[1][-1]."
        )
    if output.dim() == 0 or len(output) != n:
        raise UsageError(
            f"The model returned shape {tuple(output.shape)} for {n} samples; they must come "
            "first. Pass call=…, e.g. call=lambda model, batch: model(*batch).transpose(0, 1)."
        )
    checked: Tensor = output.detach().cpu()
    if task.name == "classification" and task.decision is None:
        column = checked.dim() > 1 and checked.shape[1] == 1
        same = y is not None and y.dim() > 1 and y.shape[1:] == checked.shape[1:]
        if same and not column:
            assert y is not None
            same = not bool((y.sum(1) == 1).all())
        if checked.dim() == 1 or column or same:  # one logit for two classes
            single = checked[:, 0] if column else checked
            checked = torch.stack([torch.zeros_like(single), single], dim=1)
    elif task.name == "regression":
        checked = checked.reshape(n, -1)
    elif task.name == "density":
        if checked.numel() != n:
            raise UsageError(
                f"The model returned shape {tuple(output.shape)}; log densities must have shape "
                "(n,), one number for each sample."
            )
        checked = checked.reshape(n, 1)
    elif task.name == "timeseries" and checked.dim() < 3:
        checked = checked.reshape(n, -1, 1)
    elif task.name == "sampler" and checked.dim() == 1:
        checked = checked[:, None]
    return checked


def final_state(solved: Solved, n: int) -> Tensor | None:
    """The final states of a solve of ``n`` samples, ``(n, d)`` on the CPU; None if unknown."""
    final = solved.final
    return None if final is None or len(final) != n else final.detach().flatten(1).cpu()
