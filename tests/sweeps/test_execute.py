"""Sweeps do each run once, and their table does not depend on killed processes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import yaml

from tests.sweeps.samples import BASE, SOURCE, said, table, told
from trueode.errors import UsageError
from trueode.sweeps import SweepDirectory, make_plan, rows_of, run_sweep
from trueode.sweeps.estimate import print_estimate
from trueode.sweeps.status import status


def start(folder: Path) -> subprocess.Popen[str]:
    """The same sweep from the command line, as a process that can be killed."""
    plan = folder.parent / "grid.yaml"
    plan.write_text(yaml.safe_dump(SOURCE, sort_keys=False))
    words = [sys.executable, "-m", "trueode", "sweep", str(plan), "--output_dir", str(folder)]
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder.parent
    )


def children(pid: int) -> list[int]:
    """The worker processes of a sweep."""
    done = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(word) for word in done.stdout.split()]


def test_a_row_for_each_run_solver_and_factor(whole: Path) -> None:
    rows = rows_of(SweepDirectory(whole), make_plan(SOURCE))
    keys = [(row["run"], row["test_solver"], row["factor"]) for row in rows]
    assert len(set(keys)) == len(keys) == 4 * 2 * 3
    assert sum(row["is_training"] for row in rows) == 4
    assert all(
        row["status"] == "success" and 0 <= row["metric"] <= 1 and 0 <= row["flips"] <= 1
        for row in rows
    )
    steps = {(row["step_size"], row["test_solver"], row["factor"]): row["n_steps"] for row in rows}
    assert steps[0.25, "rk4", 0.5] == 8
    assert steps[1, "euler", 2] == 1, "a step above the interval is one step"


def test_csv_and_parquet_are_the_same_table(whole: Path) -> None:
    columns = pyarrow.parquet.read_table(whole / "tables" / "grid.parquet").to_pydict()
    rows = table(whole)
    assert [str(value) for value in columns["metric"]] == [row["metric"] for row in rows]
    assert list(columns)[:4] == ["run", "hash", "step_size", "random_seed"]


def test_what_is_finished_is_not_repeated_and_what_is_new_is_done(whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.glob("runs/*/run.json")}
    rows = table(whole)
    longer = {**SOURCE, "name": "longer", "axes": {"step_size": [1, 0.25, 0.5], "random_seed": [0]}}
    console = told()
    assert run_sweep(make_plan(longer), SweepDirectory(whole), console=console) == 0
    assert "2 of them finished before" in said(console)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(whole.glob("runs/*"))) == len(before) + 1
    assert [row for row in table(whole, "longer") if row["step_size"] == "1.0"] == [
        row for row in rows if row["step_size"] == "1.0" and row["random_seed"] == "0"
    ]
    audit = min(before).with_name("audit.json")
    audit.unlink()  # only the end of this run is repeated
    assert run_sweep(make_plan(SOURCE), SweepDirectory(whole), console=told()) == 0
    assert table(whole) == rows
    assert {path for path in before if path.stat().st_mtime_ns != before[path]} == {
        audit.with_name("run.json")
    }


def test_killed_at_random_moments(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    random.seed()
    for moment in (0.5 + random.random(), 1.5 + random.random()):
        sweep = start(folder)
        end = time.monotonic() + 30
        while not list(folder.glob("runs/*")) and time.monotonic() < end and sweep.poll() is None:
            time.sleep(0.02)
        time.sleep(moment / 3)
        workers = children(sweep.pid)
        os.kill(sweep.pid, signal.SIGKILL)
        sweep.communicate()
        for worker in workers:  # they end when their sweep is gone
            while (
                Path(f"/proc/{worker}/cmdline").exists()
                and b"worker" in Path(f"/proc/{worker}/cmdline").read_bytes()
            ):
                time.sleep(0.02)
                assert time.monotonic() < end + 30, "a worker outlives its sweep"
    sweep = start(folder)
    while sweep.poll() is None and not list(folder.glob("runs/*/.")):
        time.sleep(0.02)
    time.sleep(random.random())
    for worker in children(sweep.pid)[:1]:
        os.kill(worker, random.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT)))
    output, _ = sweep.communicate(timeout=120)
    assert sweep.returncode == 0, output
    assert table(folder) == table(whole)


def test_interrupted_by_the_user(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    sweep = start(folder)
    while sweep.poll() is None and not list(folder.glob("runs/*/history.csv")):
        time.sleep(0.02)
    sweep.send_signal(signal.SIGINT)
    output, _ = sweep.communicate(timeout=120)
    assert sweep.returncode == 130, output
    assert "the same command continues the sweep" in output
    console = told()
    assert run_sweep(make_plan(SOURCE), SweepDirectory(folder), console=console) == 0, said(console)
    assert table(folder) == table(whole)


def test_a_run_that_fails_is_tried_once_more_and_reported_while_others_go_on(
    tmp_path: Path,
) -> None:
    source = {"name": "bad", "base": {**BASE, "niter": 30}, "axes": {"lr": [0.01, 1e30]}}
    plan, directory, console = make_plan(source), SweepDirectory(tmp_path), told()
    assert run_sweep(plan, directory, console=console, workers=1) == 1
    assert said(console).count("tried once more") == 1
    assert "not finite" in said(console).split("the end of")[1], "the last lines of its log"
    log = directory.log(plan.runs[1]).read_text()
    assert log.count("not finite") == 2
    assert [directory.state(run) for run in plan.runs] == ["finished", "failed"]
    rows = table(tmp_path, "bad")
    assert [row["status"] for row in rows if row["lr"] == "1e+30"] == ["failed"]
    assert len(rows) == 7
    shown = told()
    assert status(directory, shown) == 1
    assert "1 finished, 1 failed" in said(shown)
    assert "not finite" in said(shown)


def test_two_sweeps_on_one_directory(tmp_path: Path) -> None:
    with SweepDirectory(tmp_path), pytest.raises(UsageError, match="Another sweep works in"):
        run_sweep(make_plan(SOURCE), SweepDirectory(tmp_path), console=told())
    with SweepDirectory(tmp_path):
        pass


def test_the_estimate_trains_nothing(tmp_path: Path) -> None:
    console = told()
    plan = make_plan({**SOURCE, "axes": {"step_size": [1, 0.25], "random_seed": [0, 1]}})
    assert print_estimate(plan, SweepDirectory(tmp_path), 2, console) == 0
    assert not list(tmp_path.glob("*"))
    for run in plan.runs:
        assert run.name in said(console)
    evaluations = {
        run.options.step_size: run.options.niter / run.options.step_size for run in plan.runs
    }
    assert all(f"{value:.3g}" in said(console) for value in evaluations.values())
    assert f"{2 * sum(evaluations.values()):.3g} field evaluations" in said(console)


def test_the_estimate_of_a_certified_run_asks_for_no_certificate(tmp_path: Path) -> None:
    base: dict[str, Any] = {
        "solver": "rk4",
        "use_step_adaption_algo": True,
        "adaption_algo": "fidelity",
    }
    console = told()
    assert print_estimate(make_plan({"base": base}), SweepDirectory(tmp_path), 1, console) == 0, (
        said(console)
    )


def test_status_of_what_is_finished_and_waits(whole: Path, tmp_path: Path) -> None:
    console = told()
    assert status(SweepDirectory(whole), console) == 0
    assert "grid: 4 runs: 4 finished" in said(console)
    directory = SweepDirectory(tmp_path)
    directory.keep(make_plan(SOURCE))
    console = told()
    assert status(directory, console) == 0
    assert "grid: 4 runs: 4 waiting" in said(console)
