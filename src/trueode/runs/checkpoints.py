"""Checkpoints: written atomically, verified when read, and loaded without executing code."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from trueode.errors import CheckpointError
from trueode.files import write_atomic

KEEP = 3
NAME = r"iteration_(\d+)\.pt"
_DIGEST = 32  # bytes of the SHA-256 digest at the end of the file


def save_checkpoint(folder: Path, iteration: int, state: dict[str, Any], keep: int = KEEP) -> Path:
    """Write the state after an iteration; keep the newest ``keep`` checkpoints.

    Args:
        folder: of all checkpoints.
        iteration: number of iterations done.
        state: tensors and plain values only.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    path = folder / f"iteration_{iteration:08d}.pt"

    def write(file: IO[bytes]) -> None:
        file.write(content)
        file.write(hashlib.sha256(content).digest())

    write_atomic(path, write)
    prune(folder, keep)
    return path


def prune(folder: Path, keep: int = KEEP) -> None:
    """Remove all checkpoints except the newest ``keep``."""
    for old in found(folder)[keep:]:
        old.unlink(missing_ok=True)


def found(folder: Path) -> list[Path]:
    """All checkpoints, the newest first."""
    named = [
        (int(match[1]), path)
        for path in folder.glob("*.pt")
        if (match := re.fullmatch(NAME, path.name))
    ]
    return [path for _, path in sorted(named, reverse=True)]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read one checkpoint.

    Raises:
        CheckpointError: it is truncated, corrupted, or holds more than tensors and plain values.
    """
    try:
        content = path.read_bytes()
        if hashlib.sha256(content[:-_DIGEST]).digest() != content[-_DIGEST:]:
            raise CheckpointError(f"The checkpoint {path} is truncated or corrupted.")
        state: Any = torch.load(
            io.BytesIO(content[:-_DIGEST]), weights_only=True, map_location="cpu"
        )
    except CheckpointError:
        raise
    except Exception as failure:
        raise CheckpointError(f"The checkpoint {path} cannot be read: {failure}") from failure
    if not isinstance(state, dict):
        raise CheckpointError(
            f"The checkpoint {path} holds a {type(state).__name__}, not the state of a run."
        )
    return state


def load_latest(folder: Path, damaged: Callable[[str], None]) -> tuple[Path, dict[str, Any]]:
    """The newest usable checkpoint.

    Args:
        folder: of all checkpoints.
        damaged: called with a message for each damaged checkpoint.

    Raises:
        CheckpointError: there is no usable one.
    """
    failures: list[str] = []
    for path in found(folder):
        if failures:
            damaged(f"{failures[-1]} The one before it is used.")
        try:
            return path, read_checkpoint(path)
        except CheckpointError as failure:
            failures.append(str(failure))
    raise CheckpointError(
        f"There is no usable checkpoint in {folder}. {' '.join(failures)}".strip()
    )
