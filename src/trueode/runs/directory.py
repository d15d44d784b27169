"""The directory of a run: its place, its files, what ``run.json`` says of it."""

from __future__ import annotations

import json
import platform
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from trueode.errors import RunExistsError, RunNotFoundError, nearest
from trueode.runs.files import TEMPORARY, Lock, write_json

FILES = (
    "config.yaml",
    "history.csv",
    "run.json",
    "audit.json",
    "certificate.json",
    "solver_swap.json",
    "solver_swap.csv",
    "evaluation_train.json",
    "evaluation_test.json",
)
CLOSING = ("verdict", "sentence", "solver")  # what is said of a run at its end, in run.json
JUDGEMENTS = ("audit.json", "certificate.json")  # the latter of earlier versions; of the model that training ended with
AUDIT = {"audit": ("audit.json", "audit_*.png")}  # what `trueode audit` writes
FOLDERS = {
    "checkpoints": ("iteration_*.pt", f"*{TEMPORARY}"),
    "figures": ("*.png",),
    "tensorboard_logs": ("events.out.tfevents.*",),
    **AUDIT,
}


class RunDirectory:
    """``OUTPUT_DIR/NAME``; nothing in it is deleted or overwritten unless asked for.

    Who writes to it holds its lock until `release`, or until the process ends in whatever way.
    """

    def __init__(self, path: Path, lock: Lock | None = None) -> None:
        self.path = path
        self._lock = lock
        self.name = path.name
        self.config = path / "config.yaml"
        self.history = path / "history.csv"
        self.info = path / "run.json"
        self.checkpoints = path / "checkpoints"
        self.figures = path / "figures"
        self.tensorboard_logs = path / "tensorboard_logs"

    @classmethod
    def create(cls, output_dir: str, name: str, *, explicit: bool, overwrite: bool) -> RunDirectory:
        """Make the directory of a new run.

        Args:
            output_dir: folder of all runs.
            name: the run's name; taken as it is when explicit, else the first free of NAME, NAME-2, NAME-3, ….
            explicit: whether the user gave the name.
            overwrite: take the directory of an earlier run of that name; `clear` removes its files.

        Raises:
            RunExistsError: the name is explicit and taken, and ``overwrite`` was not asked for.
        """
        root = Path(output_dir)
        try:
            root.mkdir(parents=True, exist_ok=True)
            if overwrite:
                (root / name).mkdir(exist_ok=True)
                directory = cls(root / name)
                directory.lock()
                return directory
            candidate, number = name, 1
            while (lock := _claim(root / candidate)) is None:
                number += 1
                candidate = f"{name}-{number}"
                if explicit:
                    free = next(n for i in range(2, 10**6) if not (root / (n := f"{name}-{i}")).exists())
                    raise RunExistsError(
                        f"The run {root / name} exists and is left as it is. Continue it with --resume true, replace it "
                        f"with --overwrite true, or choose a free name such as --name {free}."
                    )
        except OSError as failure:
            raise RunExistsError(
                f"No run can be written to {root / name}: {failure.strerror}. Choose another --output_dir."
            ) from None
        return cls(root / candidate, lock)

    @classmethod
    def open(cls, output_dir: str, name: str) -> RunDirectory:
        """The directory of an existing run.

        Raises:
            RunNotFoundError: there is none of that name.
        """
        root = Path(output_dir)
        if not (root / name / "config.yaml").is_file():
            known = sorted(path.parent.name for path in root.glob("*/config.yaml"))
            there = f" There are: {', '.join(known[:10])}.{nearest(name, known)}" if known else " There are none there."
            raise RunNotFoundError(f"There is no run {root / name} (no config.yaml in it).{there}")
        return cls(root / name)

    @property
    def has_checkpoints(self) -> bool:
        """Whether there is something to go on from."""
        return any(self.checkpoints.glob("*.pt"))

    def lock(self) -> None:
        """Keep others from writing here.

        Raises:
            RunExistsError: another process does write here.
        """
        self._lock = Lock.take(self.path)
        if self._lock is None:
            raise RunExistsError(
                f"The run {self.path} is being written by another process: wait for it to end, or choose another --name."
            )

    def release(self) -> None:
        """Let others write here; a directory in which nothing was written is removed."""
        if self._lock is not None:
            with suppress(OSError):  # it holds something
                self.path.rmdir()
            self._lock.release()
            self._lock = None

    def clear(self) -> None:
        """Remove the files of an earlier run: only those that a run writes."""
        for name in FILES:
            (self.path / name).unlink(missing_ok=True)
            (self.path / f"{name}{TEMPORARY}").unlink(missing_ok=True)
        self._clear_folders(FOLDERS)

    def forget_audit(self) -> None:
        """Remove what ``trueode audit`` has written: it is of the newest checkpoint, and there comes a newer one."""
        self._clear_folders(AUDIT)

    def _clear_folders(self, folders: Mapping[str, tuple[str, ...]]) -> None:
        for name, patterns in folders.items():
            folder = self.path / name
            for written in [file for pattern in patterns for file in folder.glob(pattern)]:
                written.unlink()
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def start(self, facts: dict[str, Any]) -> None:
        """Write ``run.json`` at the start: what runs, with what, where; what was said of an earlier end is taken back."""
        for name in JUDGEMENTS:
            (self.path / name).unlink(missing_ok=True)
        earlier = {name: fact for name, fact in self.read_info().items() if name not in CLOSING}
        write_json(self.info, {**earlier, **_provenance(), "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **facts})

    def update(self, **facts: Any) -> None:
        """Add facts to ``run.json``."""
        write_json(self.info, {**self.read_info(), **facts})

    def read_info(self) -> dict[str, Any]:
        """What ``run.json`` says; nothing if it is missing or damaged."""
        try:
            content = json.loads(self.info.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}


def _claim(path: Path) -> Lock | None:
    """Make a directory and lock it; None if the name is taken (a directory without whole files is free)."""
    try:
        path.mkdir()
    except FileExistsError:
        if not path.is_dir():
            return None
    lock = Lock.take(path)
    if lock is not None and not all(left.name.endswith(TEMPORARY) for left in path.iterdir()):
        lock.release()
        return None
    return lock


def _provenance() -> dict[str, Any]:
    versions = {"python": platform.python_version()}
    for package in ("trueode", "torch", "numpy"):
        versions[package] = metadata.version(package)
    return {
        "versions": versions,
        "git_commit": _git_commit(),
        "machine": {"system": platform.system(), "processor": platform.machine()},
    }


def _git_commit() -> str | None:
    """The commit of the source, when it lies in a repository."""
    here = Path(__file__).resolve().parent
    if not any((folder / ".git").exists() for folder in here.parents):
        return None
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
