"""The data of an audit: batches in the forms in which they are given, and the samples in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from trueode.data import Batches, Dataset, Split
from trueode.errors import DataError, TrueodeError, told

BATCH = 256


def batches_of(data: Any, samples: int) -> Iterator[Any]:
    """Batches of the first samples."""
    if isinstance(data, Dataset):
        data = data.test
    left = samples
    for batch in _told_of(_all_batches(data)):
        size = size_of(batch)
        yield batch if size <= left else chosen(batch, torch.arange(left, device="cpu"), size)
        left -= min(size, left)
        if left <= 0:  # another batch is not asked for: the data may have no end, or be slow
            return


def _told_of(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches; what goes wrong in somebody else's loader is told as an error of the data."""
    try:
        yield from batches
    except TrueodeError:
        raise
    except Exception as failure:
        raise DataError(f"The data cannot be read: {told(failure)}.") from failure


def _all_batches(data: Any) -> Iterable[Any]:
    if isinstance(data, Split) or hasattr(data, "batch"):
        return Batches(data, BATCH, shuffle=False).in_order()
    if isinstance(data, Tensor):
        return data.split(BATCH)  # type: ignore[no-untyped-call, no-any-return]
    if isinstance(data, tuple) and data and all(isinstance(part, Tensor) for part in data):
        x, *rest = data
        y = rest[0] if rest else None
        t = rest[1] if len(rest) > 1 else None
        if y is not None and len(y) != len(x):
            raise DataError(f"x has {len(x)} samples and y {len(y)}: they must agree.")
        if t is not None and t.dtype == torch.bool:
            return zip(*(part.split(BATCH) for part in data), strict=True)
        if y is None:
            return data[0].split(BATCH)  # type: ignore[no-any-return]
        return Batches(Split(x, y, t, dtype=x.dtype), BATCH, shuffle=False).in_order()
    parts = data if isinstance(data, tuple | list) else (data,)
    foreign = next((part for part in parts if hasattr(part, "__array__") and not isinstance(part, Tensor)), None)
    if foreign is not None:
        jax = type(foreign).__module__.split(".")[0] in ("jax", "jaxlib")
        raise DataError(
            "The data are arrays of JAX. trueode audits PyTorch models, on tensors: give such a model, and torch.tensor(…) of the arrays."
            if jax
            else f"The data are of type {type(foreign).__name__}; trueode audits PyTorch models, on tensors: torch.from_numpy(…)."
        )
    if isinstance(data, str | bytes | Mapping) or not isinstance(data, Iterable):
        raise DataError(
            f"The data is of type {type(data).__name__}; needed is a pair of tensors (x, y), inputs x alone, or an iterable "
            "of batches (x, y), such as a DataLoader."
        )
    return data


def size_of(batch: Any) -> int:
    """The number of samples of a batch: of its first tensor."""
    first = first_tensor(batch)
    if first is None or first.dim() == 0:
        raise DataError(
            f"A batch is of type {type(batch).__name__} and holds no tensor with samples: batches are inputs x, pairs "
            "(x, y) or triples (x, y, t), of tensors."
        )
    return len(first)


def first_tensor(batch: Any) -> Tensor | None:
    if isinstance(batch, Tensor):
        return batch
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else ()
    return next((found for part in parts if (found := first_tensor(part)) is not None), None)


def targets_of(batch: Any) -> Tensor | None:
    if isinstance(batch, tuple | list) and len(batch) > 1 and isinstance(batch[1], Tensor):
        size = size_of(batch)
        if len(batch[1]) != size:
            raise DataError(f"A batch has {size} inputs and {len(batch[1])} targets: they must agree.")
        return batch[1].detach().cpu()
    return None


def times_of(batch: Any) -> Any:
    """The times of a triple (x, y, t)."""
    third = batch[2] if isinstance(batch, tuple | list) and len(batch) > 2 else None
    return None if isinstance(third, Tensor) and third.dtype == torch.bool else third


def marks_of(batch: Any) -> Tensor | None:
    """The mask of a triple (x, y, mask): which predictions count."""
    third = batch[2] if isinstance(batch, tuple | list) and len(batch) > 2 else None
    return third.detach().cpu() if isinstance(third, Tensor) and third.dtype == torch.bool else None


def _shared_times(batch: Any) -> Tensor | None:
    """The times ``(times,)`` of a triple (x, y, t) that all of its samples share."""
    t = times_of(batch)
    y = batch[1] if t is not None else None
    together = isinstance(t, Tensor) and isinstance(y, Tensor) and t.dim() == 1 and y.dim() > 1 and y.shape[1] == len(t)
    return t if together else None


def chosen(batch: Any, rows: Tensor, size: int) -> Any:
    """Some samples of a batch: rows of all its tensors of as many rows as it has samples, but for times that they share."""
    shared = _shared_times(batch)

    def pick(x: Tensor) -> Tensor:
        return x[rows.to(x.device)] if x is not shared and x.dim() and len(x) == size else x

    return mapped(batch, pick)


def mapped(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A batch with all its tensors changed."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {key: mapped(value, change) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(mapped(value, change) for value in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(mapped(value, change) for value in batch)
    return batch


def refuse_shapes(parts: list[Tensor]) -> None:
    if len({tuple(part.shape[1:]) for part in parts}) > 1:
        raise DataError(
            "The samples of batches differ in shape: bring targets and outputs of all to one, with NaN for times and values "
            "that a sample does not have."
        )
