"""The results of a run or a sweep, file by file; equal runs have equal results.

Wall times are left out.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import torch

from campaign.place import NOTES, Fault
from trueode.errors import CheckpointError
from trueode.runs import read_checkpoint

CLOCK = ("seconds", "started")
# Messages, files made on request, and failures that were overcome.
SKIPPED = ("logs", "audit", "failures.json")


def results(run: Path) -> dict[str, str]:
    """A digest of each file."""
    files = [path for path in sorted(run.rglob("*")) if path.is_file() and path.name != NOTES]
    names = {str(path.relative_to(run)): path for path in files if path.suffix != ".parquet"}
    return {
        name: _digest(path) for name, path in names.items() if Path(name).parts[0] not in SKIPPED
    }


def newest(found: dict[str, str]) -> dict[str, str]:
    """Results with only the newest checkpoint: the number of older ones depends on the damage."""
    kept: dict[str, str] = {}
    for name in sorted(found):
        folder = Path(name).parent
        if folder.name == "checkpoints":
            kept = {other: digest for other, digest in kept.items() if Path(other).parent != folder}
        kept[name] = found[name]
    return kept


def compare(found: dict[str, str], expected: dict[str, str]) -> None:
    """Check that results are equal.

    Raises:
        Fault: they differ.
    """
    different = sorted(
        name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)
    )
    if different:
        raise Fault("different", ", ".join(different))


def _digest(path: Path) -> str:
    try:
        content = _content(path)
    except (OSError, ValueError, CheckpointError) as failure:
        return f"cannot be read: {failure}"
    return hashlib.sha256(
        content if isinstance(content, bytes) else repr(_plain(content)).encode()
    ).hexdigest()


def _content(path: Path) -> Any:
    if path.suffix == ".pt":
        return read_checkpoint(path)
    if path.suffix == ".json":
        return json.loads(path.read_bytes())
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    return path.read_bytes()


def _plain(value: Any) -> Any:
    """A form of the content whose ``repr`` is equal if the content is equal bit for bit."""
    if isinstance(value, torch.Tensor):
        return (
            str(value.dtype),
            tuple(value.shape),
            hashlib.sha256(value.numpy().tobytes()).hexdigest(),
        )
    if isinstance(value, dict):
        return {key: _plain(value[key]) for key in sorted(value, key=str) if key not in CLOCK}
    return list(map(_plain, value)) if isinstance(value, (list, tuple)) else value
