"""Figures: NumPy arrays in, a matplotlib Figure out, without torch, pyplot or global state."""

from trueode.figures.adapting import adaptation
from trueode.figures.adapting_runs import adaptation_runs
from trueode.figures.audit import audit_cost, audit_order, audit_trajectories
from trueode.figures.density import density
from trueode.figures.files import save
from trueode.figures.history import effort, loss, metric
from trueode.figures.paper import critical_steps, fan, fine_and_coarse, swap_sweep, two_outputs
from trueode.figures.portrait import regions, trajectories
from trueode.figures.series import time_series
from trueode.figures.swap import solver_swap
from trueode.figures.theme import footer

__all__ = [
    "adaptation",
    "adaptation_runs",
    "audit_cost",
    "audit_order",
    "audit_trajectories",
    "critical_steps",
    "density",
    "effort",
    "fan",
    "fine_and_coarse",
    "footer",
    "loss",
    "metric",
    "regions",
    "save",
    "solver_swap",
    "swap_sweep",
    "time_series",
    "trajectories",
    "two_outputs",
]
