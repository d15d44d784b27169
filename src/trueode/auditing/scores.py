"""Metric and loss of each sample of a subject."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trueode.auditing.model_under_test import ModelUnderTest
from trueode.auditing.ran import Ran
from trueode.data import Batch
from trueode.errors import DataError, TrueodeError, UsageError, told

Metric = Callable[[Tensor, Tensor], Tensor]
"""A metric of one's own: ``metric(outputs, y)`` returns a value for each sample, ``(n,)``."""


def metric_of(subject: ModelUnderTest, ran: Ran, metric: Metric | None = None) -> Tensor | None:
    """The metric of each sample, ``(n,)`` in float64; None without targets."""
    y = _matching(subject, ran)
    if y is None or subject.y is None:
        return None
    if metric is None:
        return subject.task.metrics(ran.outputs, Batch(y, y)).double()
    try:
        values = metric(ran.outputs, subject.y)
    except TrueodeError:
        raise
    except Exception as failure:  # it is somebody else's code
        raise UsageError(
            f"The metric failed on outputs of shape {tuple(ran.outputs.shape)} and targets of shape "
            f"{tuple(subject.y.shape)}: {told(failure)}."
        ) from failure
    if not isinstance(values, Tensor) or values.shape != (subject.n,):
        raise UsageError(
            f"The metric must return a value for each of the {subject.n} samples, a tensor of shape ({subject.n},); it "
            f"returned {tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__}."
        )
    return values.double()


def losses_of(subject: ModelUnderTest, ran: Ran) -> Tensor | None:
    """The loss of each sample, ``(n,)`` in float64; None without targets."""
    y = _matching(subject, ran)
    return None if y is None else subject.task.losses(ran.outputs, Batch(y, y)).double()


def _matching(subject: ModelUnderTest, ran: Ran) -> Tensor | None:
    """The targets, in the form that the task's loss and metric need."""
    y, outputs = subject.y, ran.outputs
    if y is None:
        return None
    if subject.task.name == "classification":
        y = y.squeeze(1) if y.dim() == 2 and y.shape[1] == 1 else y
        if y.dim() > 1 or (y.is_floating_point() and bool((y != y.round()).any())):
            raise DataError(
                f"Classification needs labels of shape (n,); the targets are {y.dtype} of shape {tuple(y.shape)}."
            )
        labels = y.long()
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < outputs.shape[1]:
            raise DataError(
                f"The labels lie between {int(labels.min())} and {int(labels.max())}, but the model has {outputs.shape[1]} classes."
            )
        return labels
    if y.numel() != outputs.numel():
        raise DataError(
            f"The targets have shape {tuple(y.shape)} and the outputs {tuple(outputs.shape)}: they must agree. Say with "
            "call=… how the model is called."
        )
    y = y.to(outputs.dtype).reshape(outputs.shape)
    if subject.absent is not None and outputs.shape[:2] == subject.absent.shape:
        y = y.masked_fill(subject.absent.view(*subject.absent.shape, *[1] * (y.dim() - 2)), torch.nan)
    return y
