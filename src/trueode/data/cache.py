"""Generated data kept on disk, found again by the content of its recipe."""

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
    """Return the arrays of a recipe: read from ``folder/NAME-<hash of the recipe>.npz``, or made
    and kept there.

    The file holds the hash of its arrays; one that is damaged is made again. A folder that cannot
    be written is no error: the arrays are then made each time.

    Args:
        folder: where generated data lies.
        name: the data set.
        recipe: everything that the arrays depend on, as JSON values.
        make: computes the arrays.
    """
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"{name}-{digest}.npz"
    arrays = _read(path)
    if arrays is None:
        # laid out in memory as arrays that are read: kernels chosen by strides round differently
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
    except Exception:  # absent, or damaged in any of the ways in which a zip file can be
        return None
    return arrays if checksum == _checksum(arrays) else None


def _write(path: Path, arrays: Arrays) -> None:
    with suppress(OSError):  # a folder that cannot be written is no error
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, checksum=np.array(_checksum(arrays)), **arrays)  # type: ignore[arg-type]
                file.flush()
                os.fsync(file.fileno())
            os.chmod(scratch, 0o644)  # a folder of data may be shared
            os.replace(scratch, path)
        except BaseException:
            os.unlink(scratch)
            raise
