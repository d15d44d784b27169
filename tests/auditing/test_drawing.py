"""Models that draw random numbers are compared under the same ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchdiffeq import odeint

from trueode import audit
from trueode.auditing.drawing import Draws, seed_all
from trueode.errors import UsageError

DRAWN: dict[str, Callable[[Tensor], Tensor]] = {
    "randn": lambda x: torch.randn(x.shape, dtype=x.dtype),
    "randn_like": torch.randn_like,
    "rand": lambda x: torch.rand(x.shape, dtype=x.dtype),
    "normal_": lambda x: torch.empty_like(x).normal_(1.0, 2.0),
    "uniform_": lambda x: torch.empty_like(x).uniform_(-1, 1),
    "normal": lambda x: torch.normal(0 * x, 1 + 0 * x),
    "bernoulli": lambda x: torch.bernoulli(torch.full_like(x, 0.3)),
    "dropout": lambda x: F.dropout(torch.ones_like(x), 0.3),
    "randint": lambda x: torch.randint(0, 9, x.shape).to(x),
    "generator": lambda x: torch.randn(
        x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(3)
    ),
}


@pytest.mark.parametrize("name", DRAWN)
def test_double_precision_draws_the_numbers_of_single_precision(name: str) -> None:
    x = torch.ones(40, 5)
    torch.manual_seed(1)
    single = DRAWN[name](x)
    torch.manual_seed(1)
    with Draws() as draws:
        double = DRAWN[name](x.double())
    assert draws.any
    assert double.dtype == torch.float64
    torch.testing.assert_close(double, single.double(), rtol=0, atol=1e-7)


def test_nothing_is_drawn_where_nothing_is() -> None:
    with Draws() as draws:
        torch.ones(3, dtype=torch.float64).exp_()
    assert not draws.any


def test_seeds_are_those_of_all_packages() -> None:
    seed_all(5)
    first = torch.rand(2), np.random.rand(2)  # noqa: NPY002
    seed_all(5)
    assert torch.equal(first[0], torch.rand(2))
    assert np.array_equal(first[1], np.random.rand(2))  # noqa: NPY002


class Latent(nn.Module):
    """An encoder with noise, and an ODE behind it."""

    def __init__(
        self, draw: Callable[[Tensor], Tensor], steps: int = 64, fresh: float = 0.0
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.net, self.head = nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.draw, self.steps, self.fresh = draw, steps, fresh

    def field(self, t: Tensor, z: Tensor) -> Tensor:
        noise = self.fresh * torch.randn_like(z) if self.fresh else 0.0
        return 4 * torch.tanh(self.net(z)) + noise

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder(x)
        options = {"step_size": 1 / self.steps}
        return self.head(
            odeint(
                self.field,
                z + self.draw(z),
                torch.tensor([0.0, 1.0]),
                method="rk4",
                options=options,
            )[-1]
        )


X = torch.randn(400, 2, generator=torch.Generator().manual_seed(7))
LABELS = (X[:, 0] > 0).long()


@pytest.mark.parametrize("name", ["randn_like", "normal_", "dropout"])
def test_one_seed_makes_a_stochastic_model_comparable(name: str) -> None:
    with_seed = audit(Latent(DRAWN[name]), (X, LABELS), methods=(), seed=3)
    assert with_seed.verdict == "ode", with_seed.sentence
    without = audit(Latent(DRAWN[name]), (X, LABELS), methods=())
    assert without.verdict == "inconclusive"
    assert "seed=" in without.sentence


def test_a_generator_of_the_models_own_draws_the_same_numbers_in_double_precision() -> None:
    found = audit(Latent(DRAWN["generator"]), (X, LABELS), methods=())
    assert found.verdict == "ode", found.sentence
    assert found.decision.counts.rounding == 0


def test_fields_that_draw_fresh_numbers_are_refused() -> None:
    with pytest.raises(UsageError, match="new random numbers at each call"):
        audit(Latent(DRAWN["generator"], fresh=1.0), (X, LABELS), methods=(), seed=3)


def test_random_numbers_are_as_before() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    model = Latent(DRAWN["randn_like"])
    torch.manual_seed(11)
    audit(model, (X, LABELS), methods=(), seed=3)
    assert torch.equal(torch.rand(3), expected)
