"""Figures of a run: numpy arrays in, a matplotlib Figure out. No torch, no pyplot, no global state."""

from trueode.figures.adaptation import adaptation, adaptation_runs
from trueode.figures.audit import audit_cost, audit_order, audit_swap, audit_trajectories
from trueode.figures.history import effort, loss, metric
from trueode.figures.portrait import regions, trajectories
from trueode.figures.save import save
from trueode.figures.series import time_series
from trueode.figures.swap import solver_swap

__all__ = [
    "adaptation",
    "adaptation_runs",
    "audit_cost",
    "audit_order",
    "audit_swap",
    "audit_trajectories",
    "effort",
    "loss",
    "metric",
    "regions",
    "save",
    "solver_swap",
    "time_series",
    "trajectories",
]
