"""The same plan on a Dask scheduler with two workers, as separate processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sweeps.samples import BASE, SOURCE, said, table, told
from trueode.errors import UsageError
from trueode.sweeps import SweepDirectory, make_plan, run_sweep

pytest.importorskip("distributed")


class Cluster:
    """A scheduler and workers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "scheduler.json"
        self.scheduler = self._start("dask_scheduler", "--host", "127.0.0.1", "--port", "0")
        while not self.file.exists():
            assert self.scheduler.poll() is None, self.log()
            time.sleep(0.05)
        self.address = json.loads(self.file.read_text())["address"]
        self.workers = [self.add_worker() for _ in range(2)]

    def add_worker(self) -> subprocess.Popen[bytes]:
        return self._start("dask_worker", "--nthreads", "1", "--no-nanny", "--host", "127.0.0.1")

    def _start(self, module: str, *words: str) -> subprocess.Popen[bytes]:
        command = [
            sys.executable,
            "-m",
            f"distributed.cli.{module}",
            "--scheduler-file",
            str(self.file),
            "--no-dashboard",
        ]
        with (self.folder / "log.txt").open("ab") as log:
            return subprocess.Popen([*command, *words], stdout=log, stderr=log, cwd=self.folder)

    def log(self) -> str:
        return (self.folder / "log.txt").read_text()

    def close(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    yield made
    made.close()


def test_a_worker_that_is_killed_loses_nothing(
    cluster: Cluster, whole: Path, tmp_path: Path
) -> None:
    words = [
        "-m",
        "trueode",
        "sweep",
        str(tmp_path / "grid.yaml"),
        "--output_dir",
        str(tmp_path / "here"),
    ]
    (tmp_path / "grid.yaml").write_text(json.dumps(SOURCE))
    with (tmp_path / "output.txt").open("w") as output:
        sweep = subprocess.Popen(
            [sys.executable, *words, "--scheduler", cluster.address], stdout=output, stderr=output
        )
    while sweep.poll() is None and not list((tmp_path / "here").glob("runs/*/history.csv")):
        time.sleep(0.02)
    os.kill(cluster.workers[0].pid, signal.SIGKILL)
    cluster.workers[0].wait()
    assert sweep.wait(120) == 0, (tmp_path / "output.txt").read_text() + cluster.log()
    assert table(tmp_path / "here") == table(whole)
    cluster.workers[0] = cluster.add_worker()


def test_workers_that_share_no_directory_return_their_runs(
    cluster: Cluster, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the mark by which workers detect a shared directory is missing
    monkeypatch.setattr(Path, "touch", lambda path: None)
    console = told()
    code = run_sweep(
        make_plan(SOURCE), SweepDirectory(tmp_path), scheduler=cluster.address, console=console
    )
    assert code == 0, said(console) + cluster.log()
    assert table(tmp_path) == table(whole)
    assert len(list(tmp_path.glob("logs/*.txt"))) == len(list(tmp_path.glob("runs/*/figures"))) == 4
    assert not list(tmp_path.glob("tmp*"))


def test_no_scheduler_at_that_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trueode.sweeps import cluster as module

    monkeypatch.setattr(module, "TIMEOUT", "0.5s")
    with pytest.raises(UsageError, match="no Dask scheduler at tcp://127"):
        run_sweep(
            make_plan(SOURCE),
            SweepDirectory(tmp_path),
            scheduler="tcp://127.0.0.1:9",
            console=told(),
        )


def test_the_scheduler_needs_nothing_of_this_package() -> None:
    """It unpickles the function that it passes on, without this package."""
    import cloudpickle

    from trueode.sweeps.cluster import _by_value

    sent = cloudpickle.dumps(_by_value())
    code = (
        "import sys, cloudpickle; sys.modules['trueode'] = None; "
        "cloudpickle.loads(sys.stdin.buffer.read())"
    )
    subprocess.run([sys.executable, "-c", code], input=sent, check=True)


def test_a_scheduler_that_is_lost_ends_the_sweep(cluster: Cluster, tmp_path: Path) -> None:
    """The last test, because it ends the scheduler."""

    def kill() -> None:
        while not list(tmp_path.glob("runs/*/history.csv")):
            time.sleep(0.02)
        cluster.scheduler.kill()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    console, plan = told(), make_plan({**SOURCE, "base": {**BASE, "niter": 100_000}})
    code = run_sweep(plan, SweepDirectory(tmp_path), scheduler=cluster.address, console=console)
    killer.join()
    assert code == 1, said(console)
    assert "connection to the Dask scheduler" in said(console)
    assert "4 of 4 runs are not in the table" in said(console)
    assert all(run.name in said(console) for run in plan.runs)
