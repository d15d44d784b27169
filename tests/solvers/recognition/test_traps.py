"""Random fields with traps: no result is wrong, and no side effect is lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from trueode.solvers import FixedStep, solve
from trueode.solvers.recognition import find_layers, recogniser

WIDTH = 3
SOLVER = FixedStep("heun2", n_steps=2)
Piece = Callable[[Tensor, Tensor], Tensor]


class Pieces(nn.Module):
    """Functions one after the other; some use its modules, some do more than compute."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.linear = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in names)
        self.timed = nn.ModuleList(nn.Linear(WIDTH + 1, WIDTH) for _ in names)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))
        self.gain = nn.Parameter(torch.tensor(0.8))
        self.register_buffer("calls", torch.zeros(()))
        self.drop = nn.Dropout(1.0).eval()
        self.count, self.flag, self.log = 0, True, list[float]()
        self.pieces = tuple(PIECES[name](self, i) for i, name in enumerate(names))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        for piece in self.pieces:
            x = piece(t, x)
        return x


def _counted(module: Any) -> Piece:
    def piece(t: Tensor, x: Tensor) -> Tensor:
        module.count += 1
        return x

    return piece


def _logged(module: Any) -> Piece:
    def piece(t: Tensor, x: Tensor) -> Tensor:
        module.log.append(0.0)
        return x

    return piece


def _counted_in_buffer(module: Any) -> Piece:
    def piece(t: Tensor, x: Tensor) -> Tensor:
        module.calls.add_(1)
        return x

    return piece


def _viewed(module: Any) -> Piece:
    def piece(t: Tensor, x: Tensor) -> Tensor:
        y = (1.0 * x).contiguous()
        F.relu_(y.view(-1))
        return y

    return piece


def _overwritten(layer: nn.Module) -> Piece:
    def piece(t: Tensor, x: Tensor) -> Tensor:
        y = layer(x)
        return F.relu(y, inplace=True) + 0 * y

    return piece


def _caught(module: Any) -> Piece:
    def piece(t: Tensor, x: Tensor) -> Tensor:
        try:
            return x * torch.cos(t)
        except Exception:
            return x

    return piece


PIECES: dict[str, Callable[[Any, int], Piece]] = {
    **{
        f"linear{n}": lambda m, i: lambda t, x, layer=m.linear[i]: layer(x)  # more likely
        for n in range(3)
    },
    "joined": lambda m, i: lambda t, x: m.timed[i](torch.cat([x, t.expand(len(x), 1)], 1)),
    "joined first": lambda m, i: (
        lambda t, x: m.timed[i](torch.cat([torch.ones_like(x[:, :1]) * (1 - 2 * t), x], 1))
    ),
    "tanh": lambda m, i: lambda t, x: torch.tanh(x),
    "softplus": lambda m, i: lambda t, x: F.softplus(x),
    "relu in place": lambda m, i: lambda t, x, layer=m.linear[i]: F.relu(layer(x), inplace=True),
    "swish": lambda m, i: lambda t, x: x * torch.sigmoid(x),
    "swish of a layer": lambda m, i: lambda t, x: (y := m.linear[i](x)) * torch.sigmoid(y),
    "not swish": lambda m, i: lambda t, x: x * torch.sigmoid(2 * x),
    "scaled": lambda m, i: lambda t, x: -0.5 * x,
    "gain": lambda m, i: lambda t, x: m.gain * x,
    "shifted": lambda m, i: lambda t, x: x + 1,
    "time added": lambda m, i: lambda t, x: x - t,
    "time times": lambda m, i: lambda t, x: x * t,
    "flag": lambda m, i: lambda t, x: x if m.flag else -x,
    "mode": lambda m, i: lambda t, x: -x if m.training else x,
    "dropout": lambda m, i: lambda t, x: m.drop(x),
    "normed": lambda m, i: lambda t, x: m.normed(x),
    "residual": lambda m, i: lambda t, x: x + torch.tanh(m.linear[i](x)),
    "centred": lambda m, i: lambda t, x: x - x.mean(0),
    "flipped": lambda m, i: lambda t, x: x.flip(1),
    "rows": lambda m, i: lambda t, x: x.reshape(-1, WIDTH).view(x.shape),
    "one row": lambda m, i: lambda t, x: x.t().reshape(x.shape),
    "batch size": lambda m, i: lambda t, x: x / x.shape[0],
    "branch": lambda m, i: lambda t, x: x if t < 0.3 else -x,
    "value": lambda m, i: lambda t, x: x * float(t),
    "counted": lambda m, i: _counted(m),
    "logged": lambda m, i: _logged(m),
    "counted in a buffer": lambda m, i: _counted_in_buffer(m),
    "viewed": lambda m, i: _viewed(m),
    "overwritten": lambda m, i: _overwritten(m.linear[i]),
    "caught": lambda m, i: _caught(m),
    "detached": lambda m, i: lambda t, x: x.detach() + 0 * x,
}
CHANGES: dict[str, Callable[[Any], Any]] = {
    "none": lambda m: None,
    "flag": lambda m: setattr(m, "flag", False),
    "mode": lambda m: m.train(),
    "data": lambda m: next(m.linear.parameters()).data.mul_(-1),
    "parameter": lambda m: setattr(m.linear[-1], "bias", nn.Parameter(torch.ones(WIDTH).double())),
    "submodule": lambda m: m.timed.__setitem__(
        0, nn.Sequential(nn.Linear(WIDTH + 1, WIDTH).double())
    ),
    "hook": lambda m: m.linear[0].register_forward_hook(lambda module, args, out: -out),
    "no hook": lambda m: m.linear[0].register_forward_hook(lambda *_: None).remove(),
    "pieces": lambda m: setattr(m, "pieces", m.pieces[::-1]),
    "gain": lambda m: setattr(m, "gain", None if m.gain is None else nn.Parameter(-m.gain.data)),
}


def solved(field: Piece, module: Pieces, z: Tensor) -> list[Any]:
    """The result, the gradients, and the traces of side effects of one solve."""
    before = module.count, len(module.log), float(module.calls)
    z = z.clone().requires_grad_()
    solution = solve(field, z, (0.1, 0.7), solver=SOLVER)
    loss = solution.z.sin().sum()
    params = [p for p in module.parameters() if p.requires_grad]
    gradients: list[Any] = [None] * (1 + len(params))
    if loss.requires_grad:
        gradients = list(torch.autograd.grad(loss, [z, *params], allow_unused=True))
    after = module.count, len(module.log), float(module.calls)
    return [solution.z, *gradients, tuple(x - y for x, y in zip(after, before, strict=True))]


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    names=st.lists(st.sampled_from(sorted(PIECES)), min_size=1, max_size=6),
    changes=st.lists(st.sampled_from(sorted(CHANGES)), max_size=2, unique=True),
    batch=st.integers(1, 4),
)
def test_no_result_is_wrong(
    names: list[str], changes: list[str], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recogniser, "TRIED", 10**9)
    torch.manual_seed(0)
    module, z = Pieces(names).double(), torch.randn(batch, WIDTH, dtype=torch.float64)
    for change in ("none", *changes):
        CHANGES[change](module)
        for state in (z, z[:1], z):
            for x, y in zip(
                solved(module, module, state),
                solved(_Called(module), module, state),
                strict=True,
            ):
                if isinstance(x, Tensor) and isinstance(y, Tensor):
                    torch.testing.assert_close(x, y)
                elif isinstance(x, tuple):
                    assert x == y
                else:
                    assert all(each is None or not each.any() for each in (x, y))


class _Called:
    def __init__(self, field: Piece) -> None:
        self.field = field

    def __call__(self, t: Tensor, z: Tensor) -> Tensor:
        return self.field(t, z)


def test_some_are_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recogniser, "TRIED", 10**9)
    names = ["linear0", "tanh", "joined", "swish of a layer", "flag", "gain", "joined first"]
    z = torch.randn(2, WIDTH)
    assert find_layers(Pieces(names), z, lambda: torch.tensor(0.1)) is not None
