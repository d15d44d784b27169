"""`SequentialField`: its results, and the modules that solvers treat as layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from trueode.fields import SequentialField
from trueode.solvers import Adaptive, FixedStep, solve
from trueode.solvers.backends import native

ACTIVATIONS = [
    nn.ReLU(),
    nn.LeakyReLU(),
    nn.Sigmoid(),
    nn.Tanh(),
    nn.SiLU(),
    nn.Softplus(),
    nn.GELU(),
    nn.Identity(),
]


def network(*activations: nn.Module, timed: bool = False, bias: bool = True) -> SequentialField:
    torch.manual_seed(0)
    widths = [4 + timed, *range(5, 5 + len(activations)), 4]
    modules: list[nn.Module] = []
    for i, activation in enumerate([*activations, None]):
        modules.append(nn.Linear(widths[i], widths[i + 1], bias=bias))
        modules += [] if activation is None else [activation]
    return SequentialField(*modules, time_dependent=timed).double()


def results(field: nn.Module, z: Tensor, solver: FixedStep | Adaptive, told: bool) -> list[Tensor]:
    called = field if told else lambda t, z: field(t, z)
    final = solve(called, z, (0.2, 1.0), solver=solver).z
    return [final, *torch.autograd.grad(final.square().sum(), [z, *field.parameters()])]


@pytest.mark.parametrize("name", [*native.instruction_sets(), "off"])
@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("depth", [0, 1, 2, 8])
def test_layers_give_what_calling_gives(depth: int, timed: bool, name: str) -> None:
    field = network(*ACTIVATIONS[:depth], timed=timed)
    z = torch.randn(6, 2, 2, dtype=torch.float64, requires_grad=True)
    assert field.layer_stack(z.shape) is not None
    with native.using(name):
        for solver in (
            FixedStep("rk4", n_steps=3),
            Adaptive("dopri5", 1e-4, 1e-4, per_sample=True),
        ):
            for x, y in zip(
                results(field, z, solver, True), results(field, z, solver, False), strict=True
            ):
                torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-10)


def test_without_biases() -> None:
    field = network(nn.Tanh(), bias=False)
    z, solver = (
        torch.randn(6, 4, dtype=torch.float64, requires_grad=True),
        FixedStep("rk4", n_steps=3),
    )
    assert field.layer_stack(z.shape) is not None
    for x, y in zip(results(field, z, solver, True), results(field, z, solver, False), strict=True):
        torch.testing.assert_close(x, y)


class Own(SequentialField):
    def forward(self, t: float | Tensor, z: Tensor) -> Tensor:
        return 2 * super().forward(t, z)


def _hooked() -> SequentialField:
    field = network(nn.Tanh())
    field.net[0].register_forward_hook(lambda *_: None)
    return field


def _parametrised() -> SequentialField:
    field = network(nn.Tanh())
    parametrizations.weight_norm(field.net[0])
    return field


@pytest.mark.parametrize(
    "field",
    [
        network(nn.LeakyReLU(0.2)),
        network(nn.Softplus(beta=2.0)),
        network(nn.GELU(approximate="tanh")),
        network(nn.Hardtanh()),
        network(nn.LayerNorm(5)),
        SequentialField(nn.Linear(4, 4), nn.Tanh()).double(),
        SequentialField(nn.Tanh(), nn.Linear(4, 4)).double(),
        SequentialField(nn.Linear(4, 4), nn.Tanh(), nn.Tanh(), nn.Linear(4, 4)).double(),
        SequentialField().double(),
        Own(nn.Linear(4, 4)).double(),
        _hooked(),
        _parametrised(),
    ],
    ids=range(12),
)
def test_anything_else_is_called(field: SequentialField) -> None:
    z = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    assert field.layer_stack(z.shape) is None
    solver = FixedStep("euler", n_steps=2)
    final = solve(field, z, solver=solver).z
    torch.testing.assert_close(final, z + (k := field(0.0, z)) / 2 + field(0.5, z + k / 2) / 2)
    assert network(nn.Tanh()).layer_stack((6, 5)) is None  # of another width
