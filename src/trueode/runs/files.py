"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import IO, Any

TEMPORARY = ".part"
"""Ending of files that are being written; one that is left over means nothing."""


def write_atomic(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file beside its place, make sure that it is on the disk, and move it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}{TEMPORARY}")
    with temporary.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Write text atomically."""
    write_atomic(path, lambda file: file.write(text.encode()))


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; numbers that are not finite become null."""
    write_text(path, json.dumps(plain(content), indent=2, allow_nan=False) + "\n")


def plain(content: Any) -> Any:
    """Content as JSON can hold it: records as dictionaries, tensors as lists, numbers that are not finite as None."""
    if is_dataclass(content):
        content = {each.name: getattr(content, each.name) for each in fields(content)}
    if isinstance(content, Mapping):
        return {key: plain(value) for key, value in content.items()}
    content = content.tolist() if hasattr(content, "tolist") else content
    if isinstance(content, (list, tuple)):
        return [plain(value) for value in content]
    if isinstance(content, float) and content - content != 0:
        return None
    return content.value if isinstance(content, Enum) else content


class Lock:
    """A lock on a folder, held by one process at a time; it ends with the process."""

    def __init__(self, handle: int | None = None) -> None:
        self._handle = handle

    @classmethod
    def take(cls, folder: Path) -> Lock | None:
        """Lock a folder; None if it is locked already. Where folders cannot be locked, there is nothing to wait for."""
        if sys.platform == "win32":
            return cls()
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as failure:
            if failure.errno in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(handle)
                return None
        return cls(handle)

    def release(self) -> None:
        """Give the lock back."""
        if self._handle is not None:
            os.close(self._handle)
