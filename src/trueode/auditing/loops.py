"""A small audit inside of a training loop."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import nan
from typing import Any

from trueode.auditing.auditor import training_solver
from trueode.auditing.model_under_test import Call, ModelUnderTest, model_under_test
from trueode.auditing.preconditions import prepare
from trueode.auditing.preserve_state import modules_of, preserve_state
from trueode.auditing.reference import find_reference
from trueode.auditing.swaps import Swaps
from trueode.evaluation import clopper_pearson
from trueode.solvers import Solver


@dataclass(frozen=True)
class SolverReport:
    """How much a model depends on its solver at some point of its training.

    Attributes:
        n: samples.
        flips: share of predictions that change under the exact flow; NaN where there is no reference.
        lower: bound of that share; it is larger with 95 % confidence.
        upper: bound of that share; it is smaller with 95 % confidence.
        state_error: RMS error of the final states relative to their scale; of the outputs where the states are not known.
        nfe: field evaluations for a sample under the training solver.
        trouble: why there is no reference; empty where there is one.
    """

    n: int
    flips: float
    lower: float
    upper: float
    state_error: float
    nfe: float
    trouble: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def check_solver(
    model: Any,
    data: Any,
    *,
    task: str = "auto",
    solver: Solver | None = None,
    call: Call | None = None,
    samples: int = 256,
) -> SolverReport:
    """Compare a model under its training solver with its exact flow, on a few samples: for every loop.

    Call it every so many steps; the model is left as it is, training mode, gradients and random state included.

    Args:
        model: as in `audit`.
        data: as in `audit`; samples that the model is not trained on.
        task: as in `audit`.
        solver: the training solver, where it is not the one that the model itself uses.
        call: how the model is called for a batch.
        samples: the first so many samples are looked at.

    Raises:
        DataError: the data is not of such a form.
        UsageError: the model cannot be audited; the message tells why.
    """
    subject = model_under_test(model, data, task=task, call=call, solver=solver, samples=samples)
    was_training = any(module.training for module in modules_of(model))
    with preserve_state(model):
        prepared = prepare(subject, was_training)
        if prepared.violated:
            return _without(subject, prepared.own.nfe, "; ".join(each.text for each in prepared.violated))
        subject = ModelUnderTest(**{**vars(subject), "separable": prepared.separable})
        training = training_solver(subject, prepared.own)
        reference = find_reference(subject, double=prepared.double)
    if not reference.converged:
        return _without(subject, prepared.own.nfe, reference.trouble)
    row = Swaps(subject, prepared.own, reference).training(training.method, training.kind, training.setting)
    lower, upper = clopper_pearson(row.flips, subject.n)
    error = row.state_error if row.state_error == row.state_error else row.output_error
    return SolverReport(subject.n, row.flips / subject.n, lower, upper, error, row.nfe)


def _without(subject: ModelUnderTest, nfe: float, trouble: str) -> SolverReport:
    return SolverReport(subject.n, nan, 0.0, 1.0, nan, nfe, trouble)
