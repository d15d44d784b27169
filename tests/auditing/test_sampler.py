"""Audits of samplers: errors of samples, the cheapest solver, and what is refused."""

from __future__ import annotations

from math import inf, sqrt
from typing import Any

import pytest
import torch
from scipy.stats import ttest_1samp
from torch import Tensor, nn
from torchdiffeq import odeint

from tests.evaluation.linear_flows import Linear, euler_map, points, sampler
from trueode import Adaptive, FixedStep, NeuralODE, audit, check_solver
from trueode.auditing import Audit
from trueode.catalog import METHODS
from trueode.errors import DataError, UsageError
from trueode.evaluation import Row
from trueode.solvers import get_tableau

X = points(500)
MATRIX = torch.tensor([[-1.0, 0.5], [-0.5, -1.0]])
FIXED = ("euler", "midpoint", "rk4")


def power(method: str, n_steps: int) -> Tensor:
    """The matrix that a method applies from time 0 to 1: its stability polynomial of h A."""
    a = MATRIX.double() / n_steps
    order = METHODS[method].order
    step, term = torch.eye(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    for k in range(1, order + 1):
        term = term @ a / k
        step = step + term
    return torch.linalg.matrix_power(step, n_steps)


def errors(method: str, n_steps: int) -> tuple[float, float]:
    """The RMS error of the samples, relative to the spread, and its upper bound."""
    exact = X.double() @ torch.linalg.matrix_exp(MATRIX.double()).T
    own = X.double() @ power(method, n_steps).T
    squares = (own - exact).square().mean(1) / (exact - exact.mean(0)).square().mean()
    upper = ttest_1samp(squares.numpy(), 0).confidence_interval(0.9).high
    return sqrt(float(squares.mean())), sqrt(upper)


@pytest.fixture(scope="module")
def found() -> Audit:
    model = sampler(MATRIX, FixedStep("euler", n_steps=40))
    return audit(model, X, task="sampler", methods=FIXED)


def test_errors_of_all_rows(found: Audit) -> None:
    assert torch.allclose(power("euler", 5), euler_map(MATRIX, 5))
    assert len(found.rows) > 10
    for row in found.rows:
        error, upper = errors(row.method, int(row.n_steps))
        assert row.output_error == pytest.approx(error, rel=1e-2, abs=1e-6), str(row.solver)
        assert row.upper == pytest.approx(upper, rel=1e-2, abs=1e-6)
        assert row.safe is (row.upper <= 0.01)
        assert row.sliced <= row.output_error * 1.001 + 1e-6


def test_the_cheapest_solver(found: Audit) -> None:
    assert (found.verdict, found.exit_code) == ("ode", 0)

    def fewest(method: str) -> tuple[int, int]:
        n = next(n for n in range(1, 400) if errors(method, n)[1] <= 0.01)
        return n * get_tableau(method).advancing_stages, n

    nfe, method = min((fewest(method)[0], method) for method in FIXED)
    best = found.safe[0]
    assert (best.method, best.nfe) == (method, nfe)
    assert str(best.solver) in found.sentence
    assert "NOT an ODE" not in found.sentence
    assert "cheapest within 1 %" in found.sentence
    assert found.performance.own != found.performance.own


def test_its_own_solver_may_be_the_best() -> None:
    model = sampler(MATRIX, FixedStep("euler", n_steps=400))
    alone = check_solver(model, X, task="sampler")
    assert (alone.verdict, "within 1 %" in alone.sentence) == ("ode", True)
    coarse = check_solver(sampler(MATRIX, FixedStep("euler", n_steps=4)), X, task="sampler")
    assert (coarse.verdict, coarse.exit_code) == ("inconclusive", 4)
    assert "methods=" in coarse.sentence
    few = audit(model, X[:50], task="sampler", methods=("rk4",))
    assert (few.verdict, few.decision.needed, few.decision.upper) == ("inconclusive", 100, inf)


def test_the_table_goes_on_until_a_solver_is_safe() -> None:
    """Euler needs more evaluations than the usual limit; the tolerance is tight."""
    model = sampler(MATRIX, FixedStep("euler", n_steps=2))
    found = audit(model, X, task="sampler", methods=("euler",), tolerance=1e-3)
    assert found.verdict == "ode"
    assert 256 < found.safe[0].nfe < 2048
    none = audit(model, X, task="sampler", methods=("euler",), tolerance=1e-6)
    assert (none.verdict, none.exit_code) == ("inconclusive", 4)
    assert max(row.nfe for row in none.rows) >= 4096


def test_its_own_solver_may_fail() -> None:
    model = sampler(MATRIX, Adaptive("dopri5", 1e-9, 1e-9, max_steps=2))
    found = audit(model, X, task="sampler", methods=("rk4",))
    assert (found.verdict, "fails" in found.sentence) == ("ode", True)
    assert str(found.safe[0].solver) in found.sentence


class Matching(nn.Module):
    """The field that moves the standard normal distribution to N(m, s^2) along straight lines."""

    def __init__(self, mean: float = 2.0, deviation: float = 0.1) -> None:
        super().__init__()
        self.mean, self.deviation = mean, deviation

    def scale(self, t: Any) -> Any:
        return (1 - t) ** 2 + t**2 * self.deviation**2

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        change = (t * self.deviation**2 - (1 - t)) / self.scale(t)
        return self.mean + change * (x - t * self.mean)


class FromCutOff(nn.Module):
    """Solves from 1e-3 to 1, as many samplers do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Matching()

    def forward(self, x: Tensor) -> Tensor:
        times = torch.linspace(1e-3, 1, 2).to(x)
        step = {"step_size": 0.05}
        states: Tensor = odeint(self.net, x, times, method="midpoint", options=step)
        return states[-1]


def test_flow_matching_keeps_the_times_of_the_model() -> None:
    model, x = FromCutOff(), points(500, 1)
    found = audit(model, x, task="sampler", methods=("midpoint", "rk4"))
    net, start = model.net, 1e-3
    factor = sqrt(net.scale(1.0) / net.scale(start))
    exact = net.mean + factor * (x.double() - start * net.mean)
    assert found.exact is not None
    torch.testing.assert_close(found.exact.outputs, exact, atol=1e-5, rtol=1e-5)
    assert found.verdict == "ode"


def test_a_metric_of_the_set(found: Audit) -> None:
    def spread(samples: Tensor, y: Any) -> Tensor:
        return samples.std()

    model = sampler(MATRIX, FixedStep("euler", n_steps=40))
    own = audit(model, X, task="sampler", methods=("rk4",), metric=spread)
    assert own.metric_name == "spread"
    assert own.rows[0].metric == pytest.approx(float(model(X).detach().std()), rel=1e-5)
    headers = [str(column.header) for column in own.to_rich().columns]
    assert headers == ["solver", "steps", "NFE", "spread", "error", "at most", "sliced"]
    assert "spread" not in [str(column.header) for column in found.to_rich().columns]


def test_in_plain_values(found: Audit) -> None:
    plain = found.to_dict()
    assert plain["discrepancy"]["floor"] > 0
    assert plain["rows"][0]["sliced"] == plain["discrepancy"]["sliced"]
    assert any("independent sets" in note for note in found.notes)


def test_images_keep_their_shape() -> None:
    x = torch.randn(200, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    model = NeuralODE(lambda t, z: -z, solver=FixedStep("euler", n_steps=4)).eval()

    def shape(samples: Tensor, y: Any) -> Tensor:
        assert samples.shape == (200, 1, 4, 4)
        return samples.new_zeros(())

    assert audit(model, x, task="sampler", methods=("rk4",), metric=shape).verdict == "ode"


# wrong requests


def test_samplers_without_noise_and_without_a_solve() -> None:
    with pytest.raises(DataError, match="noise"):
        audit(sampler(MATRIX), None, task="sampler")
    with pytest.raises(UsageError, match="distilled or consistency"):
        audit(Linear(MATRIX).eval(), X, task="sampler", call=lambda model, x: model(None, x))
    with pytest.raises(UsageError, match="decision does not go with sampler"):
        audit(sampler(MATRIX), X, task="sampler", decision=torch.sign)
    with pytest.raises(UsageError, match="'density' or 'sampler'"):
        audit(sampler(MATRIX), X)


def test_random_samplers_are_told() -> None:
    def call(model: nn.Module, x: Tensor) -> Tensor:
        noisy: Tensor = model(x + torch.randn_like(x))
        return noisy

    found = audit(sampler(MATRIX), X, task="sampler", call=call, methods=())
    assert (found.verdict, "seed=" in found.sentence) == ("inconclusive", True)
    assert audit(sampler(MATRIX), X, task="sampler", call=call, methods=(), seed=0).rows


def test_rows_of_other_tasks_have_no_distances() -> None:
    x = points(300)
    found = audit(sampler(MATRIX, FixedStep("rk4", n_steps=4)), (x, x), methods=())
    row: Row = found.rows[0]
    assert (row.change != row.change, row.sliced != row.sliced) == (True, True)


def test_nothing_is_drawn_where_nothing_can_be_compared(found: Audit) -> None:
    """A single sample has no spread."""
    model = sampler(MATRIX, FixedStep("euler", n_steps=4))
    assert audit(model, X[:1], task="sampler", methods=FIXED).figures() == {}
    assert set(found.figures()) == {"swap", "order", "cost"}
