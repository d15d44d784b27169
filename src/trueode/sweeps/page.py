"""The page of a sweep: its runs as a table and as small pictures of their loss."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from trueode.errors import RunDamagedError
from trueode.evaluation.wording import spoken
from trueode.files import plain
from trueode.report.contents import Contents, fact, missing, page, table
from trueode.report.page import write_report
from trueode.runs import read_audit, read_history
from trueode.sweeps.directory import STATES, SweepDirectory
from trueode.sweeps.plan import PlannedRun, told
from trueode.sweeps.table import Row, rows_of

SPARK = 40  # points of a small picture
MOST = 500  # most runs and rows that are shown


def write_page(directory: SweepDirectory) -> Path:
    """Write ``report.html`` into the directory of a sweep: one page for all of its plans.

    Raises:
        RunNotFoundError: there are no plans.
        UsageError: a plan is damaged.
    """
    made = contents_of(directory)
    directory.check()
    path = directory.path / "report.html"
    write_report(made, path)
    return path


def contents_of(directory: SweepDirectory) -> Contents:
    """The contents of the page of a sweep; see `write_page`."""
    plans = directory.read_plans()
    planned = {run.hash: run for plan in plans for run in plan.runs}
    rows: dict[tuple[Any, ...], Row] = {
        tuple(map(str, row.values())): row for plan in plans for row in rows_of(directory, plan)
    }
    runs = [_run(directory, run) for run in planned.values()]
    verdicts = Counter(run["verdict"] for run in runs if run["verdict"])
    states = Counter(run["status"] for run in runs)
    answers = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
    sentence = f"{len(runs)} runs: {answers or 'none is finished'}"
    name = directory.path.resolve().name
    about = f"{', '.join(plan.name for plan in plans)}; " + ", ".join(
        f"{states[state]} {state}" for state in STATES if states[state]
    )
    made = page("sweep", f"Sweep {name}", about, sentence)
    made["runs"] = runs[:MOST]
    told_keys = (key for row in rows.values() for key in row if row[key] not in (None, ""))
    columns = list(dict.fromkeys(told_keys))
    values = [[row.get(key) for key in columns] for row in rows.values()]
    if values:
        title = "Runs under their test solvers"
        made["tables"] = [table("rows", title, columns, values[:MOST])]
    if max(len(runs), len(values)) > MOST:
        what = f"{len(runs)} runs have {len(values)} rows; the page shows {MOST} of each."
        made["facts"].append(missing(what, f"{directory.tables}/*.csv"))
    failures = directory.failures()
    failed = [f"{directory.place(planned[key]).name}: {failures[key]}" for key in failures
              if key in planned]  # fmt: skip
    if failed:
        made["facts"].append(fact("Failures", failed))
    for plan in plans:
        text = yaml.safe_dump(dict(plan.source), sort_keys=False, allow_unicode=True)
        place = str(directory.plans / f"{plan.name}.yaml")
        command = shlex.join(["trueode", "sweep", place, "--output_dir", str(directory.path)])
        made["facts"].append(fact("How it was made", [f"Command: {command}"], text))
    return made


def _run(directory: SweepDirectory, run: PlannedRun) -> Contents:
    """A run in small: its place on the axes, its answer, its options and its loss."""
    path, state = directory.place(run), directory.state(run)
    judged = read_audit(path) if state == "finished" else {}
    performance = judged.get("performance", {})
    options = run.options
    own = {name: getattr(options, name) for name in options.changed if name != "name"}
    try:
        loss = read_history(path / "history.csv").get("loss", [])
    except (OSError, RunDamagedError):  # not begun, or killed while it wrote
        loss = []
    every = max(1, -(-len(loss) // SPARK))
    found: Contents = plain({
        "name": path.name,
        "status": state,
        "values": {axis: _short(value) for axis, value in run.axes.items()},
        "metric": performance.get("own"),
        "metric_name": spoken(performance["name"]) if performance else None,
        "verdict": judged.get("verdict", ""),
        "options": yaml.safe_dump(plain(own), sort_keys=False, allow_unicode=True),
        "spark": [round(float(x), 6) if abs(x) < 1e9 else x for x in loss[::every]],
    })  # fmt: skip
    return found


def _short(value: Any) -> Any:
    return told(value) if isinstance(value, tuple | bool) or value is None else value
