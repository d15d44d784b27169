"""What a data set is, wherever it lies: the same data has the same identity, other data has another
one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from os.path import expanduser
from pathlib import Path
from typing import Any

from trueode.catalog import DATA_SETS
from trueode.errors import DataError
from trueode.files import real, write_json


def identity(name: str, data_dir: str | Path, cache: Path | None = None) -> dict[str, Any]:
    """What a run's data is, as JSON values: the version of a generator, or a fingerprint of
    content.

    Published images are loaded, and downloaded if they are missing: a folder may hold a sample of
    them.

    Args:
        name: one of ``catalog.DATA_SETS``.
        data_dir: where the data lies.
        cache: a file that fingerprints are kept in; they are taken anew when a file's name, size or
            time changes.

    Returns:
        ``{"generator": version}``, or ``{"files": number, "bytes": number, "sha256": text}``; of
        published images ``{"samples": number, "sha256": text}``.

    Raises:
        DataError: the data is not there.
    """
    from trueode.data import generator_version

    root = Path(expanduser(data_dir))
    if DATA_SETS[name].shape == "signal":
        return {"generator": generator_version(name)}
    if name in ("mnist", "cifar10"):
        return _remembered(cache, name, root, lambda: _published(name, root))
    return _remembered(cache, name, root, lambda: _content(root))


def _remembered(
    cache: Path | None, name: str, root: Path, take: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """A fingerprint from the cache if the files look as they did, else a new one."""
    known: dict[str, Any] = {}
    key = f"{name} {real(root)}"
    if cache is not None:
        with suppress(
            OSError, ValueError, TypeError, LookupError
        ):  # not there, or damaged: taken anew
            known = dict(json.loads(cache.read_text(encoding="utf-8")))
            if known[key]["looks"] == _looks(root):
                return dict(known[key]["identity"])
    taken = take()
    if cache is not None:
        write_json(cache, {**known, key: {"looks": _looks(root), "identity": taken}})
    return taken


def _files(root: Path) -> list[tuple[str, Path]]:
    """All files below a folder, or the file itself, with their names relative to it; generated data
    is left out.
    """
    if root.is_file():
        return [("", root)]
    found = []
    for folder, below, names in os.walk(root):
        below[:] = sorted(
            entry for entry in below if not entry.startswith(".") and entry != "generated"
        )
        found += [Path(folder) / file for file in sorted(names) if not file.startswith(".")]
    return [
        (path.relative_to(root).as_posix(), path) for path in found if path.is_file()
    ]  # no pipe, which never ends


def _looks(root: Path) -> str:
    """A digest of the names, sizes and times of all files."""
    total = hashlib.sha256()
    for name, path in _files(root):
        facts = path.stat()
        total.update(
            f"{name}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode(errors="surrogateescape")
        )
    return total.hexdigest()


def _content(root: Path) -> dict[str, Any]:
    files = _files(root)
    if not files:
        raise DataError(
            f"There is no data in {root}: give the file or folder that holds it with --data_dir."
        )
    total, size = hashlib.sha256(), 0
    for name, path in files:
        length = path.stat().st_size
        size += length
        total.update(f"{name}\0{length}\n".encode(errors="surrogateescape"))
        with path.open("rb") as file:
            while piece := file.read(2**20):
                total.update(piece)
    return {"files": len(files), "bytes": size, "sha256": total.hexdigest()}


def _published(name: str, root: Path) -> dict[str, Any]:
    import numpy as np
    import torch

    from trueode.data import load_dataset

    dataset = load_dataset(name, root)
    total, samples = hashlib.sha256(), 0
    for split in (dataset.train, dataset.test):
        samples += len(split)
        for start in range(0, len(split), 1000):
            batch = split.batch(torch.arange(start, min(start + 1000, len(split)), device="cpu"))
            total.update(np.ascontiguousarray(batch.x.numpy()).tobytes())
            total.update(batch.y.numpy().tobytes())
    return {"samples": samples, "sha256": total.hexdigest()}
