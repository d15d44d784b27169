"""The first example of torchcde: a neural CDE that tells clockwise from other spirals."""

from __future__ import annotations

from math import pi
from typing import Any

import torch
import torchcde
from torch import Tensor, nn

WHAT = "spirals, as in its example of time series classification (cubic spline, dopri5)"
PACKAGES = ("torchcde", "torchdiffeq")


class CDEFunc(nn.Module):
    def __init__(self, input_channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.input_channels, self.hidden_channels = input_channels, hidden_channels
        self.linear1 = nn.Linear(hidden_channels, 128)
        self.linear2 = nn.Linear(128, input_channels * hidden_channels)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        z = self.linear2(self.linear1(z).relu()).tanh()
        return z.view(z.size(0), self.hidden_channels, self.input_channels)


class NeuralCDE(nn.Module):
    def __init__(self, input_channels: int, hidden_channels: int, output_channels: int) -> None:
        super().__init__()
        self.func = CDEFunc(input_channels, hidden_channels)
        self.initial = nn.Linear(input_channels, hidden_channels)
        self.readout = nn.Linear(hidden_channels, output_channels)

    def forward(self, coeffs: Tensor) -> Tensor:
        X = torchcde.CubicSpline(coeffs)
        z0 = self.initial(X.evaluate(X.interval[0]))
        z_T = torchcde.cdeint(X=X, z0=z0, func=self.func, t=X.interval)
        return self.readout(z_T[:, 1])


def spirals(n: int, length: int = 100) -> tuple[Tensor, Tensor]:
    t = torch.linspace(0.0, 4 * pi, length)
    angle = 2 * pi * torch.rand(n)[:, None] + t
    x, y = angle.cos() / (1 + 0.5 * t), angle.sin() / (1 + 0.5 * t)
    labels = (torch.arange(n) % 2).float()
    x = torch.where(labels[:, None] == 1, -x, x)
    x, y = (each + 0.01 * torch.randn_like(each) for each in (x, y))
    path = torch.stack([t.expand(n, length), x, y], 2)
    return torchcde.hermite_cubic_coefficients_with_backward_differences(path), labels


def trained() -> tuple[Any, Any, dict[str, Any]]:
    """The model, data that it has not seen, and the arguments of its audit."""
    model, (coeffs, y) = NeuralCDE(3, 8, 1), spirals(128)
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(30):
        for rows in torch.randperm(128).split(32):
            loss = nn.functional.binary_cross_entropy_with_logits(
                model(coeffs[rows]).squeeze(-1), y[rows]
            )
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return model, spirals(400), {"task": "classification"}
