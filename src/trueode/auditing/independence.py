"""Tests whether samples are independent, before batches are cut: coupled samples that are run apart
give other outputs.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from trueode.auditing.model_under_test import ModelUnderTest
from trueode.auditing.samples import size_of
from trueode.errors import DataError, UsageError
from trueode.solvers import FixedStep

ROUNDING = 1e-3  # largest difference by rounding between parts and whole, relative to the outputs
QUICK = FixedStep("euler", n_steps=2)  # an adaptive solver would couple samples by shared steps


def keep_whole_where_coupled(tested: ModelUnderTest) -> bool:
    """Test whether samples are independent; if not, make the model use whole batches, as given.

    Raises:
        UsageError: the model cannot be run.
        DataError: the batches as given cannot be audited.
    """
    tested.separable = _independent(tested)
    if not tested.separable and tested.given is not None:
        tested.look_at(tested.given.whole())
    return tested.separable


def _independent(tested: ModelUnderTest) -> bool:
    """Whether the parts of a batch, run one by one, give the outputs of the whole batch."""
    if tested.given is None:
        return True
    batch, parts = tested.given.compared()
    if len(parts) < 2:
        return True
    try:
        whole = _outputs(tested, batch)
    except (UsageError, DataError):
        if tested.given.complete:
            raise
        return False  # this batch is only a part, and the model may need all rows
    try:
        cut = _outputs(tested, *parts)
    except (UsageError, DataError):  # the model may store a tensor of the size of its batch
        return False
    return whole.shape == cut.shape and bool((whole - cut).abs().amax() <= ROUNDING * whole.std())


def _outputs(tested: ModelUnderTest, *batches: Any) -> Tensor:
    ran = tested.on(batches, tuple(map(size_of, batches))).run(QUICK)
    return ran.outputs.double().nan_to_num(0.0, 0.0, 0.0)
