"""Show the progress of the plans in a directory."""

from __future__ import annotations

from collections import Counter

from rich.console import Console

from trueode.console import open_console
from trueode.sweeps.directory import STATES, SweepDirectory, done_share, last_lines
from trueode.sweeps.plan import Plan


def status(directory: SweepDirectory, console: Console | None = None) -> int:
    """Print the number of runs of each plan in each state, and details of unfinished ones.

    Returns:
        0, or 1 if runs have failed.

    Raises:
        RunNotFoundError: there is no sweep.
    """
    console = console or open_console()
    failed = [_tell(directory, plan, console) for plan in directory.read_plans()]
    return 1 if any(failed) else 0


def _tell(directory: SweepDirectory, plan: Plan, console: Console) -> int:
    states = {run.hash: directory.state(run) for run in plan.runs}
    counts = Counter(states.values())
    told = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    console.print(f"{plan.name}: {len(plan.runs)} runs: {told}", markup=False)
    failures = directory.failures()
    for run in plan.runs:
        state, path = states[run.hash], directory.place(run)
        if state in ("running", "interrupted"):
            console.print(
                f"  {path.name}: {state}, {done_share(path, run.options.niter):.0%} done",
                markup=False,
            )
        if state == "failed":
            console.print(f"  {path.name}: failed. {failures[run.hash]}", markup=False)
            console.print(last_lines(directory.log(run)), markup=False, style="dim")
    return counts["failed"]
