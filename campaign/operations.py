"""Kill a process, or fill its disk, at a given file operation or byte."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

CHANGES = (
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
)
Deed = Callable[[str], None]


def at_operation(number: int, deed: Deed) -> None:
    """Call ``deed`` before file operations below the working directory, from a given one on.

    Operations that only read do not count.

    Args:
        number: number of the first operation, counted from 1.
        deed: called with the name of the operation; its exceptions make the operation fail.
    """
    here, seen = os.getcwd() + os.sep, 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if not writes and event not in CHANGES:
            return
        path = arguments[0]
        if isinstance(path, int) or not os.path.abspath(os.fsdecode(path)).startswith(here):
            return
        seen += 1
        if seen >= number:
            deed(event)

    sys.addaudithook(hook)


def die(operation: str) -> None:
    """Kill this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(operation: str) -> None:
    """Fail for lack of disk space, if the operation makes a file or folder."""
    if operation in ("open", "os.mkdir"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def count(log: int, operation: str) -> None:
    """Write one byte per operation to an open file."""
    os.write(log, b".")


def count_into(path: str) -> None:
    """Count all operations by the size of a file outside the working directory."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    at_operation(1, lambda operation: count(log, operation))


def die_at_byte(size: int) -> None:
    """Die in the first write that exceeds a file size, after writing up to this size."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    refuse_at_byte(size)


def refuse_at_byte(size: int) -> None:
    """Limit the size of files: writes fail at this size."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
