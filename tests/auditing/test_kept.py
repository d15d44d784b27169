"""`Kept` restores the content of objects."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from math import inf, nan
from types import CellType
from typing import Any

import pytest
import torch
from torch import Tensor

from trueode.auditing.kept import Kept, apart, same
from trueode.auditing.reachable import Entries


def change(holder: Any) -> None:
    if isinstance(holder, Tensor):
        holder += 1
    elif isinstance(holder, CellType):
        holder.cell_contents = 2
    elif isinstance(holder, set):
        holder.add(5)
    elif isinstance(holder, list | deque):
        holder.append(holder[0])
        holder[0] = 7
    else:
        held = holder.held if isinstance(holder, Entries) else holder
        del held["a"]
        held["c"] = held["b"] = 3
        held["a"] = held["c"]


def plain(holder: Any) -> Any:
    if isinstance(holder, Tensor):
        return holder.tolist()
    if isinstance(holder, CellType):
        return holder.cell_contents
    return list(holder.items()) if isinstance(holder, dict) else list(holder)


HOLDERS: list[Any] = [
    torch.zeros(3),
    torch.tensor([float("nan"), 1.0]),
    torch.eye(2).to_sparse(),
    {"a": 1, "b": [1]},
    OrderedDict(a=1, b=2),
    defaultdict(list, a=[1], b=[2]),
    [1, 2],
    {1, 2},
    deque([1, 2], maxlen=2),
    CellType(1),
]


@pytest.mark.parametrize("holder", HOLDERS, ids=lambda holder: type(holder).__name__)
def test_contents_are_put_back(holder: Any) -> None:
    kept = Kept([holder])
    before = holder.to_dense().tolist() if isinstance(holder, Tensor) else plain(holder)
    if isinstance(holder, Tensor) and holder.is_sparse:
        holder.mul_(2)
    else:
        change(holder)
    assert len(kept.touched()._before) == 1
    kept.restore()
    after = holder.to_dense().tolist() if isinstance(holder, Tensor) else plain(holder)
    assert str(after) == str(before)
    assert not kept.touched()._before


def test_some_entries_alone() -> None:
    held = {"a": 1, "b": 2, "other": 3}
    kept = Kept([Entries(held, {"a", "b", "c"})])
    change(Entries(held, set()))
    held["other"] = 4
    kept.restore()
    assert held == {"a": 1, "b": 2, "other": 4}


def test_an_empty_cell_is_emptied() -> None:
    cell = CellType()
    kept = Kept([cell])
    cell.cell_contents = 1
    kept.restore()
    with pytest.raises(ValueError, match="empty"):
        cell.cell_contents  # noqa: B018


def test_attributes_of_a_class() -> None:
    class Counted:
        n = 0
        name = "a"

    kept = Kept([Counted])
    Counted.n, Counted.name = 5, "b"
    Counted.more = [1]
    (number,) = kept.numbers()
    value = number.read()
    assert value is not None
    Counted.n = 6
    number.write(value)
    assert Counted.n == 5
    kept.restore()
    assert (Counted.n, Counted.name, hasattr(Counted, "more")) == (0, "a", False)


def test_a_tensor_of_another_shape_and_dtype() -> None:
    x = torch.zeros(3)
    kept = Kept([x])
    x.data = torch.ones(2, dtype=torch.float64)
    kept.restore()
    assert (x.dtype, x.tolist()) == (torch.float32, [0.0, 0.0, 0.0])


def test_what_there_is_now() -> None:
    x, held = torch.zeros(2), {"mode": "train", "n": 1}
    kept = Kept([x, held])
    held["mode"] = "eval"
    now = kept.now()
    held["n"] = 2
    now.restore()
    assert held == {"mode": "eval", "n": 1}
    kept.restore()
    assert held == {"mode": "train", "n": 1}


def test_single_numbers_that_change() -> None:
    buffer, new = torch.zeros(()), torch.zeros(1)
    held: dict[str, Any] = {
        "n": 0,
        "still": 0,
        "text": "a",
        "buffer": buffer,
        "new": new,
        "list": [0],
        "large": new,
    }
    grows = [1]
    kept = Kept([held, held["list"], grows, buffer, cell := CellType(0)])
    held["n"], held["made"], held["text"], held["new"], held["large"] = (
        5,
        1,
        "b",
        torch.ones(1),
        torch.ones(2),
    )
    buffer += 1
    held["list"][0], cell.cell_contents = 9, 3
    grows.append(2)
    numbers = kept.numbers()
    assert [each.key for each in numbers] == ["n", "buffer", "new", "made", 0, "cell_contents"]
    values = [(each, each.read()) for each in numbers]
    buffer += 1
    held["new"] = held["new"] + 1
    held["n"], held["made"], held["list"][0], cell.cell_contents = 6, 2, 10, 4
    for each, value in values:
        assert value is not None
        each.write(value)
    assert (held["n"], held["made"], held["list"], cell.cell_contents) == (5, 1, [9], 3)
    assert (float(held["buffer"]), float(held["new"])) == (1.0, 1.0)
    assert held["buffer"] is buffer


def test_tensors_that_are_equal() -> None:
    nan = float("nan")
    assert same(torch.tensor([nan, 1.0]), torch.tensor([nan, 1.0]))
    assert not same(torch.tensor([nan, 1.0]), torch.tensor([1.0, nan]))
    assert same(torch.eye(2).to_sparse(), torch.eye(2))


def test_how_far_tensors_are_apart() -> None:
    x = torch.tensor([1.0, nan, -4.0, inf])
    assert apart(x, x.clone()) == 0
    assert apart(x, x * (1 + torch.finfo(x.dtype).eps)) == pytest.approx(1)
    for other in ([1.0, 2.0, -4.0, inf], [1.0, nan, nan, inf], [1.0, nan, -4.0, -inf]):
        assert apart(x, torch.tensor(other)) == inf
    assert apart(x, x[:2]) == apart(x[1:2], x[:1]) == inf
    assert apart(torch.zeros(2), torch.ones(2)) > 1e6
