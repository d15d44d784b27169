"""A sweep trusts only the files of its workers, and succeeds if all runs are in the table."""

from __future__ import annotations

import io
import json
import queue
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.sweeps.samples import SOURCE, said, table, told
from trueode.errors import RunDamagedError, UsageError, WorkersLostError
from trueode.sweeps import SweepDirectory, execute, make_plan, run_sweep
from trueode.sweeps.directory import done_share, finished
from trueode.sweeps.jobs import STATUSES, Job, Result
from trueode.sweeps.status import status

Answer = Callable[[Job], Any]


class Scripted:
    """Workers with scripted answers.

    Args:
        answers: for the tries of the first run that is submitted; all others finish at once.
        whole: a sweep from which finished runs are copied.
    """

    count = 1

    def __init__(self, answers: list[str], whole: Path) -> None:
        self.answers, self.whole = answers, whole
        self.first: str | None = None
        self.jobs: queue.Queue[Job] = queue.Queue()
        self.closed = False

    def submit(self, job: Job) -> None:
        self.first = self.first or job.hash
        self.jobs.put(job)

    def next(self, patience: float) -> Result:
        job = self.jobs.get_nowait()
        answer = self.answers.pop(0) if job.hash == self.first else "done"
        if answer == "lost":
            raise WorkersLostError("The scheduler has gone.")
        if answer == "done":
            place = Path(job.options["output_dir"]) / job.options["name"]
            shutil.copytree(self.whole / "runs" / place.name, place)
        if answer == "gone":
            shutil.rmtree(Path(job.options["output_dir"]).parent)
        return Result(job.hash, answer if answer in STATUSES else "finished")

    def interrupt(self) -> None:
        raise AssertionError("nobody has interrupted")

    def close(self) -> None:
        self.closed = True


def carried_out(
    answers: list[str], whole: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str]:
    """Run a sweep with scripted workers; return exit code and output."""
    workers, console = Scripted(answers, whole), told()
    monkeypatch.setattr(execute, "_workers", lambda *_: workers)
    try:
        return run_sweep(make_plan(SOURCE), SweepDirectory(folder), console=console), said(console)
    finally:
        assert workers.closed


@pytest.mark.parametrize("first", ["interrupted", "failed", "finished"])
def test_what_is_lost_once_is_done_again(
    first: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, words = carried_out([first, "done"], whole, tmp_path, monkeypatch)
    assert (code, words.count("tried once more")) == (0, 1), words
    assert table(tmp_path) == table(whole)


@pytest.mark.parametrize("second", STATUSES)
def test_what_is_lost_twice_is_a_failure(
    second: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, words = carried_out(["interrupted", second], whole, tmp_path, monkeypatch)
    assert code == 1, words
    assert "1 of 4 runs have failed" in words
    assert [row["status"] for row in table(tmp_path)].count("failed") == 1
    assert len({row["hash"] for row in table(tmp_path)}) == 4


def test_runs_that_nobody_can_do_any_more_are_named(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, words = carried_out(["interrupted", "lost"], whole, tmp_path, monkeypatch)
    assert code == 1, words
    there = {row["run"] for row in table(tmp_path)}
    (missing,) = {run.name for run in make_plan(SOURCE).runs} - there
    assert (
        f"1 of 4 runs are not in the table; the same command continues with them:\n{missing}\n"
        in words
    )
    assert carried_out(["done"], whole, tmp_path, monkeypatch)[0] == 0
    assert table(tmp_path) == table(whole)


def test_a_sweep_whose_directory_is_removed_does_not_make_it_anew(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunDamagedError, match="removed, moved or replaced"):
        carried_out(["gone"], whole, tmp_path / "sweep", monkeypatch)
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    "answer",
    [
        *(None, 3, "finished", {}, {"status": "finished"}, {"status": "good", "message": ""}),
        *({"status": "failed", "message": 1}, {"status": ["finished"], "message": ""}),
        {"status": "finished", "message": "", "archive": "text"},
    ],
)
def test_an_answer_that_is_none_is_a_failure(answer: Any) -> None:
    assert Result.of("a", answer).status == "failed"
    assert Result.of("a", {"status": "interrupted", "message": "b"}) == Result(
        "a", "interrupted", "b"
    )


def damaged(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def damage(run: Path) -> None:
        found = json.loads((run / "audit.json").read_text())
        change(found)
        (run / "audit.json").write_text(json.dumps(found))

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda run: (run / "audit.json").unlink(),
        lambda run: (run / "audit.json").write_bytes(b"\xff{"),
        lambda run: (run / "audit.json").write_text("[]"),
        lambda run: (run / "run.json").write_text("{"),
        damaged(lambda found: found.pop("performance")),
        damaged(lambda found: found.update(n="1000")),
        damaged(lambda found: found["rows"][0].update(metric="good")),
        damaged(lambda found: found["rows"][0].pop("factors")),
    ],
)
def test_a_run_is_finished_when_its_row_can_be_written(
    damage: Callable[[Path], Any], whole: Path, tmp_path: Path
) -> None:
    source = next(whole.glob("runs/*"))
    run = tmp_path / source.name
    shutil.copytree(source, run)
    assert finished(run)
    damage(run)
    assert not finished(run)


@pytest.mark.parametrize(
    "text", ["", "\n\n", "iteration\nx,1\n", f"iteration\n{'9' * 900},1\n", "iteration\n-4,1\n"]
)
def test_the_share_of_a_strange_history(text: str, tmp_path: Path) -> None:
    (tmp_path / "history.csv").write_text(text)
    assert 0 <= done_share(tmp_path, 10) <= 1


def test_status_of_a_damaged_plan(tmp_path: Path) -> None:
    directory = SweepDirectory(tmp_path)
    directory.keep(make_plan(SOURCE))
    for text in ("[", "base: {niter: 2001-99-99}", "3"):
        (directory.plans / "grid.yaml").write_text(text)
        with pytest.raises(UsageError, match=r"plans/grid\.yaml"):
            status(directory, told())


def test_what_a_worker_returns_goes_to_the_place_of_its_run_alone(
    whole: Path, tmp_path: Path
) -> None:
    cluster = pytest.importorskip("trueode.sweeps.cluster", exc_type=ImportError)
    with SweepDirectory(tmp_path) as directory:
        mine, other = sorted(path.name for path in whole.glob("runs/*"))[:2]
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            for name in (mine, other):
                archive.add(whole / "runs" / mine, name)
                archive.add(whole / "logs" / f"{mine}.txt", f"{name}.txt")
        for name in (mine, other):  # started by this sweep
            (directory.runs / name).mkdir()
            (directory.runs / name / "config.yaml").write_text("begun")
        workers = object.__new__(cluster.ClusterWorkers)
        workers._directory = directory
        job = Job("hash", {"name": mine, "output_dir": str(directory.runs)}, "")
        answer = Result("hash", "finished", "", packed.getvalue())
        assert workers._unpacked(job, answer) == Result("hash", "finished")
        assert finished(directory.runs / mine)
        assert (directory.runs / other / "config.yaml").read_text() == "begun"
        assert [path.name for path in directory.logs.iterdir()] == [f"{mine}.txt"]
        (directory.runs / mine / "notes.txt").write_text("mine")
        with pytest.raises(OSError, match="not empty"):
            workers._unpacked(job, answer)
        assert (directory.runs / mine / "notes.txt").read_text() == "mine"
        assert not list(tmp_path.glob("tmp*"))


def test_a_sweep_that_cannot_begin_leaves_no_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise UsageError("no scheduler")

    monkeypatch.setattr(execute, "_workers", refuse)
    with pytest.raises(UsageError, match="no scheduler"):
        run_sweep(make_plan(SOURCE), SweepDirectory(tmp_path / "a" / "b"), console=told())
    assert not list(tmp_path.iterdir())
