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


def real(path: str | Path) -> Path:
    """The path without symbolic links; of links that lead in a circle, the link itself."""
    return Path(os.path.realpath(path))  # `Path.resolve` raises there


def sync(folder: Path) -> None:
    """Make sure that the names in a folder are on the disk, where folders can be synced."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as failure:
        if failure.errno not in (
            errno.EINVAL,
            errno.ENOTSUP,
        ):  # some file systems know no such thing
            raise
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, so that they are still there after a loss of power."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def write_atomic(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file beside its place, make sure that it is on the disk, move it there, and make sure
    of that as well.
    """
    make_folder(path.parent)
    temporary = path.with_name(f"{path.name}{TEMPORARY}")
    temporary.unlink(
        missing_ok=True
    )  # a write that was killed has left it, or it is a link that leads elsewhere
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write text atomically."""
    write_atomic(path, lambda file: file.write(text.encode()))


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; numbers that are not finite become null."""
    write_text(path, json.dumps(plain(content), indent=2, allow_nan=False) + "\n")


def plain(content: Any) -> Any:
    """Content as JSON can hold it: records as dictionaries, tensors as lists, numbers that are not
    finite as None.
    """
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

    def __init__(self, folder: Path, handle: int | None) -> None:
        self._folder, self._handle = folder, handle
        self._identity = _identity(folder if handle is None else handle)

    @classmethod
    def take(cls, folder: Path) -> Lock | None:
        """Lock a folder; None if it is locked already. Where folders cannot be locked, there is
        nothing to wait for.
        """
        if sys.platform == "win32":
            return cls(folder, None)
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as failure:
            if failure.errno in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(handle)
                return None
        lock = cls(folder, handle)
        if lock.in_place:
            return lock
        lock.release()  # another folder has taken the place meanwhile
        return cls.take(folder)

    @property
    def in_place(self) -> bool:
        """Whether the folder is where it was locked: it was not removed, moved or replaced by
        another one.
        """
        try:
            return _identity(self._folder) == self._identity
        except (FileNotFoundError, NotADirectoryError):
            return False

    def release(self) -> None:
        """Give the lock back."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _identity(place: Path | int) -> tuple[int, int]:
    """What tells a folder from all others, wherever it lies."""
    found = os.stat(place)
    return found.st_dev, found.st_ino
