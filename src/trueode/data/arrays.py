"""Arrays of the user: x, y and, for time series, t in .npz files; for densities x alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trueode.data.splits import Dataset, Split
from trueode.errors import DataError
from trueode.seeds import stream

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
HELP = (
    "With --dataset arrays, --data_dir is an .npz file, or a folder with train.npz and test.npz or "
    "with data.npz."
)


def arrays(root: Path, *, seed: int, task: str) -> Dataset:
    """Read x, y and optionally t. From a single file, a random fifth becomes the test data.

    Numbers are not scaled. x is ``(n, d)`` (read as ``(n, 1, d)``), ``(n, channels, length)`` or
    ``(n, channels, height, width)``. y depends on the task:

    * classification (``auto``: integers): labels ``(n,)``, 0 … classes - 1;
    * regression (``auto``: other numbers): ``(n,)`` or ``(n, outputs)``;
    * timeseries (``auto``: with t): states of the shape of x at each time, ``(n, times, …)``, NaN
      if not observed, with ascending times t, ``(times,)`` or ``(n, times)``, NaN if a sample has
      fewer. x is the state at t = 0, or at the time t0, a number, if the file has it; no time is
      earlier. Without t0, several times that are farther from 0 than from each other are refused,
      because most of the solve would cross an interval without data;
    * density (never ``auto``): no y.

    Args:
        root: the file or the folder.
        seed: of the choice of the test data.
        task: a name of ``catalog.TASKS``, or ``"auto"``.

    Raises:
        DataError: files or arrays are missing, inconsistent or invalid.
    """
    parts = _read_parts(root, seed, task)
    if task == "auto":
        task = _guess(parts[0][1])
    splits = [_split(path, part, task) for path, part in parts]
    (train_path, _), (test_path, _) = parts
    train, test = splits
    shape = tuple(train.x.shape[1:])
    if test.x.shape[1:] != train.x.shape[1:] or (
        task == "regression" and test.y.shape[1:] != train.y.shape[1:]
    ):
        raise DataError(
            f"Samples differ in shape: {train_path} has x {shape}, y {tuple(train.y.shape[1:])} "
            f"and {test_path} has x {tuple(test.x.shape[1:])}, y {tuple(test.y.shape[1:])} "
            "(without the number of samples)."
        )
    n_outputs, t_start, t_end = int(np.prod(shape)), 0.0, None
    if task == "classification":
        n_outputs = _count_classes(train, test, train_path, test_path)
    elif task == "regression":
        n_outputs = train.y.shape[1]
    elif task == "density":
        n_outputs = 1
    else:
        t_start, t_end = _ends(parts)
    return Dataset("arrays", task, train, test, shape, n_outputs, t_start=t_start, t_end=t_end)


def _read_parts(root: Path, seed: int, task: str) -> list[tuple[Path, Arrays]]:
    if root.is_dir() and (root / "train.npz").is_file():
        if not (root / "test.npz").is_file():
            raise DataError(f"{root} has train.npz but no test.npz. {HELP}")
        return [(path, _read(path, task)) for path in (root / "train.npz", root / "test.npz")]
    path = root / "data.npz" if root.is_dir() else root
    if not path.is_file():
        raise DataError(f"{path} does not exist. {HELP}")
    whole = _read(path, task)
    n = len(whole["x"]) if whole["x"].ndim else 0
    if n < 2 or whole["y"].shape[:1] != (n,):
        raise DataError(
            f"{path}: x {whole['x'].shape} and y {whole['y'].shape} must hold the same number of "
            "samples, two or more."
        )
    order = stream(seed, "split").permutation(n)
    each = {
        key for key, value in whole.items() if key in ("x", "y") or (key == "t" and value.ndim == 2)
    }
    if "t" in each and len(whole["t"]) != n:
        raise DataError(
            f"{path}: t of shape {whole['t'].shape} needs one row for each of the {n} samples."
        )
    held_out = max(1, n // 5)
    return [
        (
            path,
            {key: value[np.sort(chosen)] if key in each else value for key, value in whole.items()},
        )
        for chosen in (order[held_out:], order[:held_out])
    ]


def _read(path: Path, task: str) -> Arrays:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            known = ("x", "y", "t", "t0") if "t" in file else ("x", "y")
            found = {key: file[key] for key in known if key in file}
            names = sorted(file)
    except Exception as error:  # NumPy raises many kinds of errors for damaged files
        raise DataError(
            f"{path} cannot be read as an .npz file of plain arrays ({error})."
        ) from error
    if task == "density" and "x" in found:
        if rest := sorted(set(found) - {"x"}):
            raise DataError(
                f"{path} holds {' and '.join(rest)} beside x, but a density is that of x alone: "
                "save x alone, or choose another --task."
            )
        found["y"] = np.empty((*found["x"].shape[:1], 0))
    for key in ("x", "y"):
        if key not in found:
            alone = " For the density of x, add --task density." if "x" in found else ""
            raise DataError(
                f"{path} holds {', '.join(names) or 'nothing'}; the array {key!r} is missing."
                f"{alone}"
            )
    for key, value in found.items():
        if value.dtype.kind not in "biuf":
            raise DataError(f"{path}: {key} holds {value.dtype}; real numbers are needed.")
    return found


def _guess(part: Arrays) -> str:
    if "t" in part:
        return "timeseries"
    return "regression" if part["y"].dtype.kind == "f" else "classification"


def _split(path: Path, part: Arrays, task: str) -> Split:
    x, y = part["x"], part["y"]
    if x.ndim not in (2, 3, 4) or not x.size:
        raise DataError(
            f"{path}: x has shape {x.shape}; expected (n, d), (n, channels, length) or "
            "(n, channels, height, width), with at least one sample."
        )
    if y.shape[:1] != x.shape[:1]:
        raise DataError(
            f"{path}: x has {len(x)} samples, but y has shape {y.shape}: the first numbers must "
            "agree."
        )
    x = _floats(x)
    _all_finite(path, "x", x)
    read = torch.from_numpy(x[:, None] if x.ndim == 2 else x)
    if task == "classification":
        return Split(read, torch.from_numpy(_labels(path, y)))
    if task == "density":
        return Split(read, torch.from_numpy(y))
    if task == "regression":
        if y.ndim > 2 or not y.size:
            raise DataError(
                f"{path}: y has shape {y.shape}; regression needs (n,) or (n, outputs)."
            )
        _all_finite(path, "y", y)
        return Split(read, torch.from_numpy(_floats(y.reshape(len(y), -1))))
    if "t" not in part:
        raise DataError(
            f"{path}: time series need an array t with the times, (times,) or (n, times)."
        )
    states, t = _series(path, x.shape[1:], y, part["t"], _start(path, part))
    return Split(
        read, torch.from_numpy(states).view(*states.shape[:2], *read.shape[1:]), torch.from_numpy(t)
    )


def _floats(value: Array) -> Array:
    """Numbers as float64, until the precision of the run is known."""
    return np.ascontiguousarray(value, dtype=np.float64)


def _all_finite(path: Path, key: str, value: Array) -> None:
    bad = np.argwhere(~np.isfinite(value))
    if len(bad):
        place = tuple(bad[0].tolist())
        raise DataError(
            f"{path}: {key}{list(place)} is {value[place]}; all of {key} must be finite numbers."
        )


def _labels(path: Path, y: Array) -> Array:
    if y.ndim != 1 or y.dtype.kind not in "biu":
        raise DataError(
            f"{path}: y is {y.dtype} of shape {y.shape}; classification needs integer labels of "
            "shape (n,). For other targets use --task regression."
        )
    if y.min() < 0:
        raise DataError(f"{path}: y has the label {y.min()}; labels are 0, 1, … classes - 1.")
    if y.max() > 10**6:
        raise DataError(
            f"{path}: y has the label {y.max()}; labels are 0, 1, … classes - 1, without gaps."
        )
    return y.astype(np.int64)


def _count_classes(train: Split, test: Split, train_path: Path, test_path: Path) -> int:
    classes, last = int(train.y.max()) + 1, int(test.y.max())
    if last >= classes and train_path != test_path:
        raise DataError(
            f"{test_path}: y has the label {last}, but {train_path} has only labels up to "
            f"{classes - 1}."
        )
    classes = max(classes, last + 1)
    if classes > len(train) + len(test):
        raise DataError(
            f"{train_path}: y has labels up to {classes - 1} for {len(train)} samples; labels are "
            "0, 1, … classes - 1, without gaps."
        )
    return classes


def _start(path: Path, part: Arrays) -> float:
    """The time at which x is the state."""
    t0 = part.get("t0", np.zeros(()))
    if t0.shape or not np.isfinite(t0):
        raise DataError(
            f"{path}: t0 is {t0}; expected one finite number, the time at which x is the state."
        )
    return float(t0)


def _ends(parts: Sequence[tuple[Path, Arrays]]) -> tuple[float, float]:
    """The time at which x is the state, and the last time of all."""
    (path, _), (test_path, _) = parts
    t_start, other = (_start(*part) for part in parts)
    if other != t_start:
        raise DataError(
            f"t0 is {t_start:.12g} in {path} and {other:.12g} in {test_path}: they must agree."
        )
    times = [_floats(part["t"]) for _, part in parts]
    first, last = min(float(np.nanmin(t)) for t in times), max(float(np.nanmax(t)) for t in times)
    if not any("t0" in part for _, part in parts) and 0 < last - first < first:
        raise DataError(
            f"{path}: the first time is {first:.12g} and the last {last:.12g}, but x is taken as "
            "the state at t = 0, long before. Save the time of x in the file, as t0=…, or shift "
            "the times t to make it 0."
        )
    return t_start, last


def _series(
    path: Path, sample: Sequence[int], y: Array, t: Array, t0: float
) -> tuple[Array, Array]:
    """Check the states and times of a time series; ``t0`` is the time at which x is the state."""
    y, t = _floats(y), _floats(t)
    if t.ndim not in (1, 2) or not t.size or (t.ndim == 2 and len(t) != len(y)):
        raise DataError(
            f"{path}: t has shape {t.shape}; expected (times,) or (n, times) with n = {len(y)}."
        )
    expected = (len(y), t.shape[-1], *sample)
    if y.shape != expected:
        raise DataError(
            f"{path}: y has shape {y.shape}; with x {(len(y), *sample)} and t {t.shape} it must "
            f"be {expected}."
        )
    present = ~np.isnan(t)
    if t.ndim == 1 and not present.all():
        raise DataError(
            f"{path}: t holds NaN; if samples have different times, t needs the shape (n, times)."
        )
    for i, (row, there) in enumerate(zip(np.atleast_2d(t), np.atleast_2d(present), strict=True)):
        times = row[there]
        of = f" of sample {i}" if t.ndim == 2 else ""
        if (
            not len(times)
            or not np.isfinite(times).all()
            or times[0] < t0
            or (np.diff(times) <= 0).any()
        ):
            raise DataError(
                f"{path}: the times t{of} must be finite, ascend strictly and start at {t0:.12g} "
                "or later, the time of x (t0 if the file has it, otherwise 0)."
            )
        if times[-1] == t0:
            raise DataError(
                f"{path}: the times t{of} end at {t0:.12g}, the time of x; later times are needed."
            )
    if np.isinf(y).any():
        raise DataError(f"{path}: y holds infinite values; use NaN for missing observations.")
    observed = ~np.isnan(y).reshape(*y.shape[:2], -1).all(axis=2) & present
    empty = np.flatnonzero(~observed.any(axis=1))
    if len(empty):
        raise DataError(
            f"{path}: sample {empty[0]} has no observed state (all of y is NaN). Remove it."
        )
    return y, t
