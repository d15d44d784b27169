"""Snapshots of the contents of objects, to restore what a call has changed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from math import inf
from types import CellType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trueode.auditing.reachable import Entries

ROUNDING = 100.0
"""Differences of GPU sums whose order varies are smaller, in units of the results' rounding."""


class Kept:
    """A snapshot of the contents of holders.

    Args:
        holders: tensors, dicts or `Entries` of them, lists, sets, deques, cells of closures,
            classes.
    """

    def __init__(self, holders: Iterable[Any] = ()) -> None:
        self._before = [(holder, _contents(holder)) for holder in holders]

    def restore(self) -> None:
        """Restore all that has changed."""
        for holder, before in self._before:
            if _has_changed(holder, before):
                _put(holder, before)

    def now(self) -> Kept:
        """A new snapshot of the same holders."""
        found = Kept()
        found._before = [
            (x, _contents(x) if _has_changed(x, before) else before) for x, before in self._before
        ]
        return found

    def touched(self) -> Kept:
        """The part of the snapshot with the holders that have changed since."""
        found = Kept()
        found._before = [pair for pair in self._before if _has_changed(*pair)]
        return found

    def numbers(self) -> list[Number]:
        """The places of single numbers that have changed since, such as counters."""
        changed = {id(x) for x, before in self._before if _is_number(x) and _has_changed(x, before)}
        return [
            Number(holder.held if isinstance(holder, Entries) else holder, key)
            for holder, before in self._before
            if not isinstance(holder, Tensor | set | deque)
            for key, now in _contents(holder).items()
            if (now is not before.get(key) or id(now) in changed) and _is_number(now)
            if key in before or not isinstance(holder, list)  # not new entries of a list
        ]


class Number(NamedTuple):
    """A place for a single number: an entry of a dict or list, a cell, an attribute of a class."""

    holder: Any
    key: Any

    def read(self) -> tuple[Any, Any] | None:
        """The object at this place and its value; None if it is not a number."""
        now = _contents(self.holder).get(self.key)
        return (
            (now, now.detach().clone() if isinstance(now, Tensor) else now)
            if _is_number(now)
            else None
        )

    def write(self, value: tuple[Any, Any]) -> None:
        """Restore what `read` returned."""
        held, number = value
        if isinstance(held, Tensor):
            with torch.no_grad():
                held.copy_(number)
        if isinstance(self.holder, CellType | type):
            setattr(self.holder, self.key, held)
        else:
            self.holder[self.key] = held


def same(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors are equal, NaN included."""
    if x.layout != torch.strided:
        x, y = x.to_dense(), y.to_dense()
    return bool(torch.equal(x, y)) or bool(
        torch.equal(x.isnan(), y.isnan()) and torch.equal(x.nan_to_num(), y.nan_to_num())
    )


def apart(x: Tensor, y: Tensor) -> float:
    """The largest difference of two tensors, in units of the rounding of their largest number;
    infinite if their shapes, or the places of what is not finite, differ.
    """
    if x.shape != y.shape:
        return inf
    if same(x, y):
        return 0.0
    known = x.isfinite()
    if not torch.equal(known, y.isfinite()) or not same(x[~known], y[~known]):
        return inf
    unit = torch.finfo(x.dtype).eps * float(x[known].abs().amax())
    return float((x - y)[known].abs().amax()) / max(unit, torch.finfo(x.dtype).tiny)


def _contents(holder: Any) -> Any:
    """The contents of a holder: a copy of a tensor, a dict for all others."""
    if isinstance(holder, Tensor):
        return holder.detach().clone()
    if isinstance(holder, Entries):
        return {name: value for name, value in holder.held.items() if name in holder.names}
    if isinstance(holder, type):
        return {name: value for name, value in vars(holder).items() if not name.startswith("__")}
    if isinstance(holder, CellType):
        try:
            return {"cell_contents": holder.cell_contents}
        except ValueError:  # an empty cell
            return {}
    return dict(holder) if isinstance(holder, dict) else dict(enumerate(holder))


def _has_changed(holder: Any, before: Any) -> bool:
    if isinstance(holder, Tensor):
        return not _alike(holder, before) or not same(holder.detach(), before)
    now = _contents(holder)
    return list(now) != list(before) or any(
        x is not y for x, y in zip(now.values(), before.values(), strict=True)
    )


def _put(holder: Any, before: Any) -> None:
    if isinstance(holder, Tensor):
        with torch.no_grad():
            if _alike(holder, before):
                holder.copy_(before)
            else:
                holder.data = before.clone()
    elif isinstance(holder, dict | Entries):
        held = holder.held if isinstance(holder, Entries) else holder
        for name in _contents(holder).keys() - before.keys():
            del held[name]
        held.update(before)
        if held is holder and list(held) != list(before):  # restore the order
            held.clear()
            held.update(before)
    elif isinstance(holder, list):
        holder[:] = before.values()
    elif isinstance(holder, CellType | type):
        for name in _contents(holder).keys() - before.keys():
            delattr(holder, name)
        for name, value in before.items():
            setattr(holder, name, value)
    else:
        holder.clear()
        (holder.extend if isinstance(holder, deque) else holder.update)(before.values())


def _alike(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and x.dtype == y.dtype and x.device == y.device


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float) or (isinstance(x, Tensor) and x.numel() == 1)
