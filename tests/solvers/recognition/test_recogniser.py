from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.solvers.recognition.fields import CALLS, LAYERS, OTHERS, Convolutions, Given
from trueode.layers import LayerStack
from trueode.solvers import Adaptive, FixedStep, solve
from trueode.solvers.recognition import find_layers, recogniser

SOLVERS = (FixedStep("rk4", n_steps=3), Adaptive("dopri5", 1e-6, 1e-6))


@pytest.fixture(autouse=True)
def _fields_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recogniser, "TRIED", 10**9)


class Called:
    """Calls a field, and is nothing else that could be recognised."""

    def __init__(self, field: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.field, self.calls = field, 0

    def __call__(self, t: Tensor, z: Tensor) -> Tensor:
        self.calls += 1
        return self.field(t, z)


def layers_of(field: Any, z: Tensor) -> LayerStack | None:
    return find_layers(field, z, lambda: torch.tensor(0.2, dtype=z.dtype))


def state(given: Given, batch: int = 4, **kind: Any) -> Tensor:
    return torch.randn(batch, *given.shape, generator=torch.Generator().manual_seed(1), **kind)


def params_of(field: Any) -> list[Tensor]:
    modules = [field, getattr(field, "field", None), getattr(field, "__self__", None)]
    modules += [cell.cell_contents for cell in getattr(field, "__closure__", None) or ()]
    modules += getattr(field, "__defaults__", None) or ()
    found = [p for m in modules if isinstance(m, nn.Module) for p in m.parameters()]
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("given", LAYERS, ids=lambda given: given.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_layers_are_recognised_and_equal_calling_the_field(
    given: Given, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        field = given.make()
    finally:
        torch.set_default_dtype(torch.float32)
    z = state(given, dtype=dtype)
    assert layers_of(field, z) is not None
    params = params_of(field)
    # in single precision, kinks of activations change the steps of an adaptive solver
    for solver in SOLVERS if dtype is torch.float64 else SOLVERS[:1]:
        found = []
        for each in (field, Called(field)):
            start = z.clone().requires_grad_()
            solution = solve(each, start, (0.2, 1.1), solver=solver)
            gradients = torch.autograd.grad(
                solution.z.square().sum(), [start, *params], allow_unused=True
            )
            found.append((solution.z, solution.nfe, *gradients))
        for x, y in zip(*found, strict=True):
            if isinstance(x, Tensor) and isinstance(y, Tensor):
                torch.testing.assert_close(x, y)
            elif isinstance(x, int):
                assert x == y
            else:  # a parameter that is not used may have no gradient, or zeros
                assert all(each is None or not each.any() for each in (x, y))
    assert not CALLS


@pytest.mark.parametrize("given", OTHERS, ids=lambda given: given.name)
@pytest.mark.filterwarnings("ignore:.*")
def test_everything_else_is_called(given: Given) -> None:
    torch.manual_seed(0)
    field = given.make()
    assert layers_of(field, state(given)) is None
    assert not CALLS


FACTOR = 1.0


class Changing(nn.Module):
    gain = 2.0

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2))
        self.drop = nn.Dropout(0.5)
        self.register_buffer("scale", torch.tensor(0.5))
        self.negative = False
        self.eval()

    def helper(self, y: Tensor) -> Tensor:
        return self.net(self.drop(y))  # type: ignore[no-any-return]

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        out = self.helper(y) * self.scale * self.gain * FACTOR
        return -out if self.negative else out


def _data(field: Any) -> None:
    field.net[0].weight.data = torch.ones(6, 2)


def _parameter(field: Any) -> None:
    field.net[0].weight = nn.Parameter(torch.ones(6, 2))


def _shape(field: Any) -> None:
    field.net[0].weight.data, field.net[0].bias.data = torch.ones(4, 2), torch.ones(4)
    field.net[2].weight.data = torch.ones(2, 4)


def _step(field: Any) -> None:
    field(torch.tensor(0.0), torch.ones(3, 2)).sum().backward()
    torch.optim.SGD(field.parameters(), lr=0.5).step()


def _load(field: Any) -> None:
    torch.manual_seed(7)
    field.load_state_dict(Changing().state_dict())


def _hook(field: Any) -> None:
    field.net[1].register_forward_hook(lambda module, args, result: 3 * result)


def _pre_hook(field: Any) -> None:
    field.register_forward_pre_hook(lambda module, args: (args[0], 2 * args[1]))


def _submodule(field: Any) -> None:
    field.net = nn.Linear(2, 2)


def _activation(field: Any) -> None:
    field.net[1] = nn.Sigmoid()


def _longer(field: Any) -> None:
    field.net.append(nn.Softsign())


def _constant(field: Any) -> None:
    field.scale = torch.tensor(3.0)


def _in_place(field: Any) -> None:
    field.scale.mul_(3)


def _frozen(field: Any) -> None:
    field.requires_grad_(False)


def _forward(field: Any) -> None:
    field.forward = lambda t, y: -y


def _method(field: Any) -> None:
    field.helper = lambda y: -y


def _attribute(field: Any) -> None:
    field.negative = True


def _own_gain(field: Any) -> None:
    field.gain = -1.0


def _mode(field: Any) -> None:
    field.drop.p = 1.0
    field.train()


def _norm(field: Any) -> None:
    nn.utils.parametrizations.weight_norm(field.net[0])
    with torch.no_grad():
        field.net[0].parametrizations.weight.original0.mul_(2)


def _double(field: Any) -> None:
    field.double()


CHANGES = (_data, _parameter, _shape, _step, _load, _hook, _pre_hook, _submodule, _activation)
CHANGES += (_longer, _constant, _in_place, _frozen, _forward, _method, _attribute, _own_gain)
CHANGES += (_mode, _norm, _double)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_is_seen_at_the_next_solve(change: Callable[[Any], None]) -> None:
    torch.manual_seed(0)
    field, z = Changing(), torch.randn(3, 2)
    assert layers_of(field, z) is not None
    before = solve(field, z, solver=SOLVERS[0]).z
    change(field)
    if change is _double:
        z = z.double()
    after, expected = (solve(each, z, solver=SOLVERS[0]).z for each in (field, Called(field)))
    torch.testing.assert_close(after, expected)
    assert change is _frozen or after.dtype != before.dtype or not torch.allclose(after, before)


def test_a_changed_global_or_class_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    field, z = Changing(), torch.randn(3, 2)
    before = solve(field, z, solver=SOLVERS[0]).z
    for home, name in ((__name__, "FACTOR"), (Changing, "gain")):
        with monkeypatch.context() as patch:
            if isinstance(home, str):
                patch.setitem(globals(), name, -1.0)
            else:
                patch.setattr(home, name, -1.0)
            found = [solve(each, z, solver=SOLVERS[0]).z for each in (field, Called(field))]
            torch.testing.assert_close(*found)
            assert not torch.allclose(found[0], before)


def test_a_changed_closure_is_seen() -> None:
    nets, z = [nn.Linear(2, 2), nn.Linear(2, 2)], torch.randn(3, 2)
    net, sign = nets[0], 1.0

    def field(t: Tensor, y: Tensor) -> Tensor:
        return sign * net(y)  # type: ignore[no-any-return]

    for net, sign in zip((*nets, nets[0]), (1.0, 1.0, -1.0), strict=True):  # noqa: B007
        assert layers_of(field, z) is not None
        found = [solve(each, z, solver=SOLVERS[0]).z for each in (field, Called(field))]
        torch.testing.assert_close(*found)


def test_functions_made_for_each_solve_share_what_is_known() -> None:
    net, z = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)), torch.randn(3, 2)
    known = [layers_of(lambda t, y: net(y), z) for _ in range(40)]
    assert all(each is not None for each in known)


def test_fields_made_for_each_solve_are_soon_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recogniser, "TRIED", 16)

    class Conditioned(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return self.net(y)  # type: ignore[no-any-return]

    net, z = nn.Linear(2, 2), torch.randn(3, 2)
    known = [layers_of(Conditioned(net), z) for _ in range(40)]
    assert known[0] is not None
    assert known[-1] is None
    lasting = Conditioned(net)
    known = [layers_of(lasting, z) for _ in range(40)]
    assert known[0] is None
    assert known[-1] is not None
    assert layers_of(Conditioned(net), z) is not None  # one was worth it


def test_recognition_keeps_no_field_alive() -> None:
    for make in (Changing, lambda: Changing().helper):
        field = make()
        anchor = weakref.ref(field if isinstance(field, nn.Module) else field.__self__)
        method = (lambda t, y, f=field: f(y)) if not isinstance(field, nn.Module) else field
        assert layers_of(method, torch.randn(3, 2)) is not None
        del field, method
        gc.collect()
        assert anchor() is None


def test_the_state_and_random_numbers_are_left_alone() -> None:
    field, z = Changing(), torch.randn(3, 2)
    copy, before = z.clone(), torch.get_rng_state()
    assert layers_of(field, z) is not None
    assert torch.equal(z, copy)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in field.parameters())


@pytest.mark.parametrize("seed", range(3))
def test_many_images_are_recognised(seed: int) -> None:
    """Among so many inputs of activations, rounding changes the sign of some."""
    torch.manual_seed(seed)
    field = Convolutions(conv=nn.Conv2d, hidden=32)
    assert layers_of(field, torch.rand(64, 2, 32, 32)) is not None
