"""The conditions under which an audit is meaningful."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from trueode.auditing.forward import ModelError
from trueode.auditing.independence import keep_whole_where_coupled
from trueode.auditing.kept import ROUNDING, Kept, apart
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
    """A condition for a verdict.

    Attributes:
        name: name of the condition.
        holds: whether it holds.
        decisive: whether a verdict is impossible without it.
        text: if it does not hold, what is wrong and what to do.
    """

    name: str
    holds: bool
    decisive: bool
    text: str


def prepare(
    tested: ModelUnderTest, before: Kept, was_training: bool
) -> tuple[Evaluation, tuple[Precondition, ...]]:
    """Run the model under its training solver, twice, and check the preconditions.

    Args:
        tested: the model, in evaluation mode. Set on it are whether it needs gradients, what a
            call changes, whether its samples are separable, and whether it runs in double
            precision.
        before: the state of the model before any call.
        was_training: whether the model was in training mode.

    Returns:
        The results under the training solver, and the preconditions.
    """
    alone, first, calls = _first_call(tested, before)
    options = _other_options(alone, first, before)
    separable = keep_whole_where_coupled(tested)
    with _deterministic(tested):
        own = tested.run()
        memory, stochastic, rounding = _differs_again(tested, own)
    _refuse_probabilities(tested, own.outputs)
    failure = _fails_in_double(tested)
    tested.double = failure is None
    found = (
        ("evaluation mode", was_training, False,
         "the model was in training mode; it is audited in evaluation mode"),
        ("options", bool(options), False, options),
        ("deterministic", stochastic, True,
         "two calls of the model gave different outputs: it is stochastic (dropout called as a "
         "function, noise, a random projection). seed=… gives every call the same random numbers, "
         "if they are drawn before its solves"),
        ("equal bits", bool(rounding), False,
         f"two calls of the model differ by up to {rounding:.2g} times the rounding of "
         f"{str(own.outputs.dtype).removeprefix('torch.')}: sums on a GPU have no fixed order, and "
         "these have no deterministic algorithm. Differences of that size do not count as random"),
        ("memory", memory, True,
         "the model remembers earlier calls, although it is in evaluation mode: its outputs depend "
         "on what was called before"),
        ("field", bool(calls.outside), False,
         _called_outside(calls, tested.forward.found.modules)),
        ("independent samples", not separable, False,
         "a sample's output depends on the other samples of its batch, not only through the "
         "solver: the batches are kept whole as given (tensors x and y as one batch), and "
         "samples=… leaves out none of their rows"),
        ("double precision", failure is not None, False,
         f"the model does not run in double precision ({failure}): the exact flow is computed in "
         "the model's own precision, down to its rounding"),
    )  # fmt: skip
    return own, tuple(
        Precondition(name, not broken, decisive, text if broken else "")
        for name, broken, decisive, text in found
        if broken or name != "equal bits"
    )


def _first_call(
    tested: ModelUnderTest, before: Kept
) -> tuple[ModelUnderTest, Evaluation, FieldCalls]:
    """Call the model for a batch, with gradients if it fails without.

    If the model fails for a cut batch, the first batch as given is tried: a model may need all of
    its samples at once.

    Returns:
        The model on that batch alone, its results, and the calls of fields.

    Raises:
        UsageError: the model cannot be run.
        DataError: the model does not fit the data.
    """
    batches = [tested.batches[0]]
    if tested.given is not None and size_of(whole := tested.given.whole()[0]) != size_of(
        batches[0]
    ):
        batches.append(whole)
    failed: UsageError | None = None
    for batch, gradients in product(batches, (False, True)):
        if gradients and not isinstance(failed, ModelError):
            continue
        alone, tested.forward.gradients = tested.on((batch,), (size_of(batch),)), gradients
        try:
            with field_calls(tested.forward.found.every) as calls:
                ran = alone.run()
        except UsageError as failure:
            before.restore()
            failed = failed if gradients else failure
        else:
            tested.forward.settle(before)
            return alone, ran, calls
    assert failed is not None
    raise failed


def _other_options(alone: ModelUnderTest, ran: Evaluation, before: Kept) -> str:
    """Describe the solvers if the model solves differently in training mode; else empty."""
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
        f"the model solves with {how[0]} in training mode and with {how[1]} in evaluation mode: it "
        "is audited with the latter; to audit another training solver, pass solver=…"
    )


@contextmanager
def _deterministic(tested: ModelUnderTest) -> Iterator[None]:
    """A block with deterministic algorithms for a model on a GPU, where there are any."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    if not tested.forward.on_gpu or before == (True, False):  # the user asked for more
        yield
        return
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="(?s).*deterministic")
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _differs_again(tested: ModelUnderTest, own: Evaluation) -> tuple[bool, bool, float]:
    """Whether outputs depend on earlier calls, and whether they are random; on a GPU, also by how
    much rounding they differ.
    """
    most = ROUNDING if tested.forward.on_gpu else 0.0
    try:
        with tested.forward.continued():
            again = tested.run()
    except ModelError:  # for instance a limit on the number of calls
        again = None
    if again is not None and (rounding := apart(own.outputs, again.outputs)) <= most:
        return False, False, rounding
    rounding = apart(own.outputs, tested.run().outputs)
    if rounding > most:
        return False, True, 0.0
    return again is not None, False, rounding


def _called_outside(calls: FieldCalls, modules: list[nn.Module]) -> str:
    """Describe the fields that are called outside of every solve."""
    named = {
        id(part): f" {path}" for module in modules for path, part in module.named_modules() if path
    }
    fields = "; ".join(
        f"the field{named.get(id(module), '')} ({type(module).__name__}), "
        f"{outside} outside and {inside} inside"
        for module, (outside, inside) in calls.outside.items()
    )
    return (
        f"the model also calls its field outside of every solve (calls for one batch: {fields}). "
        "No other solver replaces what it computes from these calls, such as steps by hand: the "
        "verdict is about the solves alone"
    )


def _refuse_probabilities(tested: ModelUnderTest, outputs: Tensor) -> None:
    """Refuse probabilities in place of a single logit: all would count as the second class."""
    if (
        tested.task.name != "classification"
        or outputs.dim() < 2
        or outputs.shape[1] != 2
        or bool(outputs[:, 0].any())
    ):
        return
    single = outputs[:, 1]
    if len(single) >= FEW and bool(((single >= 0) & (single <= 1)).all()) and bool(single.any()):
        raise UsageError(
            "The model returns one number for each sample, all between 0 and 1: these look like "
            "probabilities, but the audit needs logits. Pass "
            "call=lambda model, batch: torch.logit(model(batch[0]))."
        )


def _fails_in_double(tested: ModelUnderTest) -> str | None:
    """The reason why the model does not run in double precision; None if it does."""
    first = tested.on(tested.batches[:1], tested.sizes[:1])
    try:
        outputs = first.run(FixedStep("euler", n_steps=1), Part(double=True)).outputs
    except ModelError as failure:
        return told(failure.__cause__ or failure)
    return None if outputs.dtype == torch.float64 else f"its outputs are {outputs.dtype}"
