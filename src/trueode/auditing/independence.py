"""Whether a sample is independent of the others: before anything is cut, for a part of what belongs
together is another model.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from trueode.auditing.model_under_test import ModelUnderTest
from trueode.auditing.samples import size_of
from trueode.errors import DataError, UsageError
from trueode.solvers import FixedStep

ROUNDING = 1e-3  # of the scale of the outputs: parts of a batch may differ by rounding, not by more
QUICK = FixedStep(
    "euler", n_steps=2
)  # of fixed steps, for an adaptive solver lets samples share their steps


def keep_whole_where_coupled(subject: ModelUnderTest) -> bool:
    """Tell whether samples are independent, and let the model look at whole batches, as they were
    given, where they are not.

    Raises:
        UsageError: the model cannot be run.
        DataError: the batches as they were given cannot be audited.
    """
    subject.separable = _independent(subject)
    if not subject.separable and subject.given is not None:
        subject.look_at(subject.given.whole())
    return subject.separable


def _independent(subject: ModelUnderTest) -> bool:
    """Whether parts of a batch, run by themselves, give what the whole batch gives: all rows,
    across the cut.
    """
    if subject.given is None:
        return True
    batch, parts = subject.given.compared()
    if len(parts) < 2:  # there are no parts
        return True
    try:
        whole = _outputs(subject, batch)
    except (UsageError, DataError):
        if subject.given.complete:
            raise
        return False  # the model may need all rows
    try:
        cut = _outputs(subject, *parts)
    except (UsageError, DataError):  # the model holds something of the size of its batch
        return False
    return whole.shape == cut.shape and bool((whole - cut).abs().amax() <= ROUNDING * whole.std())


def _outputs(subject: ModelUnderTest, *batches: Any) -> Tensor:
    ran = subject.on(batches, tuple(map(size_of, batches))).run(QUICK)
    return ran.outputs.double().nan_to_num(0.0, 0.0, 0.0)
