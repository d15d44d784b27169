"""The identity of data: equal for the same data in any folder, different for other data."""

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
    """The identity of a run's data as JSON values: the version of its generator, or a hash of its
    content.

    Published images are loaded, and downloaded if they are missing, because a folder may hold only
    some of them.

    Args:
        name: one of ``catalog.DATA_SETS``.
        data_dir: folder of the data.
        cache: a file that stores hashes; they are computed again if the name, size or time of a
            file changes.

    Returns:
        ``{"generator": version}``, or ``{"files": number, "bytes": number, "sha256": text}``; for
        published images ``{"samples": number, "sha256": text}``.

    Raises:
        DataError: the data is missing.
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
    """An identity from the cache if the files are unchanged, otherwise a new one."""
    known: dict[str, Any] = {}
    key = f"{name} {real(root)}"
    if cache is not None:
        # if the cache is missing or damaged, compute the identity
        with suppress(OSError, ValueError, TypeError, LookupError):
            known = dict(json.loads(cache.read_text(encoding="utf-8")))
            if known[key]["looks"] == _looks(root):
                return dict(known[key]["identity"])
    taken = take()
    if cache is not None:
        write_json(cache, {**known, key: {"looks": _looks(root), "identity": taken}})
    return taken


def _files(root: Path) -> list[tuple[str, Path]]:
    """All files below a folder except generated data, or the file itself, with relative names.

    Links to folders are followed, as when the data is read; not those to a folder around them.
    """
    if root.is_file():
        return [("", root)]
    found = []
    for folder, below, names in os.walk(root, followlinks=True):
        here = real(folder)
        below[:] = sorted(
            entry
            for entry in below
            if not entry.startswith(".")
            and entry != "generated"
            and not here.is_relative_to(real(here / entry))
        )
        found += [Path(folder) / file for file in sorted(names) if not file.startswith(".")]
    # regular files only: reading a pipe would not end
    return [(path.relative_to(root).as_posix(), path) for path in found if path.is_file()]


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
