"""The audit reports fields that are called outside of every solve, except shared modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor, nn

from trueode import FixedStep, NeuralODE, audit, solve

X = torch.randn(320, 2, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


class Field(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, t: Any, z: Tensor) -> Tensor:
        return self.net(z)


def by_torchdiffeq(field: Callable[..., Any], z: Tensor, method: str = "rk4") -> Tensor:
    return torchdiffeq.odeint(field, z, torch.linspace(0.0, 1.0, 5).to(z), method=method)[-1]


def by_adjoint(field: Callable[..., Any], z: Tensor) -> Tensor:
    return torchdiffeq.odeint_adjoint(field, z, torch.linspace(0.0, 1.0, 5).to(z), method="rk4")[-1]


def backwards(field: Callable[..., Any], z: Tensor) -> Tensor:
    return torchdiffeq.odeint(field, z, torch.linspace(1.0, 0.0, 5).to(z), method="dopri5")[-1]


def by_solve(field: Callable[..., Any], z: Tensor) -> Tensor:
    return solve(field, z, solver=FixedStep("rk4", n_steps=4)).z


def by_torchdyn(field: Callable[..., Any], z: Tensor) -> Tensor:
    numerics = pytest.importorskip("torchdyn.numerics")
    return numerics.odeint(field, z, torch.linspace(0.0, 1.0, 5).to(z), "dopri5")[1][-1]


def by_zuko(field: Callable[..., Any], z: Tensor) -> Tensor:
    return pytest.importorskip("zuko").utils.odeint(field, z, 0.0, 1.0)


class Model(nn.Module):
    """A model with or without a manual step before its solve."""

    def __init__(self, flow: Callable[..., Tensor], by_hand: bool) -> None:
        super().__init__()
        self.f, self.head, self.flow, self.by_hand = Field(), nn.Linear(2, 2), flow, by_hand

    def forward(self, x: Tensor) -> Tensor:
        if self.by_hand:
            x = x + 0.25 * self.f(0.0, x)
        return self.head(self.flow(self.f, x))


def told(model: Any) -> str:
    found = audit(model, (X, Y), methods=())
    (each,) = (each for each in found.preconditions if each.name == "field")
    assert not each.decisive
    assert any("outside" in note for note in found.notes) is not each.holds
    return each.text


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "flow", [by_torchdiffeq, by_adjoint, backwards, by_solve, by_torchdyn, by_zuko]
)
def test_a_field_that_is_called_by_hand(flow: Callable[..., Tensor]) -> None:
    if flow in (by_torchdyn, by_zuko):  # an audit sees what was imported before
        pytest.importorskip("torchdyn.numerics" if flow is by_torchdyn else "zuko")
    assert told(Model(flow, by_hand=False)) == ""
    text = told(Model(flow, by_hand=True))
    assert "outside of every solve" in text
    assert "the field f (Field), 1 outside" in text


class Shares(nn.Module):
    """A field made of parts, some of which are also used outside of the solve."""

    def __init__(self, *outside: str) -> None:
        super().__init__()
        self.encoder, self.act, self.norm, self.net = (
            nn.Linear(2, 2),
            nn.Tanh(),
            nn.LayerNorm(2),
            nn.Linear(2, 2),
        )
        self.outside = outside

    def field(self, t: Tensor, z: Tensor) -> Tensor:
        return self.act(self.net(self.norm(z)) + self.encoder(z))

    def forward(self, x: Tensor) -> Tensor:
        for name in self.outside:
            x = getattr(self, name)(x)
        return by_torchdiffeq(self.field, x)


def test_what_is_shared_with_a_field_is_none() -> None:
    for outside in [("act",), ("encoder",), ("norm", "act"), ("encoder", "norm")]:
        assert told(Shares(*outside)) == "", outside
    assert "the field norm (LayerNorm), 1 outside" in told(Shares("encoder", "norm", "net"))


def test_a_function_around_a_module() -> None:
    net = nn.Linear(2, 2)

    def model(x: Tensor) -> Tensor:
        return by_torchdiffeq(lambda t, z: torch.tanh(net(z)), x + net(x))

    assert "the field (Linear), 1 outside and 16 inside" in told(model)


def test_a_model_of_this_package() -> None:
    field = Field()
    assert told(NeuralODE(field, solver=FixedStep("rk4", n_steps=4))) == ""
    by_hand = NeuralODE(
        field, upstream=lambda x: x + field(0.0, x), solver=FixedStep("rk4", n_steps=4)
    )
    assert "the field field (Field), 1 outside" in told(by_hand)


def test_hooks_are_gone_afterwards() -> None:
    model = Model(by_torchdiffeq, by_hand=True)
    told(model)
    assert not any(part._forward_pre_hooks for part in model.modules())
