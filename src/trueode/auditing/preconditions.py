"""What must hold for an audit to mean anything."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from trueode.auditing.forward import ModelError
from trueode.auditing.independence import keep_whole_where_coupled
from trueode.auditing.kept import Kept, same
from trueode.auditing.model_under_test import ModelUnderTest
from trueode.auditing.outside import FieldCalls, field_calls
from trueode.auditing.samples import size_of
from trueode.errors import TrueodeError, UsageError, told
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


def prepare(
    subject: ModelUnderTest, before: Kept, was_training: bool
) -> tuple[Evaluation, tuple[Precondition, ...]]:
    """Run the model under its training solver, twice, and look at what must hold.

    Args:
        subject: the model, in evaluation mode by now; it learns whether it needs gradients, what a
            call of it changes, whether its samples are separable, and whether it runs in double
            precision.
        before: what lies behind the model, before any call of it.
        was_training: whether it was in training mode.

    Returns:
        The model under its training solver, and what must hold.
    """
    alone, first, calls = _first_call(subject, before)
    options = _other_options(alone, first, before)
    separable = keep_whole_where_coupled(subject)
    own = subject.run()
    memory, stochastic = _differs_again(subject, own)
    _refuse_probabilities(subject, own.outputs)
    failure = _fails_in_double(subject)
    subject.double = failure is None
    found = (
        ("evaluation mode", was_training, False, "the model was in training mode; it is audited in evaluation mode, as it predicts"),
        ("options", bool(options), False, options),
        ("deterministic", stochastic, True, "two calls of the model gave different outputs: it is stochastic (dropout called as "
         "a function, noise, a random projection). seed=… gives every call the same random numbers, if they are drawn before its solves"),
        ("memory", memory, True, "the model keeps something from call to call, although it is in evaluation mode: its outputs depend "
         "on what was called before"),
        ("field", bool(calls.outside), False, _called_outside(calls, subject.forward.found.modules)),
        ("independent samples", not separable, False, "a sample's output depends on the others of its batch, beside the solver: the "
         "batches are kept whole as given (tensors x and y as one batch), and samples=… leaves out none of their rows"),
        ("double precision", failure is not None, False, f"the model does not run in double precision ({failure}): the exact flow is "
         "computed in that of the model, down to its rounding"),
    )  # fmt: skip
    return own, tuple(
        Precondition(name, not broken, decisive, text if broken else "")
        for name, broken, decisive, text in found
    )


def _first_call(
    subject: ModelUnderTest, before: Kept
) -> tuple[ModelUnderTest, Evaluation, FieldCalls]:
    """Call the model for a batch, with gradients where it fails without.

    A model that sees all of its samples at once may fail for a part of them, and not for a batch as
    it was given.

    Returns:
        The model on that batch alone, what came of it, and which fields were called.

    Raises:
        UsageError: the model cannot be run.
        DataError: it does not fit the data.
    """
    batches = [subject.batches[0]]
    if subject.given is not None and size_of(whole := subject.given.whole()[0]) != size_of(
        batches[0]
    ):
        batches.append(whole)
    failed: UsageError | None = None
    for batch, gradients in product(batches, (False, True)):
        if gradients and not isinstance(failed, ModelError):
            continue
        alone, subject.forward.gradients = subject.on((batch,), (size_of(batch),)), gradients
        try:
            with field_calls(subject.forward.found.every) as calls:
                ran = alone.run()
        except UsageError as failure:
            before.restore()
            failed = failed if gradients else failure
        else:
            subject.forward.settle(before)
            return alone, ran, calls
    assert failed is not None
    raise failed


def _other_options(alone: ModelUnderTest, ran: Evaluation, before: Kept) -> str:
    """In words, where the model solves in another way in training mode."""
    found = alone.forward.found
    if not found.modes:
        return ""
    before.restore()
    for module in found.modules:
        module.train()
    try:
        with alone.forward.continued():
            training, evaluation = alone.run().solver, ran.solver
    except TrueodeError:  # training mode may need more than a forward
        return ""
    finally:
        before.restore()
    if training == evaluation:
        return ""
    how = [str(solver) for solver in (training, evaluation)]
    if how[0] == how[1]:
        how = [f"{solver} ({vars(solver).get('settings')})" for solver in (training, evaluation)]
    return (
        f"the model solves with {how[0]} in training mode and with {how[1]} in evaluation mode: it is audited with the latter; "
        "solver=… names the one that it was trained with"
    )


def _differs_again(subject: ModelUnderTest, own: Evaluation) -> tuple[bool, bool]:
    """Whether outputs depend on what was called before, and whether they differ by chance."""
    try:
        with subject.forward.continued():
            again = subject.run()
    except ModelError:  # a limit of calls, for instance
        again = None
    if again is not None and same(own.outputs, again.outputs):
        return False, False
    stochastic = not same(own.outputs, subject.run().outputs)
    return again is not None and not stochastic, stochastic


def _called_outside(calls: FieldCalls, modules: list[nn.Module]) -> str:
    named = {
        id(part): f" {path}" for module in modules for path, part in module.named_modules() if path
    }
    fields = "; ".join(
        f"the field{named.get(id(module), '')} ({type(module).__name__}) {outside} beside {inside} inside"
        for module, (outside, inside) in calls.outside.items()
    )
    return (
        f"the model also calls its field outside of every solve, for a batch: {fields}. What is made of these calls, steps by hand "
        "for instance, stays as it is under every solver: the verdict is that of the solves alone"
    )


def _refuse_probabilities(subject: ModelUnderTest, outputs: Tensor) -> None:
    """One output stands for the logit of two classes: probabilities would all count as the second
    class.
    """
    if (
        subject.task.name != "classification"
        or outputs.dim() < 2
        or outputs.shape[1] != 2
        or bool(outputs[:, 0].any())
    ):
        return
    single = outputs[:, 1]
    if len(single) >= FEW and bool(((single >= 0) & (single <= 1)).all()) and bool(single.any()):
        raise UsageError(
            "The model returns one number for each sample, all between 0 and 1: these look like probabilities, and logits are "
            "needed. Audit it with call=lambda model, batch: torch.logit(model(batch[0]))."
        )


def _fails_in_double(subject: ModelUnderTest) -> str | None:
    """Why the model cannot be run in double precision; None if it can."""
    first = subject.on(subject.batches[:1], subject.sizes[:1])
    try:
        outputs = first.run(FixedStep("euler", n_steps=1), Part(double=True)).outputs
    except ModelError as failure:
        return told(failure.__cause__ or failure)
    return None if outputs.dtype == torch.float64 else f"its outputs are {outputs.dtype}"
