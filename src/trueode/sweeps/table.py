"""The tidy table of a sweep: a row for each run, test solver and factor."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from trueode.files import write_atomic
from trueode.runs import read_audit, write_text
from trueode.sweeps.directory import SweepDirectory, facts
from trueode.sweeps.plan import Plan, PlannedRun, told

TIMINGS = ("seconds",)
"""Columns that may differ between equal sweeps."""
TESTED = (
    "test_solver",
    "kind",
    "factor",
    "setting",
    "n_steps",
    "nfe",
    "metric_name",
    "metric",
    "loss",
    "changed",
)
MEASURED = ("nfe_per_iteration", "seconds")  # from run.json; the others are from audit.json
ENDED = ("verdict", "samples", "metric_exact", "flips", "final_solver", "nfe_per_iteration")

Row = dict[str, Any]


def rows_of(directory: SweepDirectory, plan: Plan) -> list[Row]:
    """The table of a plan, in the order of its runs.

    The columns are ``run``, ``hash``, ``grid`` (if the plan names its grids) and the axes; for the
    test solver ``test_solver``, ``kind``, ``factor``, ``setting`` (number of steps, or tolerance),
    ``n_steps``, ``nfe`` (per sample), ``metric_name``, ``metric`` (accuracy as a share, or mse),
    ``loss``, ``changed`` (share of predictions unlike the training solver's), ``is_training`` and
    ``status``; for the run, equal in all of its rows, ``verdict``, ``samples`` (number compared
    with the exact flow), ``metric_exact``, ``flips`` (share of these unlike the exact flow's),
    ``final_solver``, ``nfe_per_iteration`` (all evaluations) and ``seconds``.

    A run without other test solvers has one row, for its training solver. A failed run has one row
    with this status, an unfinished run has none.
    """
    return [row for run in plan.runs for row in _rows(directory, plan, run)]


def _rows(directory: SweepDirectory, plan: Plan, run: PlannedRun) -> Iterator[Row]:
    state = directory.state(run)
    named = any(other.grid for other in plan.runs)
    values = {axis: _plain(getattr(run.options, axis)) for axis in plan.axes}
    row: Row = {
        "run": directory.place(run).name,
        "hash": run.hash,
        **({"grid": run.grid} if named else {}),
        **values,
    }
    row |= dict.fromkeys((*TESTED, "is_training", "status", *ENDED, *TIMINGS))
    if state == "failed":
        yield {**row, "status": "failed"}
    if state != "finished":
        return
    path = directory.place(run)
    info, judged = facts(path, "run.json"), read_audit(path)
    performance = judged["performance"]
    row |= {
        "verdict": judged["verdict"],
        "samples": judged["n"],
        "metric_exact": performance["exact"],
        "flips": None
        if judged["exact_flow"] is None
        else (judged["flips"] + judged["blown_up"]) / judged["n"],
        "final_solver": judged["solver"],
        **{name: value for name in MEASURED if isinstance(value := info.get(name), int | float)},
    }
    rows = judged["rows"] if len(judged["rows"]) > 1 else []
    if not rows:
        closing = {
            "metric_name": performance["name"],
            "metric": performance["own"],
            "changed": 0.0,
            "is_training": True,
        }
        yield {
            **row,
            **closing,
            "test_solver": run.options.method,
            "factor": 1.0,
            "status": "success",
        }
    for found in rows:
        shared = {
            name: found[name]
            for name in ("kind", "setting", "n_steps", "nfe", "metric", "loss", "changed", "status")
        }
        shared |= {"test_solver": found["method"], "metric_name": performance["name"]}
        for factor in found["factors"]:  # factors with equal steps share one solve
            yield {
                **row,
                **shared,
                "factor": factor,
                "is_training": found["is_training"] and factor == 1,
            }


def _plain(value: Any) -> Any:
    return told(value) if isinstance(value, tuple) else value


def write_table(directory: SweepDirectory, plan: Plan) -> Path:
    """Write the table as CSV, and as Parquet if pyarrow is installed.

    Returns:
        The path of the CSV file.
    """
    rows = rows_of(directory, plan)
    directory.check()
    path = directory.tables / f"{plan.name}.csv"
    write_text(path, to_csv(rows))
    if rows and find_spec("pyarrow") is not None:
        import pyarrow
        import pyarrow.parquet

        columns = {name: [row[name] for row in rows] for name in rows[0]}
        table = pyarrow.table(columns)

        def write(file: IO[bytes]) -> None:
            pyarrow.parquet.write_table(table, file)

        write_atomic(path.with_suffix(".parquet"), write)
    return path


def to_csv(rows: Sequence[Row]) -> str:
    """Rows as CSV: numbers with all digits, missing values empty, booleans as true and false."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {
                    key: str(value).lower() if isinstance(value, bool) else value
                    for key, value in row.items()
                }
            )
    return text.getvalue()
