"""Atomic writes, which leave a complete file or none, and locks on folders."""

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
"""Suffix of files that are being written; a leftover one can be ignored."""


def real(path: str | Path) -> Path:
    """The path without symbolic links; a link in a circle of links stays as it is."""
    return Path(os.path.realpath(path))  # `Path.resolve` raises for circles


def sync(folder: Path) -> None:
    """Flush the entries of a folder to the disk, if the system can do so."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as failure:
        # some file systems do not support this
        if failure.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, such that they survive a loss of power."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def write_atomic(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a temporary file next to ``path``, flush it to the disk, and move it to ``path``."""
    make_folder(path.parent)
    temporary = path.with_name(f"{path.name}{TEMPORARY}")
    # remove what a killed write has left, or a link that leads elsewhere
    temporary.unlink(missing_ok=True)
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
    """Content as JSON types: dataclasses become dictionaries, tensors lists, and numbers that are
    not finite None.
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
    """A lock on a folder, held by one process at a time and released when the process ends."""

    def __init__(self, folder: Path, handle: int | None) -> None:
        self._folder, self._handle = folder, handle
        self._identity = _identity(folder if handle is None else handle)

    @classmethod
    def take(cls, folder: Path) -> Lock | None:
        """Lock a folder; None if it is locked already. Succeeds on systems without such locks."""
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
        lock.release()  # the folder was replaced meanwhile
        return cls.take(folder)

    @property
    def in_place(self) -> bool:
        """Whether the locked folder is still at its path: not removed, moved or replaced."""
        try:
            return _identity(self._folder) == self._identity
        except (FileNotFoundError, NotADirectoryError):
            return False

    def release(self) -> None:
        """Release the lock."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _identity(place: Path | int) -> tuple[int, int]:
    """Device and inode, which identify a folder independently of its path."""
    found = os.stat(place)
    return found.st_dev, found.st_ino
