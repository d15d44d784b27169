"""Store generated data on disk, under the hash of its recipe."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray[Any, Any]]


def cached(folder: Path, name: str, recipe: dict[str, Any], make: Callable[[], Arrays]) -> Arrays:
    """Return the arrays of a recipe, from ``folder/NAME-<hash of the recipe>.npz`` if it exists;
    otherwise compute and store them.

    The file holds the hash of its arrays, and a damaged file is replaced. If the folder cannot be
    written, the arrays are computed each time.

    Args:
        folder: of generated data.
        name: of the data set.
        recipe: everything that the arrays depend on, as JSON values.
        make: computes the arrays.
    """
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"{name}-{digest}.npz"
    arrays = _read(path)
    if arrays is None:
        # the memory layout of arrays that are read: kernels for other strides round differently
        arrays = {key: value.copy() for key, value in make().items()}
        _write(path, arrays)
    return arrays


def _checksum(arrays: Arrays) -> str:
    total = hashlib.sha256()
    for key in sorted(arrays):
        value = np.ascontiguousarray(arrays[key])
        total.update(f"{key} {value.dtype.str} {value.shape}".encode())
        total.update(value.tobytes())
    return total.hexdigest()


def _read(path: Path) -> Arrays | None:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        checksum = str(arrays.pop("checksum"))
    except Exception:  # it is missing or damaged
        return None
    return arrays if checksum == _checksum(arrays) else None


def _write(path: Path, arrays: Arrays) -> None:
    with suppress(OSError):  # the folder cannot be written
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, checksum=np.array(_checksum(arrays)), **arrays)  # type: ignore[arg-type]
                file.flush()
                os.fsync(file.fileno())
            os.chmod(scratch, 0o644)  # the folder may be shared with other users
            os.replace(scratch, path)
        except BaseException:
            os.unlink(scratch)
            raise
