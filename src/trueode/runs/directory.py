"""The directory of a run: its files, its lock and its facts in ``run.json``."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from trueode.errors import RunDamagedError, RunExistsError, RunNotFoundError, nearest
from trueode.files import TEMPORARY, Lock, make_folder, real, write_json
from trueode.runs.checkpoints import NAME, found, prune

CLOSING = ("verdict", "sentence", "solver")  # facts in run.json that are known only at the end
JUDGEMENTS = ("audit.json", "certificate.json")  # the latter was written by earlier versions
WRITTEN = {
    "checkpoints": NAME,
    "figures": r"(loss|accuracy|mse|effort|adaptation|solver_swap|trajectories|regions|"
    r"time_series)\.png",
    "tensorboard_logs": r"events\.out\.tfevents\..+",
    "audit": r"(audit(\.json|_\w+\.png)|report\.html)",  # by `trueode audit`
    ".": r"(config\.yaml|history\.csv|solver_swap\.csv|report\.html|"
    r"(run|audit|certificate|solver_swap|evaluation_train|evaluation_test)\.json)",
}
"""Names of the files that runs write, by folder."""
LEFT = re.escape(TEMPORARY)


class RunDirectory:
    """``OUTPUT_DIR/NAME``; its files are deleted or overwritten only on request.

    A writer holds the lock of the directory until `release`, or until its process ends, and asks
    `place` for the path of each file.
    """

    def __init__(self, path: Path, lock: Lock | None = None, made: Iterable[Path] = ()) -> None:
        self.path = path
        self._lock = lock
        self._made = made
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
            name: of the run; unless it is explicit, the first free one of NAME, NAME-2, NAME-3, ….
            explicit: whether the user gave the name.
            overwrite: use the directory of an earlier run of that name; `clear` removes its files.

        Raises:
            RunExistsError: the name is explicit and taken, without ``overwrite``.
        """
        root = Path(output_dir)
        made = [folder for folder in (root, *root.parents) if not folder.exists()]
        try:
            make_folder(root)
            if overwrite:
                make_folder(root / name)
                directory = cls(root / name, made=made)
                directory.lock()
                return directory
            candidate, number = name, 1
            while (lock := _claim(root / candidate)) is None:
                number += 1
                candidate = f"{name}-{number}"
                if explicit:
                    free = next(
                        n for i in range(2, 10**6) if not (root / (n := f"{name}-{i}")).exists()
                    )
                    raise RunExistsError(
                        f"The run {root / name} exists. Continue it with --resume true, replace "
                        "it with --overwrite true, or choose a free name such as "
                        f"--name {free}."
                    )
        except OSError as failure:
            raise RunExistsError(
                f"{root / name} cannot be written: {failure.strerror}. Choose another --output_dir."
            ) from None
        return cls(root / candidate, lock, made)

    @classmethod
    def open(cls, output_dir: str, name: str) -> RunDirectory:
        """The directory of an existing run.

        Raises:
            RunNotFoundError: there is none of that name.
        """
        root = Path(output_dir)
        if not (root / name / "config.yaml").is_file():
            known = sorted(path.parent.name for path in root.glob("*/config.yaml"))
            there = (
                f" There are: {', '.join(known[:10])}.{nearest(name, known)}"
                if known
                else f" There are no runs in {root}."
            )
            raise RunNotFoundError(f"There is no run {root / name} (no config.yaml in it).{there}")
        return cls(root / name)

    @property
    def has_checkpoints(self) -> bool:
        """Whether the run has a checkpoint."""
        return bool(found(self.checkpoints))

    def lock(self) -> None:
        """Prevent other processes from writing here.

        Raises:
            RunExistsError: another process is writing here.
        """
        self._lock = Lock.take(self.path)
        if self._lock is None:
            raise RunExistsError(
                f"The run {self.path} is being written by another process: wait for it to end, or "
                "choose another --name."
            )

    def release(self) -> None:
        """Release the lock; remove the directory and the folders made for it if they are empty."""
        if self._lock is not None:
            with suppress(OSError):  # a folder that is not empty stays
                for folder in (self.path, *self._made) if self._lock.in_place else ():
                    folder.rmdir()
            self._lock.release()
            self._lock = None

    def check(self) -> None:
        """Check that the directory still exists and is the locked one.

        Raises:
            RunDamagedError: it was removed, moved or replaced.
        """
        if not (self.path.is_dir() if self._lock is None else self._lock.in_place):
            raise RunDamagedError(
                f"The directory {self.path} was removed, moved or replaced while a run wrote to "
                "it: the run ends, and writes nothing more. Move a run after it has ended, then "
                "continue it with --resume true."
            )

    def place(self, name: str) -> Path:
        """The path of a file or folder of the run, for writing.

        Raises:
            RunDamagedError: the directory was removed, moved or replaced, or the path is a symbolic
                link out of it.
        """
        self.check()
        path = self.path / name
        if not real(path).is_relative_to(real(self.path)):
            raise RunDamagedError(
                f"{path} is a symbolic link to {real(path)}, but a run writes only into its own "
                "directory: replace the link by the file or folder itself, or choose another "
                "--name."
            )
        return path

    def prepare(self) -> None:
        """Check all paths before anything is written; remove unfinished files of killed runs."""
        for folder in WRITTEN:
            path = self.place(folder)
            if os.path.lexists(path) and not path.is_dir():
                raise RunDamagedError(
                    f"{path} is not a folder: move it away, or choose another --name."
                )
        for file in self._written("", *WRITTEN):
            self.place(str(file.relative_to(self.path)))
        self._remove(LEFT, *WRITTEN)
        prune(self.path / "checkpoints")

    def clear(self) -> None:
        """Remove the files that an earlier run wrote, and links that replace its folders."""
        for folder in WRITTEN.keys() - {"."}:
            if (self.path / folder).is_symlink():
                (self.path / folder).unlink()
        self._remove(f"({LEFT})?", *WRITTEN)

    def forget_audit(self) -> None:
        """Remove the results of ``trueode audit``, which are outdated by a new checkpoint."""
        self._remove(f"({LEFT})?", "audit")

    def _written(self, ending: str, *folders: str) -> Iterator[Path]:
        """The files of a run in some of its folders, with names that end with ``ending``."""
        for folder in folders:
            place = self.path / folder
            if place.is_dir() and (folder == "." or not place.is_symlink()):
                files = (file for file in place.iterdir() if file.is_symlink() or file.is_file())
                yield from [
                    file for file in files if re.fullmatch(WRITTEN[folder] + ending, file.name)
                ]

    def _remove(self, ending: str, *folders: str) -> None:
        """Remove the files of a run in some of its folders, then these folders if empty."""
        for file in self._written(ending, *folders):
            file.unlink()
        for folder in folders:
            place = self.path / folder
            if (
                folder != "."
                and place.is_dir()
                and not place.is_symlink()
                and not any(place.iterdir())
            ):
                place.rmdir()

    def start(self, facts: dict[str, Any]) -> None:
        """Write versions, machine and ``facts`` to ``run.json``, and remove an earlier verdict."""
        for name in JUDGEMENTS:
            self.place(name).unlink(missing_ok=True)
        gone = (*CLOSING, "gpu")  # the run may go on without a GPU
        earlier = {name: fact for name, fact in self.read_info().items() if name not in gone}
        write_json(
            self.place("run.json"),
            {**earlier, **_provenance(), "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **facts},
        )

    def update(self, **facts: Any) -> None:
        """Add facts to ``run.json``."""
        write_json(self.place("run.json"), {**self.read_info(), **facts})

    def read_info(self) -> dict[str, Any]:
        """The facts in ``run.json``; empty if it is missing or damaged."""
        try:
            content = json.loads(self.info.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    @property
    def of_this_version(self) -> bool:
        """Whether ``run.json`` names the installed version."""
        versions = self.read_info().get("versions")
        return isinstance(versions, dict) and versions.get("trueode") == metadata.version("trueode")


def _claim(path: Path) -> Lock | None:
    """Make a directory and lock it; None if it exists with complete files, or is locked."""
    try:
        make_folder(path)
    except FileExistsError:  # a file
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
    """The commit of the source, if it is in a repository."""
    here = Path(__file__).resolve().parent
    if not any((folder / ".git").exists() for folder in here.parents):
        return None
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
