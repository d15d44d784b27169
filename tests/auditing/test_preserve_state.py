"""An audit leaves a model and all that it uses unchanged, whatever its forward does."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchdiffeq
from torch import Tensor, nn

from trueode import audit

X = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
UNIT = torch.tensor([0.0, 1.0])
HALVES = {"method": "rk4", "options": {"step_size": 0.5}}

CALLS = 0  # of a field, counted in a global variable
NET: Any = None


class Tripped:
    """Raises from a given step on; an audit cannot reset its counter."""

    def __init__(self, at: int, what: BaseException) -> None:
        self.at, self.what, self.steps = at, what, itertools.count()

    def step(self) -> None:
        if next(self.steps) >= self.at:
            raise self.what


class Net(nn.Module):
    """A model whose forward and field change everything they can reach."""

    calls = 0

    def __init__(self, trip: Tripped) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
        self.frozen = nn.Linear(2, 2).requires_grad_(False).eval()
        self.register_buffer("evaluations", torch.zeros(()))
        self.trip, self.nfe, self.seen, self.last = trip, 0, list[int](), dict[str, Any]()
        self.args = SimpleNamespace(order=[3, 1], names={"a"})

    def forward(self, x: Tensor) -> Tensor:
        self.trip.step()
        self.seen.append(len(x))
        self.last["x"] = self.scratch = x
        self.args.order.sort()
        self.args.names.add("b")
        self.evaluations = torch.zeros(())
        self.frozen.requires_grad_(True)
        torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
        with torch.enable_grad():
            self.net[0].weight.sum().backward()
        return self.solved(x)

    def solved(self, x: Tensor) -> Tensor:
        states: Tensor = torchdiffeq.odeint(self.field, x, UNIT.to(x), **HALVES)
        return states[-1]

    def field(self, t: Tensor, z: Tensor) -> Tensor:
        global CALLS
        self.trip.step()
        self.nfe += 1
        Net.calls += 1
        self.evaluations += 1
        CALLS += 1
        derivative: Tensor = self.frozen(self.net(z))
        return derivative


def module(net: Net) -> Any:
    return net


def closure(net: Net) -> Any:
    calls = 0

    def classify(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return net(x)

    return classify


def by_name(x: Tensor) -> Tensor:
    return NET(x)


def global_name(net: Net) -> Any:
    return by_name


def called_with(net: Net, x: Tensor, *, history: list[int]) -> Tensor:
    history.append(len(x))
    return net(x)


def with_arguments(net: Net) -> Any:
    return partial(called_with, net, history=[])


def method(net: Net) -> Any:
    return net.forward


def holder(net: Net) -> Any:
    class Holder:
        def __init__(self) -> None:
            self.parts, self.calls = {"net": [net]}, 0

        def __call__(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.parts["net"][0](x)

    return Holder()


def default(net: Net) -> Any:
    def classify(x: Tensor, net: Net = net) -> Tensor:
        return net(x)

    return classify


SUBJECTS = [module, closure, global_name, with_arguments, method, holder, default]


def contents(x: Any, seen: dict[int, Any] | None = None) -> Any:
    """The contents of an object as plain values, with the identities of the objects."""
    seen = {} if seen is None else seen
    if id(x) in seen or isinstance(x, Tripped | type):
        return id(x)
    seen[id(x)] = x
    if isinstance(x, Tensor):
        return (
            id(x),
            x.tolist(),
            x.dtype,
            x.requires_grad,
            id(x.grad),
            None if x.grad is None else x.grad.tolist(),
        )
    if isinstance(x, dict):
        return id(x), [(key, contents(value, seen)) for key, value in x.items()]
    if isinstance(x, list | tuple | set):
        return id(x), [contents(value, seen) for value in x]
    if isinstance(x, partial):
        return [contents(part, seen) for part in (x.func, x.args, x.keywords)]
    if hasattr(x, "__closure__"):
        return [
            contents(part, seen)
            for part in (*(cell.cell_contents for cell in x.__closure__ or ()), x.__defaults__)
        ]
    if isinstance(x, str | int | float | None | bool):
        return x
    return id(x), contents(getattr(x, "__dict__", {}), seen)


def everything(subject: Any, net: Net) -> Any:
    numbers = np.random.get_state()  # noqa: NPY002
    chance = torch.get_rng_state().tolist(), random.getstate(), numbers[1].tolist(), numbers[2]
    return contents(subject), contents(net), CALLS, Net.calls, chance, torch.is_grad_enabled()


@pytest.fixture(autouse=True)
def names() -> Iterator[None]:
    global CALLS, NET
    yield
    CALLS, NET = 0, None


def made(subject: Callable[[Net], Any], trip: Tripped) -> tuple[Any, Net]:
    global NET
    torch.manual_seed(0)
    NET = net = Net(trip)
    net(X).sum().backward()
    net.frozen.requires_grad_(False)
    return subject(net), net


def steps_of(subject: Callable[[Net], Any], **how: Any) -> int:
    """The number of steps of an undisturbed audit."""
    trip = Tripped(10**9, ValueError())
    model, net = made(subject, trip)
    before = everything(model, net)
    audit(model, (X, Y), methods=(), **how)
    assert everything(model, net) == before
    return next(trip.steps)


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("what", [RuntimeError, KeyboardInterrupt, ValueError])
def test_all_is_left_as_it_was(subject: Callable[[Net], Any], what: type[BaseException]) -> None:
    most = steps_of(subject)
    for at in [1, *random.Random(what.__name__ + subject.__name__).sample(range(most), 4)]:
        trip = Tripped(10**9, what("at this step"))
        model, net = made(subject, trip)
        before = everything(model, net)
        trip.steps, trip.at = itertools.count(), at
        try:
            audit(model, (X, Y), methods=())
        except BaseException as failure:
            assert "at this step" in str(failure) or what is KeyboardInterrupt  # noqa: PT017 - later failures may be caught
        assert everything(model, net) == before, at


def test_what_a_call_uses_is_left_as_it_was_too() -> None:
    trip = Tripped(10**9, ValueError())
    _, net = made(module, trip)
    other = nn.Linear(2, 2)
    before = everything(net, net)
    found = audit(other, (X, Y), call=lambda model, batch: net(model(batch[0])), methods=())
    assert found.reference is not None
    assert found.reference.double
    assert everything(net, net) == before


def test_parts_in_training_mode_are_told_wherever_they_lie() -> None:
    for subject in SUBJECTS:
        model, net = made(subject, Tripped(10**9, ValueError()))
        told = {each.name: each.holds for each in audit(model, (X, Y), methods=()).preconditions}
        assert not told["evaluation mode"], subject
        assert net.training
        assert not net.frozen.training
