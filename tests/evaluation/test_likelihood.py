"""Means over samples decide: log densities, and errors of samples."""

from __future__ import annotations

from math import e, inf, log, nan, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ttest_1samp, wasserstein_distance_nd
from torch import Tensor

from tests.evaluation.flows import Given, counted
from tests.evaluation.linear_flows import (
    EULER,
    RK4,
    SHRINK,
    TURN,
    change,
    density,
    euler_map,
    points,
    sampler,
)
from trueode import FidelityRule, FixedStep, ModelInspection, NeuralODE
from trueode.adaptation import Certificate, Certifier, Evidence
from trueode.data import Split
from trueode.errors import UsageError
from trueode.evaluation import (
    Answer,
    Decision,
    Flips,
    ModelOnSamples,
    Status,
    decide,
    get_task,
    performance,
)
from trueode.evaluation.likelihood import (
    Discrepancy,
    Likelihood,
    compare_densities,
    compare_samples,
    sliced_distance,
)
from trueode.evaluation.statistics import clopper_pearson

DENSITY, SAMPLER = get_task("density").fitted((2,)), get_task("sampler")
BIT = 2 * log(2)


def on(model: NeuralODE, x: Tensor, task: Any = DENSITY) -> ModelOnSamples:
    samples = Split(x, x.new_empty(len(x), 0), dtype=x.dtype)
    return ModelOnSamples(model, samples, task, model.solver)


def likelihood(mean: float, deviation: float = 0.1, n: int = 1000, absolute: float = 0.0) -> Flips:
    """Counts with a change of the log density, in bits per dimension."""
    found = Likelihood(n, mean * BIT, deviation * BIT, -3.0, -3.0, 0, 0, 0, 0, BIT, absolute)
    return Flips(n, likelihood=found)


# what is measured


@pytest.mark.parametrize("matrix", [SHRINK, TURN], ids=["shrink", "turn"])
def test_the_change_of_a_linear_flow_is_that_computed_by_hand(matrix: Tensor) -> None:
    x = points(1000)
    own, exact, counts = counted(on(density(matrix), x))
    found, expected = counts.likelihood, change(x, matrix)
    assert found is not None
    assert (found.n, found.bit) == (1000, pytest.approx(BIT))
    assert found.mean == pytest.approx(float(expected.mean()), abs=1e-5)
    assert found.deviation == pytest.approx(float(expected.std()), rel=1e-4)
    quantiles = np.quantile(expected.abs().numpy(), [0.5, 0.9, 0.99, 1.0])
    assert (found.median, found.q90, found.q99, found.largest) == pytest.approx(quantiles, rel=1e-4)
    assert found.own - found.exact == pytest.approx(found.mean, abs=1e-6)
    assert found.own == pytest.approx(float(own.outputs.double().mean()), abs=1e-5)
    low, high = ttest_1samp(expected.numpy() / BIT, 0).confidence_interval(0.9)
    assert found.bounds(0.05) == pytest.approx((low, high), abs=1e-5)
    assert own.metric == pytest.approx(-found.own / BIT, abs=1e-5)
    gain = performance(on(density(matrix), x), own, exact, counts)
    assert (gain.own, gain.exact) == pytest.approx((-found.own / BIT, -found.exact / BIT))
    assert gain.gain == pytest.approx(found.mean / BIT)
    assert gain.answer is (Answer.SOLVER if matrix is SHRINK else Answer.EXACT)


def test_density_verdicts_and_the_sign_of_the_change() -> None:
    x = points(1000)
    *_, inflated = counted(on(density(SHRINK), x))
    *_, coarse = counted(on(density(TURN), x))
    *_, fine = counted(on(density(SHRINK, RK4), x))
    found = [decide(each) for each in (inflated, coarse, fine)]
    assert [each.status for each in found] == [
        Status.SOLVER_DEPENDENT,
        Status.SOLVER_DEPENDENT,
        Status.ODE,
    ]
    assert found[0].lower > 0.01
    assert found[1].upper < -0.01
    assert found[2].most < 0.01
    assert found[0].margin == 0.01


def test_the_absolute_margin_is_in_nats() -> None:
    x = points(400)
    mean = float(change(x).mean())
    for nats, status in ((3 * mean, Status.ODE), (mean / 3, Status.SOLVER_DEPENDENT)):
        task = get_task("density", absolute=nats)
        *_, counts = counted(on(density(), x, task))
        found = decide(counts)
        assert (found.status, found.margin) == (status, pytest.approx(nats / BIT))


def test_samples_without_an_exact_flow_are_left_out_of_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(1000, 1, generator=generator, dtype=torch.float64)
    own, other = exact + 0.5, exact.clone()
    other[:3] += 1.0  # the two methods of the exact flow differ
    runnable = Given(own, exact, other, DENSITY)
    *_, counts = counted(runnable)
    assert (counts.n, counts.unresolved) == (1000, 3)
    assert counts.likelihood is not None
    assert (counts.likelihood.n, counts.likelihood.mean) == (997, pytest.approx(0.5))
    assert decide(counts).status is Status.SOLVER_DEPENDENT
    own[3:30] = nan  # the training solver fails
    *_, counts = counted(Given(own, exact, other, DENSITY))
    found = decide(counts)
    assert (found.status, found.needed) == (Status.INCONCLUSIVE, None)
    assert "30 of 1000" in found.reason


# the decision


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("mean", "status"),
    [(0.03, Status.SOLVER_DEPENDENT), (0.0, Status.ODE), (0.0099, Status.INCONCLUSIVE)],
)
def test_both_bounds_of_the_mean_decide(sign: int, mean: float, status: Status) -> None:
    found = decide(likelihood(sign * mean))
    assert found.status is status
    assert found.lower < sign * mean < found.upper
    assert decide(likelihood(sign * mean), population="all").status is (
        Status.ODE if mean <= 0.01 else Status.SOLVER_DEPENDENT
    )
    stricter = decide(likelihood(sign * mean), level=0.01)
    assert stricter.upper - stricter.lower > found.upper - found.lower


@pytest.mark.parametrize("mean", [0.008, 0.012, -0.008, -0.012])
def test_as_many_samples_as_are_needed_decide(mean: float) -> None:
    found = decide(likelihood(mean, n=200))
    assert found.status is Status.INCONCLUSIVE
    assert found.needed is not None
    more = decide(likelihood(mean, n=round(1.05 * found.needed)))
    assert more.status is (Status.ODE if abs(mean) < 0.01 else Status.SOLVER_DEPENDENT)
    assert decide(likelihood(mean, n=round(0.9 * found.needed))).status is Status.INCONCLUSIVE
    assert decide(likelihood(0.01, n=200)).needed is None


def test_fewer_than_a_hundred_samples_have_no_bounds() -> None:
    found = decide(likelihood(0.0, 1e-6, n=99))
    assert (found.status, found.needed) == (Status.INCONCLUSIVE, 100)
    assert (found.lower, found.upper) == (-inf, inf)
    assert decide(likelihood(0.0, 1e-6, n=100)).status is Status.ODE


@pytest.mark.parametrize(("n", "count"), [(1000, 4), (1000, 5), (1000, 20), (400, 1), (500, 1)])
def test_at_most_one_per_cent_may_be_missing_with_confidence(n: int, count: int) -> None:
    mean = likelihood(0.0, n=n - count).likelihood
    bounds = clopper_pearson(count, n)
    left_out = decide(Flips(n, unresolved=count, likelihood=mean))
    assert left_out.status is (Status.ODE if bounds[1] <= 0.01 else Status.INCONCLUSIVE)
    blown_up = decide(Flips(n, blown_up=count, likelihood=mean))
    expected = Status.SOLVER_DEPENDENT if bounds[0] > 0.01 else left_out.status
    assert blown_up.status is expected


def test_means_survive_plain_values() -> None:
    for counts in (
        likelihood(0.02),
        Flips(200, discrepancy=Discrepancy(200, 1e-4, 1e-5, 0.01, 0.02, 0.05)),
    ):
        found = decide(counts)
        assert Decision.from_dict(found.to_dict()) == found


# certificates


def test_a_density_is_certified() -> None:
    x, task = points(1500), get_task("density").fitted((2,), 0.01)
    for model, status in ((density(SHRINK, RK4), Status.ODE), (density(TURN, EULER), None)):
        inspection = ModelInspection(model, lambda attempt: x, task)
        counts = inspection.count(model.solver, 1)
        *_, expected = counted(on(model, x))
        assert counts.likelihood == expected.likelihood
        certifier = Certifier(0.01)
        certificate = certifier.judge(counts, model.solver)
        assert (certificate.status if certificate else None) is status
        if certificate is not None:
            assert "bits per dimension" in certificate.sentence
            again = Certificate.from_dict(certificate.to_dict())
            assert again == certificate
        else:
            assert "bits per dimension" in certifier.give_up("").sentence
    rule = FidelityRule(EULER, 0.01, target=task.target)
    answer = rule.certify(ModelInspection(density(TURN), lambda attempt: x, task))
    assert answer.solver.n_steps > 2  # type: ignore[union-attr]


def test_a_density_is_certified_on_as_many_inputs_as_its_mean_needs() -> None:
    task = get_task("density").fitted((2,), 0.01)
    for n, certified in ((99, False), (100, True)):
        inspection = ModelInspection(density(SHRINK, RK4), lambda attempt, n=n: points(n), task)
        answer = FidelityRule(RK4, 0.01, target=task.target).certify(inspection)
        assert isinstance(answer, Certificate)
        assert answer.certified is certified


@pytest.mark.parametrize(("mean", "coarser"), [(-0.03, False), (0.03, False), (None, True)])
def test_no_coarser_solver_follows_a_failed_attempt(mean: float | None, coarser: bool) -> None:
    attempts = [] if mean is None else [decide(likelihood(mean))]
    rule = FidelityRule(FixedStep("euler", n_steps=8), 0.01, target=DENSITY.target)
    plain = [each.to_dict() for each in attempts]
    rule.load_state_dict({**rule.state_dict(), "attempts": plain})

    def measure(candidate: Any, reference: Any) -> Evidence:
        return Evidence(1e-9, candidate.n_steps, 2 * candidate.n_steps)

    for k in range(50):
        rule.propose(measure, k / 50)  # type: ignore[arg-type]
    assert (rule.solver.n_steps < 8) is coarser  # type: ignore[union-attr, operator]


# samplers


def error(x: Tensor, n_steps: int, matrix: Tensor = SHRINK) -> Tensor:
    """Squared errors of Euler's samples, relative to the squared spread of the exact ones."""
    exact = x.double() @ torch.linalg.matrix_exp(matrix.double()).T
    own = x.double() @ euler_map(matrix, n_steps).T
    return (own - exact).square().mean(1) / (exact - exact.mean(0)).square().mean()


def test_the_errors_of_samples_are_those_computed_by_hand() -> None:
    x = points(500)
    *_, counts = counted(on(sampler(), x, SAMPLER))
    found, expected = counts.discrepancy, error(x, 2)
    assert found is not None
    assert (found.n, found.tolerance) == (500, pytest.approx(0.01))
    assert found.mean == pytest.approx(float(expected.mean()), rel=1e-4)
    assert found.estimate == pytest.approx(sqrt(found.mean))
    low, high = ttest_1samp(expected.numpy(), 0).confidence_interval(0.9)
    assert found.bounds(0.05) == pytest.approx((sqrt(low), sqrt(high)), rel=1e-4)
    assert 0 < found.sliced <= found.estimate
    assert decide(counts).status is Status.SOLVER_DEPENDENT
    for tolerance in (0.9, 1.1):
        task = get_task("sampler", tolerance=tolerance * decide(counts).upper)
        *_, again = counted(on(sampler(), x, task))
        assert (decide(again).status is Status.ODE) is (tolerance > 1)
    task = get_task("sampler", absolute=1.0)
    *_, again = counted(on(sampler(), x, task))
    assert again.discrepancy is not None
    exact = x.double() @ torch.linalg.matrix_exp(SHRINK.double()).T
    spread = (exact - exact.mean(0)).square().mean().sqrt()
    assert again.discrepancy.tolerance == pytest.approx(1 / float(spread), rel=1e-5)


def test_samples_of_one_value_have_no_spread() -> None:
    model = NeuralODE(lambda t, z: -z, lambda x: torch.ones_like(x), solver=EULER)
    *_, counts = counted(on(model, points(200), SAMPLER))
    assert decide(counts).status is Status.INCONCLUSIVE


@pytest.mark.parametrize("width", [1, 2, 5])
def test_the_sliced_distance_of_a_shift(width: int) -> None:
    x = points(300, width).double()
    shift = torch.linspace(1, 2, width, dtype=torch.float64)
    found = sliced_distance(x, (x + shift)[torch.randperm(300)])
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(width, 128, generator=generator, dtype=torch.float64)
    directions /= directions.norm(dim=0)
    assert found == pytest.approx(float((shift @ directions).square().mean().sqrt()))
    assert found == pytest.approx(float(shift.square().mean().sqrt()), rel=0.3)
    assert sliced_distance(x, x[torch.randperm(300)]) == pytest.approx(0, abs=1e-12)


def test_the_sliced_distance_of_numbers_is_their_wasserstein_distance() -> None:
    x, y = points(50, 1).double(), points(50, 1, seed=1).double() * 2
    expected = np.sqrt(np.square(np.sort(x[:, 0]) - np.sort(y[:, 0])).mean())
    assert sliced_distance(x, y) == pytest.approx(expected)
    first = wasserstein_distance_nd(x.numpy(), y.numpy())  # 1-Wasserstein, at most the 2-
    assert first <= sliced_distance(x, y) + 1e-9


def test_the_floor_is_that_of_two_exact_sets_of_the_same_size() -> None:
    x = points(4000).double()
    found = compare_samples(x, x, 1.0, 0.01)
    assert (found.sliced, found.mean) == (0.0, 0.0)
    others = [sliced_distance(points(4000, seed=s).double(), x) for s in range(1, 9)]
    assert found.floor == pytest.approx(sum(others) / 8, rel=0.35)


# wrong requests


@pytest.mark.parametrize(
    ("name", "wrong", "advice"),
    [
        ("density", {"tolerance": 0.1}, "absolute="),
        ("density", {"decision": torch.sign}, "margin="),
        ("sampler", {"decision": torch.sign}, "tolerance="),
        ("sampler", {"dimensions": 2}, "tolerance="),
        ("density", {"dimensions": 0}, "positive"),
        ("density", {"absolute": -1.0}, "positive"),
    ],
)
def test_what_a_task_does_not_have(name: str, wrong: dict[str, Any], advice: str) -> None:
    with pytest.raises(UsageError, match=advice):
        get_task(name, **wrong)


def test_dimensions_are_those_of_a_sample_unless_passed() -> None:
    assert get_task("density").fitted((3, 4)).dimensions == 12  # type: ignore[attr-defined]
    assert get_task("density", dimensions=5).fitted((3, 4)).dimensions == 5  # type: ignore[attr-defined]
    assert get_task("density").fitted(()).dimensions == 1  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="dimensions="):
        get_task("density").fitted(None)
    assert get_task("density", dimensions=5).fitted(None).dimensions == 5  # type: ignore[attr-defined]


def test_log_densities_of_no_samples() -> None:
    empty = torch.empty(0, dtype=torch.float64)
    found = compare_densities(DENSITY, empty, empty)  # type: ignore[arg-type]
    assert found.n == 0
    assert decide(Flips(50, likelihood=found)).status is Status.INCONCLUSIVE


def test_one_nat_is_counted_as_such() -> None:
    found = compare_densities(DENSITY, *torch.tensor([[e, 1.0], [e - 1, 0.0]]).double())  # type: ignore[arg-type]
    assert (found.mean, found.median, found.largest) == pytest.approx((1.0, 1.0, 1.0))
    assert found.estimate == pytest.approx(1 / BIT)
