"""The data of an audit: batches in the form in which they are given, and their samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor

from trueode.data import Dataset, Split
from trueode.errors import DataError, TrueodeError, UsageError, told
from trueode.evaluation.metrics import at_once


@dataclass(frozen=True)
class Given:
    """Data as given, before the audit knows whether samples are independent of one another.

    Attributes:
        cut: batches of the first samples, for independent samples; data without batches are cut
            into batches of `at_once` rows.
        whole: returns the batches as given, complete; data without batches are one batch.
        compared: returns one batch and its parts, which give the same outputs if samples are
            independent.
        complete: whether that batch is one of ``whole``, not only a part of one.
        shared: the tensors of a batch that its samples share; see `shared_by`.
    """

    cut: tuple[Any, ...]
    whole: Callable[[], tuple[Any, ...]]
    compared: Callable[[], tuple[Any, tuple[Any, ...]]]
    complete: bool
    shared: frozenset[int]


def read(data: Any, samples: int) -> Given:
    """Read the batches that hold the first ``samples`` samples.

    Raises:
        DataError: the data has no known form, or cannot be read.
    """
    if isinstance(data, Dataset):
        data = data.test
    rows = _rows(data)
    return _read_batches(data, samples) if rows is None else _read_rows(*rows, samples)


def _read_rows(n: int, take: Callable[[Tensor], Any], samples: int) -> Given:
    """Read data without batches: cut into batches, or as one whole batch."""

    def batches(*parts: Tensor) -> tuple[Any, ...]:
        return tuple(_told_of(map(take, parts)))

    rows = torch.arange(n, device="cpu")
    first = rows[:samples]
    inputs = first_tensor(take(first[:1]))
    cut = batches(*first.split(at_once(inputs if inputs is not None else first[:1])))  # type: ignore[no-untyped-call]

    shared = shared_by(cut)

    def compared() -> tuple[Any, tuple[Any, ...]]:
        return (batches(first)[0], cut) if len(cut) > 1 else (cut[0], unequal_parts(cut[0], shared))

    return Given(cut, lambda: batches(rows), compared, n <= samples, shared)


def _read_batches(data: Any, samples: int) -> Given:
    whole, left = list[Any](), samples
    for batch in _told_of(data):
        whole.append(batch)
        left -= size_of(batch)
        if left <= 0:  # stop here: the data may be endless or slow
            break
    cut, shared = list(whole), shared_by(whole)
    if left < 0:
        size = size_of(cut[-1])
        cut[-1] = chosen(cut[-1], torch.arange(size + left, device="cpu"), size, shared)
    return Given(
        tuple(cut),
        lambda: tuple(whole),
        lambda: (whole[0], unequal_parts(whole[0], shared)),
        True,
        shared,
    )


def unequal_parts(batch: Any, shared: frozenset[int] = frozenset()) -> tuple[Any, ...]:
    """A small and a large part of a batch; one sample stays one."""
    size = size_of(batch)
    rows, small = torch.arange(size, device="cpu"), -(-size // 8)
    parts = (part for part in (rows[:small], rows[small:]) if len(part))
    return tuple(chosen(batch, part, size, shared) for part in parts)


def _told_of(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield the batches; an exception of a user's loader becomes a `DataError`."""
    try:
        yield from batches
    except TrueodeError:
        raise
    except Exception as failure:
        raise DataError(f"The data cannot be read: {told(failure)}.") from failure


def _rows(data: Any) -> tuple[int, Callable[[Tensor], Any]] | None:
    """For data without batches, the number of samples and a function that makes a batch of some
    rows; None for data in batches.

    Raises:
        DataError: the data has no known form.
    """
    if isinstance(data, Split) or hasattr(data, "batch"):
        return len(data), data.batch
    if isinstance(data, Tensor):
        return len(data), lambda rows: data[rows.to(data.device)]
    if isinstance(data, tuple) and data and all(isinstance(part, Tensor) for part in data):
        x, *rest = data
        y = rest[0] if rest else None
        t = rest[1] if len(rest) > 1 else None
        if y is not None and len(y) != len(x):
            raise DataError(f"x has {len(x)} samples and y {len(y)}: they must agree.")
        if t is not None and t.dtype == torch.bool:
            return len(x), lambda rows: tuple(part[rows.to(part.device)] for part in data)
        return _rows(x if y is None else Split(x, y, t, dtype=x.dtype))
    parts = data if isinstance(data, tuple | list) else (data,)
    foreign = next(
        (part for part in parts if hasattr(part, "__array__") and not isinstance(part, Tensor)),
        None,
    )
    if foreign is not None:
        jax = type(foreign).__module__.split(".")[0] in ("jax", "jaxlib")
        raise DataError(
            "The data are arrays of JAX, but the model is of PyTorch: convert them with "
            "torch.tensor(…)."
            if jax
            else f"The data are of type {type(foreign).__name__}. Models of PyTorch take tensors: "
            "convert the data with torch.from_numpy(…). For a model of JAX, import jax first."
        )
    if isinstance(data, str | bytes | Mapping) or not isinstance(data, Iterable):
        raise DataError(
            f"The data is of type {type(data).__name__}. It must be a pair of tensors (x, y), "
            "inputs x alone, or an iterable of batches (x, y), such as a DataLoader."
        )
    return None


def size_of(batch: Any) -> int:
    """The number of samples of a batch: the length of its first tensor. If inputs are several
    tensors, it is the number of targets, if any: a graph may have more nodes than targets.
    """
    first = first_tensor(batch)
    if isinstance(batch, tuple | list) and len(batch) > 1 and not isinstance(batch[0], Tensor):
        first = batch[1] if isinstance(batch[1], Tensor) else first
    if first is None or first.dim() == 0:
        raise DataError(
            f"A batch is of type {type(batch).__name__} and holds no tensor with samples. A batch "
            "must be inputs x, a pair (x, y) or a triple (x, y, t) of tensors."
        )
    return len(first)


def first_tensor(batch: Any) -> Tensor | None:
    if isinstance(batch, Tensor):
        return batch
    parts = (
        batch.values()
        if isinstance(batch, Mapping)
        else batch
        if isinstance(batch, tuple | list)
        else ()
    )
    return next((found for part in parts if (found := first_tensor(part)) is not None), None)


def targets_of(batch: Any) -> Tensor | None:
    if isinstance(batch, tuple | list) and len(batch) > 1 and isinstance(batch[1], Tensor):
        size = size_of(batch)
        if len(batch[1]) != size:
            raise DataError(
                f"A batch has {size} inputs and {len(batch[1])} targets: they must agree."
            )
        return batch[1].detach().cpu()
    return None


def times_of(batch: Any) -> Any:
    """The times of a triple (x, y, t); None if there are none."""
    third = batch[2] if isinstance(batch, tuple | list) and len(batch) > 2 else None
    return None if str(getattr(third, "dtype", "")).endswith("bool") else third


def task_name(y: Tensor | None, batch: Any) -> str:
    """The task, inferred from the targets.

    Raises:
        UsageError: they leave it open.
    """
    if y is None:
        raise UsageError(
            "The data has no targets, so the task cannot be inferred: pass task='classification', "
            "'regression', 'timeseries', 'density' or 'sampler'."
        )
    if not y.is_floating_point():
        return "classification"
    mask = y.dim() > 2 and times_of(batch) is None and bool((y.nan_to_num() % 1 == 0).all())
    if mask or bool(((y == 0) | (y == 1)).all()):
        raise UsageError(
            "The targets are floating point numbers, but all are "
            f"{'whole' if mask else '0 or 1'}: pass "
            "task='classification' (for a model with one or more logits), 'regression' or "
            "'timeseries'."
        )
    return "timeseries" if y.dim() > 2 or times_of(batch) is not None else "regression"


def marks_of(batch: Any) -> Tensor | None:
    """The mask of a triple (x, y, mask): which predictions count."""
    third = batch[2] if isinstance(batch, tuple | list) and len(batch) > 2 else None
    return third.detach().cpu() if isinstance(third, Tensor) and third.dtype == torch.bool else None


def _shared_times(batch: Any) -> Tensor | None:
    """The times ``(times,)`` of a triple (x, y, t) if all its samples share them."""
    t = times_of(batch)
    y = batch[1] if t is not None else None
    together = (
        isinstance(t, Tensor)
        and isinstance(y, Tensor)
        and t.dim() == 1
        and y.dim() > 1
        and y.shape[1] == len(t)
    )
    return t if together else None


def shared_by(batches: Iterable[Any]) -> frozenset[int]:
    """The tensors that the samples of a batch share, such as times, as numbers in the order of
    `mapped`. Their length differs from the number of samples in some batch.
    """
    found = set[int]()
    for batch in batches:
        size, number = size_of(batch), count()

        def look(x: Tensor, size: int = size, number: Iterator[int] = number) -> Tensor:
            place = next(number)
            if not x.dim() or len(x) != size:
                found.add(place)
            return x

        mapped(batch, look)
    return frozenset(found)


def chosen(batch: Any, rows: Tensor, size: int, shared: frozenset[int] = frozenset()) -> Any:
    """Select samples of a batch: the given rows of every tensor that has a row for each sample.
    Times that all samples share stay whole, and so do other tensors that they share.
    """
    times, number = _shared_times(batch), count()

    def pick(x: Tensor) -> Tensor:
        whole = next(number) in shared or x is times or not x.dim() or len(x) != size
        return x if whole else x[rows.to(x.device)]

    return mapped(batch, pick)


def mapped(
    batch: Any,
    change: Callable[[Any], Any],
    of_kind: Callable[[Any], bool] = lambda x: isinstance(x, Tensor),
) -> Any:
    """Apply a function to all tensors of a batch, or to all parts of another kind."""
    if of_kind(batch):
        return change(batch)
    if isinstance(batch, Mapping):
        return {key: mapped(value, change, of_kind) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(mapped(value, change, of_kind) for value in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(mapped(value, change, of_kind) for value in batch)
    return batch


def refuse_shapes(parts: list[Tensor]) -> None:
    if len({tuple(part.shape[1:]) for part in parts}) > 1:
        raise DataError(
            "The samples of different batches differ in shape: give all targets and outputs one "
            "shape, with NaN for times and values that a sample does not have."
        )
