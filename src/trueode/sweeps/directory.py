"""The directory of sweeps: runs, logs, plans and tables, and the state of each run."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from trueode.errors import RunDamagedError, RunNotFoundError, UsageError
from trueode.files import Lock, make_folder
from trueode.runs import RunDirectory, read_audit, write_json, write_text
from trueode.sweeps.plan import Plan, PlannedRun, read_plan

MARK = ".shared-"  # prefix of the file that shows workers whether they share this directory
STATES = ("finished", "running", "interrupted", "failed", "waiting")


class SweepDirectory:
    """``DIR/`` with ``runs/NAME/``, as ``trueode train`` writes them, ``logs/NAME.txt``,
    ``plans/PLAN.yaml`` and ``tables/PLAN.csv``.

    Several plans can share a directory, and the runs that they have in common: runs are found by
    their hash.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.runs = self.path / "runs"
        self.logs = self.path / "logs"
        self.plans = self.path / "plans"
        self.tables = self.path / "tables"
        self.fingerprints = self.path / "fingerprints.json"
        self._failures = self.path / "failures.json"
        self._lock: Lock | None = None
        self._names: dict[str, str] | None = None
        self._made: list[Path] = []

    def __enter__(self) -> SweepDirectory:
        """Make the directory, and lock it against other sweeps.

        Raises:
            UsageError: another sweep works in it, or it cannot be written.
        """
        self._made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            for folder in (self.path, self.runs, self.logs):
                make_folder(folder)
            self._lock = Lock.take(self.path)
        except OSError as failure:
            raise UsageError(
                f"{self.path} cannot be written: {failure.strerror}. Choose another --output_dir."
            ) from None
        if self._lock is None:
            raise UsageError(
                f"Another sweep works in {self.path}: wait for it to end (`trueode sweep status "
                f"{self.path}` shows its progress), or choose another --output_dir."
            )
        for left in self.path.glob(
            f"{MARK}*"
        ):  # of a killed sweep: its workers then end their runs
            left.unlink(missing_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            with suppress(OSError):  # a folder that is not empty stays
                for folder in (self.logs, self.runs, *self._made) if self._lock.in_place else ():
                    folder.rmdir()
            self._lock.release()
            self._lock = None

    def check(self) -> None:
        """Check that the directory is the one that this sweep has locked.

        Raises:
            RunDamagedError: it was removed, moved or replaced.
        """
        if self._lock is not None and not self._lock.in_place:
            raise RunDamagedError(
                f"The directory {self.path} was removed, moved or replaced while a sweep worked in "
                "it."
            )

    def keep(self, plan: Plan) -> None:
        """Write the plan, including the overriding flags."""
        import yaml

        text = yaml.safe_dump(
            dict(plan.source),
            sort_keys=False,
            default_flow_style=None,
            allow_unicode=True,
            width=110,
        )
        write_text(self.plans / f"{plan.name}.yaml", text)

    def read_plans(self) -> list[Plan]:
        """The plans that were carried out here.

        Raises:
            RunNotFoundError: there are no plans.
            UsageError: a plan is damaged.
        """
        found = sorted(self.plans.glob("*.yaml"))
        if not found:
            raise RunNotFoundError(f"There is no sweep in {self.path} (no plan in {self.plans}).")
        return [read_plan(path, cache=self.fingerprints) for path in found]

    def place(self, run: PlannedRun) -> Path:
        """The directory of a run, found by the hash at the end of its name."""
        if self._names is None:  # runs that are made later have the names of their plan
            found = sorted(path.name for path in self.runs.glob("*-*"))
            self._names = {name.rsplit("-", 1)[1]: name for name in found}
        return self.runs / self._names.get(run.hash, run.name)

    def log(self, run: PlannedRun) -> Path:
        """The log of a run."""
        return self.logs / f"{self.place(run).name}.txt"

    def state(self, run: PlannedRun) -> str:
        """One of ``STATES``."""
        path = self.place(run)
        if finished(path):
            return "finished"
        if path.is_dir() and _locked(path):
            return "running"
        if run.hash in self.failures():
            return "failed"
        return "interrupted" if (path / "config.yaml").is_file() else "waiting"

    def failures(self) -> dict[str, str]:
        """The reasons why runs have failed, by hash."""
        try:
            found = json.loads(self._failures.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def remember_failure(self, run: PlannedRun, why: str | None) -> None:
        """Store the reason why a run has failed; None removes it."""
        known = self.failures()
        if why is None and run.hash not in known:
            return
        self.check()
        write_json(
            self._failures,
            {**known, run.hash: why} if why else {k: v for k, v in known.items() if k != run.hash},
        )


def finished(path: Path) -> bool:
    """Whether a run is complete: ``run.json`` has its verdict, which is written last, and its audit
    can be read.
    """
    try:
        return "verdict" in RunDirectory(path).read_info() and bool(read_audit(path))
    except RunNotFoundError:
        return False


def done_share(path: Path, niter: int) -> float:
    """The share of its training that a run has done, by the last complete row of its history."""
    try:
        with (path / "history.csv").open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 1000))
            rows = file.read().split(b"\n")
        return min(max(int(rows[-2].split(b",")[0]) / niter, 0.0), 1.0)
    except (OSError, ValueError, ArithmeticError, IndexError):  # no row yet
        return 0.0


def last_lines(path: Path, n: int = 8) -> str:
    """The end of a log."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-n:])


def _locked(path: Path) -> bool:
    lock = Lock.take(path)
    if lock is None:
        return True
    lock.release()
    return False


def facts(path: Path, name: str) -> dict[str, Any]:
    """The content of a JSON file of a run; empty if it cannot be read."""
    try:
        found = json.loads((path / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
