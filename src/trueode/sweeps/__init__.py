"""Sweeps: a grid of options as named runs, here or on a cluster, and one table of results."""

from trueode.sweeps.directory import SweepDirectory
from trueode.sweeps.execute import run_sweep
from trueode.sweeps.plan import Plan, PlannedRun, make_plan, read_plan, run_hash
from trueode.sweeps.table import rows_of, write_table

__all__ = [
    "Plan",
    "PlannedRun",
    "SweepDirectory",
    "make_plan",
    "read_plan",
    "rows_of",
    "run_hash",
    "run_sweep",
    "write_table",
]
