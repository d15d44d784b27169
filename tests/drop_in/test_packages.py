"""Other packages' models run with one import changed: torchdiffeq's functions by those here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trueode import odeint, odeint_adjoint

torchcde = pytest.importorskip("torchcde")  # comes with torchdyn
torchdiffeq = pytest.importorskip("torchdiffeq")


class Controlled(nn.Module):
    """The field of a neural controlled differential equation, ``(batch, hidden, channels)``."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(hidden, 16), nn.Softplus(), nn.Linear(16, hidden * channels), nn.Tanh()
        )
        self.hidden, self.channels = hidden, channels

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        value: Tensor = self.net(z).view(*z.shape[:-1], self.hidden, self.channels)
        return value


class Classifier(nn.Module):
    """Reads a series, and classifies it by the last state."""

    def __init__(self, how: dict[str, Any]) -> None:
        super().__init__()
        self.first, self.field, self.last = nn.Linear(3, 4), Controlled(3, 4), nn.Linear(4, 2)
        self.how = how

    def forward(self, series: Tensor) -> Tensor:
        path = torchcde.CubicSpline(
            torchcde.hermite_cubic_coefficients_with_backward_differences(series)
        )
        z0 = self.first(path.evaluate(path.interval[0]))
        states = torchcde.cdeint(X=path, func=self.field, z0=z0, t=path.interval, **self.how)
        value: Tensor = self.last(states[:, -1])
        return value


@pytest.mark.parametrize(
    ("how", "tolerance"),
    [
        ({"adjoint": False, "method": "rk4", "options": {"step_size": 0.5}}, 1e-10),
        ({"adjoint": False, "method": "midpoint"}, 1e-10),
        ({"adjoint": False, "rtol": 1e-9, "atol": 1e-9}, 1e-5),
        ({"adjoint": True, "method": "dopri5", "rtol": 1e-8, "atol": 1e-8}, 1e-5),
        ({"adjoint": True, "method": "rk4", "options": {"step_size": 0.1}}, 1e-4),
        (
            {
                "adjoint": False,
                "method": "dopri5",
                "rtol": 1e-7,
                "atol": 1e-7,
                "options": {"jump_t": torch.arange(6.0)},
            },
            1e-5,
        ),
    ],
    ids=["rk4", "midpoint", "dopri5", "adjoint dopri5", "adjoint rk4", "knots"],
)
def test_controlled_differential_equations(
    how: dict[str, Any], tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    time = torch.linspace(0, 1, 6).view(1, 6, 1).expand(5, -1, -1)
    series = torch.cat([time, torch.randn(5, 6, 2).cumsum(1)], 2).double()
    model = Classifier(how).double()
    found = []
    for library in (torchdiffeq, SimpleNamespace(odeint=odeint, odeint_adjoint=odeint_adjoint)):
        monkeypatch.setattr(torchcde.solver, "torchdiffeq", library)
        output = model(series)
        gradients = torch.autograd.grad(output.square().sum(), list(model.parameters()))
        found.append([output.detach(), *gradients])
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
