"""Something happens at a file operation or a byte: a process is killed, or its disk is full."""

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
    """Arrange a deed before each operation, from the ``number``-th on, that changes files below the
    working directory.

    Args:
        number: counted from 1.
        deed: called with the operation; the operation raises what it raises.
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
    """Be killed."""
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(operation: str) -> None:
    """Have no space left on the disk: nothing new can be made."""
    if operation in ("open", "os.mkdir"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def count(log: int, operation: str) -> None:
    """Write a byte for an operation into an open file."""
    os.write(log, b".")


def count_into(path: str) -> None:
    """Arrange that all operations are counted by the size of a file, which lies elsewhere."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    at_operation(1, lambda operation: count(log, operation))


def die_at_byte(size: int) -> None:
    """Arrange to be killed by a write that makes a file larger than this, when so much of it is
    written.
    """
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    refuse_at_byte(size)


def refuse_at_byte(size: int) -> None:
    """Arrange that no file can be larger than this: writes fail when so much is written."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
