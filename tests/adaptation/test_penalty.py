"""The discretisation-error penalty: its partners, its samples, its value and its effect."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trueode.adaptation import DiscretisationPenalty
from trueode.errors import UsageError
from trueode.evaluation import get_task
from trueode.models import NeuralODE
from trueode.solvers import Adaptive, FixedStep, Solver


@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_the_partner_takes_any_number_of_more_steps_up_to_twice_and_one(n: int) -> None:
    penalty = DiscretisationPenalty()
    counts = Counter(penalty.partner(n, iteration) for iteration in range(200 * (n + 1)))
    assert sorted(counts) == [*range(n + 1, 2 * n + 2)]
    assert all(120 < count < 280 for count in counts.values()), counts


def test_steps_and_solvers_have_the_same_partner() -> None:
    penalty = DiscretisationPenalty(seed=3)
    for iteration in range(20):
        partner = penalty.partner(FixedStep("rk4", n_steps=4, max_steps=4), iteration)
        assert partner == FixedStep("rk4", n_steps=penalty.partner(4, iteration))


def test_a_partner_depends_on_seed_and_iteration_alone() -> None:
    drawn = [DiscretisationPenalty(seed=1).partner(50, i) for i in range(40)]
    torch.rand(7)
    assert [DiscretisationPenalty(seed=1).partner(50, i) for i in range(40)] == drawn
    assert [DiscretisationPenalty(seed=2).partner(50, i) for i in range(40)] != drawn
    assert len(set(drawn)) > 10


@pytest.mark.parametrize(
    "solver",
    [
        FixedStep("midpoint", step_size=0.3, max_steps=4),
        Adaptive("dopri5", 1e-3, 1e-4),
        Adaptive("bosh3", 1e-2, 0.0, per_sample=True),
    ],
    ids=str,
)
def test_other_partners_are_finer_and_less_than_twice_as_fine(solver: Solver) -> None:
    ratios = []
    for iteration in range(100):
        partner = DiscretisationPenalty().partner(solver, iteration)
        assert type(partner) is type(solver)
        if isinstance(solver, FixedStep):
            assert partner.max_steps is None
            ratios.append(solver.step_size / partner.step_size)
        else:
            ratios.append((solver.rtol / partner.rtol) ** (1 / solver.order))
            assert partner.atol * solver.rtol == pytest.approx(solver.atol * partner.rtol)
            assert partner.per_sample == solver.per_sample
    assert min(ratios) >= 1
    assert max(ratios) <= 2
    assert max(ratios) - min(ratios) > 0.9


@pytest.mark.parametrize("stride", [1, 2, 3, 7])
@pytest.mark.parametrize("cuts", [(0, 11, 22), (0, 8, 15, 22)])
def test_ranks_compare_the_samples_of_the_whole_batch(stride: int, cuts: tuple[int, ...]) -> None:
    penalty = DiscretisationPenalty(stride=stride)
    whole = torch.arange(22)
    parts = [whole[a:b][penalty.rows(a)] for a, b in pairwise(cuts)]
    assert torch.cat(parts).tolist() == penalty.part(whole).tolist()
    assert len(penalty.part(whole)) == -(-22 // stride)


@pytest.mark.parametrize("name", ["classification", "regression", "timeseries", "density"])
def test_the_term_is_the_weighted_mean_of_the_distances(name: str) -> None:
    task = get_task(name)
    penalty = DiscretisationPenalty(weight=0.5, interval=3, task=task)
    generator = torch.Generator().manual_seed(0)
    own, other = torch.randn(2, 6, 4, 2, 3, generator=generator, dtype=torch.float64)
    expected = 1.5 * task.distance(own, other).mean()
    torch.testing.assert_close(penalty(own, other), expected)
    if name == "classification":  # no sums over the batch: parts add up
        halves = [penalty(own[rows], other[rows], whole=6) for rows in (slice(2), slice(2, 6))]
        torch.testing.assert_close(halves[0] + halves[1], expected)
    assert [i for i in range(10) if penalty.due(i)] == [0, 3, 6, 9]


@pytest.mark.parametrize(
    "wrong",
    [
        {"weight": 0.0}, {"weight": -1.0}, {"weight": float("nan")}, {"weight": float("inf")},
        {"interval": 0}, {"interval": 1.5}, {"stride": 0}, {"stride": -4},
    ],
    ids=str,
)  # fmt: skip
def test_impossible_numbers_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        DiscretisationPenalty(**wrong)


# aliasing: a field with Fourier features of time can agree on two grids, and on no others


@dataclass(frozen=True)
class FixedRatio(DiscretisationPenalty):
    """Compares with twice the steps, always."""

    def partner(self, solver: Solver, iteration: int) -> Solver:
        return solver.refined(2)


class Waves(nn.Module):
    """A field with Fourier features of time."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("speed", 2 * math.pi * torch.tensor([1.0, 2.0, 4.0, 6.0, 12.0]))
        self.net = nn.Sequential(
            nn.Linear(12, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2)
        )

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        angle = self.speed * t
        features = torch.cat([angle.sin(), angle.cos()]).expand(len(z), -1)
        return self.net(torch.cat([z, features], 1))


def disc_and_ring(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    label = torch.randint(2, (n,), generator=generator)
    angle, depth = torch.rand(2, n, generator=generator)
    radius = torch.tensor([0.2, 1.0])[label] + 0.2 * depth
    angle = 2 * math.pi * angle
    return radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1), label


def flips_after_training(penalty: DiscretisationPenalty) -> tuple[float, float]:
    """The shares of flips under twice the steps, and under the exact flow."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    solver = FixedStep("rk4", n_steps=3)
    model = NeuralODE(Waves(), downstream=nn.Linear(2, 2), solver=solver)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for iteration in range(500):
        x, y = disc_and_ring(128, generator)
        output = model(x)
        loss = F.cross_entropy(output, y)
        other = model(penalty.part(x), penalty.partner(solver, iteration))
        loss = loss + penalty(penalty.part(output), other)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, y = disc_and_ring(2000, generator)
    with torch.no_grad():
        own, twice, exact = (model(x, FixedStep("rk4", n_steps=n)).argmax(1) for n in (3, 6, 600))
    assert float((own == y).double().mean()) > 0.9
    return tuple(float((own != other).double().mean()) for other in (twice, exact))


def test_random_partners_prevent_aliasing_and_a_fixed_ratio_does_not() -> None:
    how = {"weight": 2.0, "interval": 1, "stride": 1}
    twice, exact = flips_after_training(FixedRatio(**how))
    assert exact > max(0.05, 3 * twice)
    twice, exact = flips_after_training(DiscretisationPenalty(**how))
    assert exact <= 0.02
