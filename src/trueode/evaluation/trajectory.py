"""How far a single trajectory follows its exact flow."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trueode.evaluation.conditioning import NUDGE
from trueode.evaluation.course import Guided
from trueode.evaluation.flow import ExactFlow
from trueode.evaluation.runnable import Part, Runnable
from trueode.evaluation.tasks import TimeSeries
from trueode.solvers import Adaptive


@dataclass(frozen=True)
class Trajectory:
    """How far a trajectory follows its exact flow.

    Attributes:
        times: the output times ``(times,)``; their indices if unknown.
        error: the error of the training solver, relative to the tolerance, ``(times,)``.
        growth: the size of a perturbation of 1e-9 of the initial state, relative to 1e-9 of that
            state's size, ``(times,)``.
        horizon: the last time up to which the error stays within the tolerance.
        predictable: the last time up to which the perturbation stays within the tolerance; later
            states cannot be predicted.
    """

    times: Tensor
    error: Tensor
    growth: Tensor
    horizon: float
    predictable: float

    @property
    def end(self) -> float:
        """The last time."""
        return float(self.times[-1])


def follow(runnable: Runnable, own: Tensor, exact: ExactFlow) -> Trajectory:
    """Compare a single trajectory with its exact flow, and this with the flow of a perturbed start.

    Args:
        runnable: the model and its sample.
        own: outputs under the training solver ``(1, times, …)``, in double precision.
        exact: the exact flow.
    """
    task = runnable.task
    assert isinstance(task, TimeSeries)
    assert exact.allowed is not None
    outputs = exact.outputs.double()
    dopri5 = Adaptive("dopri5", exact.tolerance, exact.tolerance)
    plain, nudged = (
        runnable.run(dopri5, Part(double=exact.double, solving=Guided(exact.course, nudge))).outputs
        for nudge in (0.0, NUDGE)
    )
    moved = (nudged - plain).double().flatten(2).square().mean(2).sqrt()[0]
    size = outputs.flatten(2).square().mean(2).sqrt()[0]
    times = torch.arange(len(moved), dtype=torch.float64, device="cpu")
    if runnable.t is not None and runnable.t.shape[-1] == len(times):
        times = runnable.t.reshape(-1)[-len(times) :].double()
    error = task.error_over_time(own, outputs, exact.allowed)[0]
    drift = task.error_over_time(nudged.double(), plain.double(), exact.allowed)[0]
    growth = moved / (NUDGE * size[0].clamp(min=1e-30))
    return Trajectory(times, error, growth, _last(times, error <= 1), _last(times, drift <= 1))


def _last(times: Tensor, holds: Tensor) -> float:
    """The last time up to which a condition holds; minus infinity if it never does."""
    broken = (~holds).nonzero()
    first = int(broken[0]) if len(broken) else len(times)
    return float(times[first - 1]) if first else -float("inf")
