"""What must hold for an audit to mean anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trueode.auditing.independence import keep_whole_where_coupled
from trueode.auditing.model_under_test import ModelError, ModelUnderTest
from trueode.auditing.preserve_state import modules_of, same
from trueode.errors import UsageError, told
from trueode.evaluation import Evaluation
from trueode.evaluation.runnable import Part
from trueode.solvers import FixedStep

FEW = 16  # samples that show whether all outputs look like probabilities


@dataclass(frozen=True)
class Precondition:
    """Something that must hold.

    Attributes:
        name: which.
        holds: whether it does.
        decisive: whether there can be no verdict where it does not hold.
        text: where it does not hold: in words, with what to do.
    """

    name: str
    holds: bool
    decisive: bool
    text: str


def prepare(subject: ModelUnderTest, was_training: bool) -> tuple[Evaluation, tuple[Precondition, ...]]:
    """Run the model under its training solver, twice, and look at what must hold.

    Args:
        subject: the model, in evaluation mode by now; it learns whether its samples are separable, and whether it runs in
            double precision.
        was_training: whether it was in training mode.

    Returns:
        The model under its training solver, and what must hold.
    """
    before = [buffer.detach().clone() for buffer in _buffers(subject.model)]
    separable = keep_whole_where_coupled(subject)
    own = subject.run()
    updated = not all(map(same, _buffers(subject.model), before))
    again = subject.run()
    deterministic = same(own.outputs, again.outputs)
    _refuse_probabilities(subject, own.outputs)
    failure = _fails_in_double(subject)
    subject.double = failure is None
    found = (
        ("evaluation mode", was_training, False, "the model was in training mode; it is audited in evaluation mode, as it predicts"),
        ("deterministic", not deterministic, True, "two calls of the model gave different outputs: it is stochastic (dropout called as "
         "a function, noise, a random projection). Fix what is random for the audit"),
        ("buffers", updated, True, "a call of the model updates its buffers, although it is in evaluation mode: its outputs depend on "
         "what was called before"),
        ("independent samples", not separable, False, "a sample's output depends on the others of its batch, beside the solver: the "
         "batches are kept whole as given (tensors x and y as one batch), and samples=… leaves out none of their rows"),
        ("double precision", failure is not None, False, f"the model does not run in double precision ({failure}): the exact flow is "
         "computed in that of the model, down to its rounding"),
    )  # fmt: skip
    return own, tuple(
        Precondition(name, not broken, decisive, text if broken else "") for name, broken, decisive, text in found
    )


def _refuse_probabilities(subject: ModelUnderTest, outputs: Tensor) -> None:
    """One output stands for the logit of two classes: probabilities would all count as the second class."""
    if subject.task.name != "classification" or outputs.dim() < 2 or outputs.shape[1] != 2 or bool(outputs[:, 0].any()):
        return
    single = outputs[:, 1]
    if len(single) >= FEW and bool(((single >= 0) & (single <= 1)).all()) and bool(single.any()):
        raise UsageError(
            "The model returns one number for each sample, all between 0 and 1: these look like probabilities, and logits are "
            "needed. Audit it with call=lambda model, batch: torch.logit(model(batch[0]))."
        )


def _buffers(model: Any) -> list[Tensor]:
    return [buffer for module in modules_of(model) for buffer in module.buffers()]


def _fails_in_double(subject: ModelUnderTest) -> str | None:
    """Why the model cannot be run in double precision; None if it can."""
    first = subject.on(subject.batches[:1], subject.sizes[:1])
    try:
        outputs = first.run(FixedStep("euler", n_steps=1), Part(double=True)).outputs
    except ModelError as failure:
        return told(failure.__cause__ or failure)
    return None if outputs.dtype == torch.float64 else f"its outputs are {outputs.dtype}"
