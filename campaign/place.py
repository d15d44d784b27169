"""The folder of a case, where commands run next to files that they must not touch."""

from __future__ import annotations

import hashlib
import os
import re
import resource
import stat
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from typing import NamedTuple

from tests import processes

PATIENCE = 120.0  # seconds until a command counts as hanging
MEMORY = 8 * 2**30  # bytes of address space: a case must not take the machine's memory
RUN = Path("experiments", "run")  # the only folder that commands may write to
NOTES = "notes.txt"  # a user's file in this folder
CRASH = re.compile(
    r"Traceback \(most recent call last\)|Exception ignored in|Fatal Python error"
    r"|Segmentation fault"
)


class Fault(Exception):  # noqa: N818 - a finding, not an error of the campaign
    """A fault of the attacked command.

    Args:
        outcome: ``"traceback"``, ``"hang"``, ``"different"``, ``"outside"`` or ``"exit code"``.
        told: details.
    """

    def __init__(self, outcome: str, told: str = "") -> None:
        super().__init__(f"{outcome}: {told}")
        self.outcome, self.told = outcome, told


class Ended(NamedTuple):
    """The exit code of a command (below 0 for a signal) and its output."""

    code: int
    output: str


class Place:
    """The folder of a case.

    Args:
        folder: a path that does not exist yet. ``work/`` in it is the working directory, ``mine/``
            holds the user's files.
        shared: folder of files that cases share and do not change.
        random: random numbers of this case.

    Attributes:
        what: what is done, for the report.
        run: ``work/experiments/run``, the only folder that commands may write to.
    """

    def __init__(self, folder: Path, shared: Path, random: Random) -> None:
        self.shared, self.random = shared, random
        self.what = ""
        self.folder, self.work, self.mine = folder, folder / "work", folder / "mine"
        self.run = self.work / RUN
        names = (
            "precious.txt",
            "figures/precious.png",
            "checkpoints/iteration_00000001.pt",
            "audit/audit_x.png",
        )
        neighbour = self.run.with_name("neighbour")
        for path in (
            *(self.mine / name for name in names),
            neighbour / "config.yaml",
            self.run / NOTES,
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{path.name} is mine\n")
        (self.run / NOTES).unlink()
        self.run.rmdir()
        self._before: dict[str, str] | None = None

    def watch(self) -> None:
        """Start to detect changes outside of the run."""
        self._before = dict(self._seen())

    def _check(self) -> None:
        if self._before is None:
            return
        now, before = dict(self._seen()), self._before
        changed = sorted(
            name for name in now.keys() | before.keys() if now.get(name) != before.get(name)
        )
        if changed:
            told = (
                f"{'made' if x not in before else 'removed' if x not in now else 'changed'} {x}"
                for x in changed
            )
            raise Fault("outside", ", ".join(told))

    def _seen(self) -> Iterator[tuple[str, str]]:
        """Each file and folder outside of the run, and a summary of its content."""
        for top, folders, files in os.walk(self.folder):
            here = Path(top)
            if here == self.run:
                folders.clear()
                files = [name for name in files if name == NOTES]
            for name in (*folders, *files):
                path = here / name
                if path != self.run and path != self.work / "output.txt":
                    yield str(path.relative_to(self.folder)), _content(path)

    def command(
        self,
        command: str,
        words: Sequence[str],
        *,
        codes: Sequence[int] = (0, 1, 2),
        before: Callable[[], None] | None = None,
    ) -> Ended:
        """Run a command and wait for its end.

        Raises:
            Fault: it hangs, ends with a traceback or a wrong exit code, or changed something
                outside of the run.
        """
        return self.ended(self.start(command, words, before=before), codes)

    def start(
        self, command: str, words: Sequence[str], before: Callable[[], None] | None = None
    ) -> BaseProcess:
        """Start a command."""
        return processes.start(words, self.work, command=command, before=partial(bounded, before))

    def ended(self, child: BaseProcess, codes: Sequence[int]) -> Ended:
        """Wait for a child; see `command`."""
        child.join(PATIENCE)
        hangs = child.exitcode is None
        if hangs:
            child.kill()
            child.join()
        log = self.work / "output.txt"
        output = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        log.unlink(missing_ok=True)
        code = child.exitcode
        if hangs or code is None:
            raise Fault("hang", output[-300:])
        if CRASH.search(output):
            raise Fault("traceback", output)
        if code not in codes or (code in (1, 2) and not output.strip()):
            raise Fault(
                "exit code", f"{code}, expected one of {codes} and a message: {output[-300:]}"
            )
        self._check()
        return Ended(code, output)


def bounded(then: Callable[[], None] | None) -> None:
    """Limit the memory of this process and disable core dumps, then call ``then``."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if then is not None:
        then()


def _content(path: Path) -> str:
    status = path.lstat()
    mode = f"{status.st_mode:o}"
    if stat.S_ISLNK(status.st_mode):
        return f"{mode} {os.readlink(path)}"
    if stat.S_ISREG(status.st_mode):
        return f"{mode} {status.st_mtime_ns} {hashlib.sha256(path.read_bytes()).hexdigest()}"
    return mode
