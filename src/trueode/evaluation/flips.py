"""Flips: predictions that change under the exact flow."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import nan
from typing import Any

import torch
from torch import Tensor

from trueode.evaluation.density import Density
from trueode.evaluation.flow import ExactFlow
from trueode.evaluation.likelihood import (
    Discrepancy,
    Likelihood,
    Paired,
    compare_densities,
    compare_samples,
)
from trueode.evaluation.metrics import Evaluation
from trueode.evaluation.runnable import Part, Runnable
from trueode.evaluation.task import Task
from trueode.evaluation.trajectory import Trajectory, follow
from trueode.solvers import FixedStep, OnGrid, Solver


@dataclass(frozen=True)
class Flips:
    """Counts of a comparison between predictions under a solver and under the exact flow.

    One prediction of each sample is counted.

    Attributes:
        n: number of samples.
        flips: predictions that differ.
        blown_up: samples whose exact solution ceases to exist before the end.
        unresolved: samples that have no exact flow, or for which the solver itself fails.
        rounding: predictions that change by the rounding of the model's own precision, but not by
            the solver.
        share: the share of a sample's predictions that flip or blow up, averaged over the samples;
            it differs from ``changed / n`` if samples have several predictions.
        constant: whether an output is the same for all samples, so that no gap can be measured.
        evaluations: field evaluations spent on the exact flow and the comparison, counted in
            samples.
        trouble: why samples are unresolved, and what to do.
        trajectory: how far a single trajectory follows its exact flow; None for several samples.
        likelihood: the change of log densities; None for other tasks.
        discrepancy: the errors of samples; None unless the model is a sampler.
        drawn: the predictions that are counted, as numbers ``row * predictions + prediction``.
        doubtful: whether each prediction is unresolved, ``(rows, predictions)`` of bool.
    """

    n: int
    flips: int = 0
    blown_up: int = 0
    unresolved: int = 0
    rounding: int = 0
    share: float = 0.0
    constant: bool = False
    evaluations: float = field(default=0.0, compare=False)
    trouble: str = ""
    trajectory: Trajectory | None = field(default=None, repr=False, compare=False)
    likelihood: Likelihood | None = None
    discrepancy: Discrepancy | None = None
    drawn: Tensor | None = field(default=None, repr=False, compare=False)
    doubtful: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def changed(self) -> int:
        """Flips and blow-ups."""
        return self.flips + self.blown_up

    @property
    def mean(self) -> Paired | None:
        """The mean over samples that decides; None where a share decides."""
        return self.likelihood or self.discrepancy

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            key: vars(value) if isinstance(value, Paired) else value
            for key, value in vars(self).items()
            if isinstance(value, int | float | str | Paired)
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Flips:
        """From plain values."""
        kinds = {"likelihood": Likelihood, "discrepancy": Discrepancy}
        means = {key: kind(**values[key]) for key, kind in kinds.items() if values.get(key)}
        return cls(**{**values, **means})


def count_flips(
    runnable: Runnable, solver: Solver | None, ran: Evaluation, exact: ExactFlow
) -> Flips:
    """Compare the predictions under a solver with those under the exact flow.

    Predictions that differ in the model's own precision are computed again in double precision. If
    they agree then, they count as rounding.

    Args:
        runnable: the model and its samples.
        solver: the solver; None: the training solver.
        ran: the model under this solver.
        exact: the exact flow of the first samples.
    """
    task, n = runnable.task, len(exact.outputs)
    own = ran.outputs[:n]
    finite = runnable.finite(own)[:, None]
    flipped = task.flipped(own.double(), exact.outputs.double(), exact.allowed)
    shape = flipped.shape
    blown_up = (exact.blown_up[:, None] & finite).expand(shape)
    unresolved = ~(exact.settled & finite) & ~blown_up
    flipped &= ~unresolved & ~blown_up
    rounding = torch.zeros(shape, dtype=torch.bool, device="cpu")
    evaluations = float(exact.evaluations)
    trajectory = None
    if own.dtype != torch.float64 and exact.double and bool(flipped.any()):
        rows = flipped.any(1).nonzero()[:, 0]
        again = runnable.run(
            solver, Part(rows, True, not isinstance(ran.solver, FixedStep | OnGrid))
        )
        evaluations += again.nfe * len(rows)
        still = task.flipped(again.outputs, exact.outputs[rows].double(), exact.allowed)
        rounding[rows] = flipped[rows] & ~still & runnable.finite(own)[rows, None]
        flipped &= ~rounding
        own = own.double()
        own[rows] = again.outputs
    drawn = runnable.drawn(*shape)
    if n == 1 and task.name == "timeseries":
        trajectory = follow(runnable, own.double(), exact)
        if not bool(unresolved.any() | blown_up.any()):
            flipped = torch.full(shape, trajectory.horizon < trajectory.predictable, device="cpu")
            lost = trajectory.predictable <= trajectory.horizon < trajectory.end
            unresolved = torch.full(shape, lost, device="cpu")
    masks = (flipped, blown_up, unresolved, rounding)
    flips, gone, open_, rounded = (int(mask.flatten()[drawn].sum()) for mask in masks)
    share, constant = (
        mean_share(runnable, flipped | blown_up),
        _constant(runnable, exact, ran.outputs.dtype),
    )
    trouble = _trouble(runnable, ran, exact) if open_ else ""
    likelihood, discrepancy = None, None
    if not task.needs_targets:  # a sample has one prediction
        known = drawn[~(unresolved | blown_up).flatten()[drawn]]
        likelihood, discrepancy = _means(task, own[known].double(), exact, known)
    return Flips(
        len(drawn), flips, gone, open_, rounded, share, constant, evaluations, trouble,
        trajectory, likelihood, discrepancy, drawn, unresolved,
    )  # fmt: skip


def _means(
    task: Task, own: Tensor, exact: ExactFlow, rows: Tensor
) -> tuple[Likelihood | None, Discrepancy | None]:
    """Compare outputs of rows with those under the exact flow, where a mean decides."""
    known = exact.outputs[rows].double()
    if isinstance(task, Density):
        return compare_densities(task, own.flatten(), known.flatten()), None
    spread, allowed = task.spread(exact.outputs.double()), exact.allowed
    assert spread is not None
    assert allowed is not None
    scale = float(spread) or nan  # all samples are equal
    return None, compare_samples(own.flatten(1), known.flatten(1), scale, float(allowed) / scale)


def mean_share(runnable: Runnable, changed: Tensor) -> float:
    """The share of a sample's predictions that changed, averaged over the samples."""
    valid, sample = runnable.valid(*changed.shape).flatten(), runnable.samples_of(*changed.shape)
    _, place = sample[valid].unique(return_inverse=True)  # type: ignore[no-untyped-call]
    zero = torch.zeros(int(place.max()) + 1, dtype=torch.float64, device="cpu")
    own = changed.flatten()[valid].double()
    shares = zero.index_add(0, place, own) / zero.index_add(0, place, torch.ones_like(own))
    return float(shares.mean())


def _constant(runnable: Runnable, exact: ExactFlow, dtype: torch.dtype) -> bool:
    """Whether a gap is relative to a spread that is zero, down to rounding, in a component."""
    task = runnable.task
    spread = task.spread(exact.outputs)
    known = exact.outputs[exact.outputs.isfinite()].abs()
    if (
        spread is None
        or not len(known)
        or task.decision is not None
        or getattr(task, "absolute", None) is not None
    ):
        return False
    return bool((spread <= 100 * torch.finfo(dtype).eps * known.amax()).any())


def _trouble(runnable: Runnable, own: Evaluation, exact: ExactFlow) -> str:
    """Why samples are unresolved, and what to do."""
    if own.status != "success":
        return f"the training solver fails ({own.message.rstrip('.')})"
    if not exact.complete:
        return f"the budget of field evaluations was spent after {exact.n_steps} steps of rk4"
    if not bool((runnable.finite(exact.outputs) | exact.blown_up).all()):
        return (
            "their solution is not finite under finer solvers, and it cannot be told whether it "
            "blows up or a solver becomes unstable"
        )
    if exact.sensitive is not None and bool(exact.sensitive.any()):
        return (
            "predictions move with a change of the initial state by 1e-9: the flow is chaotic, or "
            "has no unique solution"
        )
    if exact.converged:
        return (
            "the prediction lies beyond the horizon up to which a perturbation of 1e-9 stays small"
        )
    return (
        f"{exact} do not agree on them. The vector field may be stiff, rough or discontinuous: if "
        "it jumps at known times, name them with breaks=…"
    )
