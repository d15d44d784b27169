"""The gradient of a loss under the training solver, against that under the exact flow."""

from __future__ import annotations

from collections.abc import Callable
from math import acos, degrees
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trueode import FixedStep, NeuralODE, audit
from trueode.errors import UsageError

torchdiffeq = pytest.importorskip("torchdiffeq")

X = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
Y = torch.randn(40, 2, generator=torch.Generator().manual_seed(1))
STEPS, mse = 4, nn.functional.mse_loss


class Linear(nn.Module):
    """``z' = z A``, with a parameter that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([[0.3, 1.0], [-2.0, -0.5]]))
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return z @ self.a


class Diffeq(nn.Module):
    def __init__(self, odeint: Callable[..., Tensor]) -> None:
        super().__init__()
        self.field, self.odeint = Linear(), odeint

    def forward(self, x: Tensor) -> Tensor:
        t = torch.tensor([0.0, 1.0]).to(x)
        how = {"method": "euler", "options": {"step_size": 1 / STEPS}}
        return self.odeint(self.field, x, t, **how)[-1]


MODELS: dict[str, Callable[[], nn.Module]] = {
    "torchdiffeq": lambda: Diffeq(torchdiffeq.odeint),
    "adjoint": lambda: Diffeq(torchdiffeq.odeint_adjoint),
    "trueode": lambda: NeuralODE(Linear(), solver=FixedStep("euler", n_steps=STEPS)),
}


def gradient(run: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    a = Linear().a.detach().double().requires_grad_()
    (found,) = torch.autograd.grad(mse(run(X.double(), a), Y.double()), a)
    return found.flatten()


def by_euler(z: Tensor, a: Tensor) -> Tensor:
    for _ in range(STEPS):
        z = z + z @ a / STEPS
    return z


def by_adjoint(z: Tensor, a: Tensor) -> Tensor:
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    how: dict[str, Any] = {"method": "euler", "options": {"step_size": 1 / STEPS}}
    final: Tensor = torchdiffeq.odeint_adjoint(
        lambda t, z: z @ a, z, t, **how, adjoint_params=(a,)
    )[-1]
    return final


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("parts", [1, 3])
def test_both_gradients_are_those_of_the_closed_forms(name: str, parts: int) -> None:
    model = MODELS[name]()
    data = list(zip(X.chunk(parts), Y.chunk(parts), strict=True))
    found = audit(model, data, methods=(), loss=mse).gradient
    own = gradient(by_adjoint if name == "adjoint" else by_euler)
    exact = gradient(lambda z, a: z @ torch.linalg.matrix_exp(a))
    assert found is not None
    assert found.own == pytest.approx(float(own.norm()), rel=1e-6)
    assert found.exact == pytest.approx(float(exact.norm()), rel=1e-6)
    assert found.relative == pytest.approx(float((own - exact).norm() / exact.norm()), rel=1e-5)
    cosine = float(own @ exact / own.norm() / exact.norm())
    assert found.angle == pytest.approx(degrees(acos(cosine)), rel=1e-5)
    assert found.error < 1e-5
    assert all(x.grad is None for x in model.parameters())


def test_a_loss_decides_nothing_and_is_in_the_report() -> None:
    model = MODELS["torchdiffeq"]()
    plain, told = (audit(model, (X, Y), methods=(), loss=loss) for loss in (None, mse))
    assert plain.decision == told.decision
    assert plain.gradient is None
    assert told.gradient is not None
    assert plain.to_dict()["gradient"] is None
    assert told.to_dict()["gradient"]["relative"] == told.gradient.relative
    assert str(told.gradient) in told.notes


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda outputs, y: (outputs - y).square(), "a number"),
        (lambda outputs, y: 1.0, "a number"),
        (lambda outputs, y: outputs.detach().sum(), "depends on the outputs"),
        (lambda outputs, y: outputs @ y, "loss=… failed"),
    ],
)
def test_what_is_no_loss_is_refused(loss: Any, message: str) -> None:
    model = MODELS["torchdiffeq"]()
    with pytest.raises(UsageError, match=message):
        audit(model, (X, Y), methods=(), loss=loss)
    assert all(x.requires_grad and x.grad is None for x in model.parameters())


def test_a_loss_needs_targets_and_parameters() -> None:
    model = MODELS["torchdiffeq"]()
    with pytest.raises(UsageError, match="targets"):
        audit(model, X, task="regression", methods=(), loss=mse)
    with pytest.raises(UsageError, match="parameters"):
        audit(model.requires_grad_(False), (X, Y), methods=(), loss=mse)
