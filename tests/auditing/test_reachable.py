"""Modules and other objects are found wherever a callable holds them."""

from __future__ import annotations

import weakref
from argparse import Namespace
from collections import deque
from functools import partial, wraps
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from trueode.auditing.reachable import LONG, Entries, reachable

NET = nn.Linear(2, 2)
OTHER = nn.Linear(2, 2)
COUNT = 0
PLACE = ModuleType("a_place_of_ones_own")
vars(PLACE).update(net=NET, other=OTHER)


def by_name(x: Tensor) -> Tensor:
    return NET(x)


def by_place(x: Tensor) -> Tensor:
    return PLACE.net(x)


def nested(x: Tensor) -> list[Tensor]:
    return [by_name(part) for part in x]


class Holder:
    def __init__(self, part: Any) -> None:
        self.part = part

    def __call__(self, x: Tensor) -> Any:
        return self.part(x)


class Slotless(Holder):
    @property
    def net(self) -> nn.Module:
        return NET

    @staticmethod
    def call(x: Tensor) -> Tensor:
        return NET(x)


def closure(net: nn.Module) -> Any:
    return lambda x: net(x)


def default(x: Tensor, net: nn.Module = NET, *, other: nn.Module | None = None) -> Tensor:
    return net(x)


def decorated(function: Any) -> Any:
    @wraps(function)
    def wrapped(x: Tensor) -> Any:
        return function(x)

    return wrapped


class Attributed(nn.Module):
    """Holds a module in a list, where it is not registered as a child."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = [{"net": NET}]


WAYS: dict[str, Any] = {
    "itself": NET,
    "method": NET.forward,
    "name": by_name,
    "module of a name": by_place,
    "function in a function": nested,
    "object": Holder(NET),
    "method of an object": Holder(NET).__call__,
    "property": Slotless(None),
    "static method": Slotless(None).call,
    "closure": closure(NET),
    "default": default,
    "decorated": decorated(by_name),
    "partial": partial(default, net=NET),
    "partial of a method": partial(NET.forward),
    "containers": Holder([({"a": deque([NET])},)]),
    "namespaces": Holder(SimpleNamespace(a=Namespace(net=NET))),
    "attribute of a module": Attributed(),
    "attribute of a function": by_place,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_module_is_found(way: str) -> None:
    found = reachable(WAYS[way])
    assert any(module is NET for module in found.every)
    assert any(x is NET.weight for x in found.tensors)
    assert not any(module is OTHER for module in found.every)


def test_modules_inside_of_others_are_told_apart() -> None:
    whole = nn.Sequential(NET, nn.Tanh())
    found = reachable(closure(NET), whole)
    assert found.modules == [whole]
    assert {id(module) for module in found.every} == {id(part) for part in whole.modules()}
    assert [id(x) for x in found.tensors] == [id(NET.weight), id(NET.bias)]


def counts(x: Tensor) -> Tensor:
    global COUNT

    def inner() -> None:
        global COUNT
        COUNT += 1

    inner()
    return x


def test_names_that_are_assigned() -> None:
    (names,) = (each for each in reachable(counts).holders if isinstance(each, Entries))
    assert names.names == {"COUNT"}
    assert names.held is globals()


def asks(x: Tensor) -> Tensor:
    return x if NET.training else 2 * x


def test_code_that_asks_for_the_mode() -> None:
    assert reachable(asks).modes
    assert reachable(decorated(asks)).modes
    assert not reachable(by_name, nn.Sequential(nn.Dropout(0.5))).modes


def test_data_and_what_libraries_hold_are_left_alone() -> None:
    data = [nn.Linear(2, 2) for _ in range(LONG + 1)]
    found = reachable(Holder(data), Holder(torch.utils.data.DataLoader(data, batch_size=2)))
    assert found.every == []
    assert any(each is data for each in found.holders)


def asserts(x: Tensor) -> Tensor:
    assert len(x)  # calls pytest, from which all tests are reachable
    return x


def test_installed_packages_are_not_entered() -> None:
    assert reachable(asserts).every == []


class Counted:
    """A class with counters."""

    n = 0
    seen: ClassVar[list[int]] = []


def counts_in_a_class(x: Tensor) -> Tensor:
    Counted.n += 1
    Counted.seen.append(len(x))
    return x


def test_classes_of_ones_own() -> None:
    found = reachable(counts_in_a_class)
    assert any(each is Counted for each in found.holders)
    assert any(each is Counted.seen for each in found.holders)


def test_references_that_have_died() -> None:
    holder = Holder(None)
    assert reachable(Holder([weakref.proxy(holder)])).every == []
    dead = weakref.proxy(Holder(None))
    assert reachable(Holder([dead])).every == []


def test_what_goes_in_circles() -> None:
    holder = Holder(None)
    holder.part = [holder, NET]
    assert reachable(holder).modules == [NET]
