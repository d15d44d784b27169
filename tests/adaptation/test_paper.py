"""The paper's adaptation, decision by decision, on made-up measurements without a network."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from math import ceil
from threading import Barrier, Thread

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trueode.adaptation import (
    Evidence,
    PaperStepRule,
    PaperToleranceRule,
    Progress,
    paper_starting_step,
)
from trueode.solvers import Adaptive, FixedStep, Solver

PROGRESS = Progress(50, 1000)
FAILS, PASSES = 0.3, 0.0


class Made:
    """A comparison that returns given differences, repeats the last one, and records its calls."""

    def __init__(
        self, *differences: float, nfe: Callable[[Solver], float] = lambda solver: 0.0
    ) -> None:
        self.differences = list(differences)
        self.nfe = nfe
        self.asked: list[tuple[Solver, Solver]] = []

    def __call__(self, candidate: Solver, reference: Solver) -> Evidence:
        difference = self.differences[min(len(self.asked), len(self.differences) - 1)]
        self.asked.append((candidate, reference))
        return Evidence(difference, self.nfe(candidate), self.nfe(reference))


# the step size


def test_halves_the_step_when_the_difference_exceeds_the_threshold() -> None:
    rule, measure = PaperStepRule("euler", 1.0, 0.2), Made(0.1000001)
    assert rule.propose(measure, PROGRESS) == FixedStep("euler", step_size=0.1, max_steps=500)
    assert rule.solver == FixedStep("euler", step_size=0.1, max_steps=500)
    assert [candidate for candidate, _ in measure.asked] == [
        FixedStep("euler", step_size=0.2, max_steps=500)
    ]
    assert rule.notice == ""


def test_a_difference_equal_to_the_threshold_passes() -> None:
    rule = PaperStepRule("euler", 1.0, 0.2)
    assert rule.propose(Made(0.1, 0.1), PROGRESS).step_size == pytest.approx(0.22, rel=1e-12)
    coarse = PaperStepRule("euler", 1.0, 0.2, threshold=0.4)
    assert coarse.propose(Made(FAILS), PROGRESS).step_size == pytest.approx(0.22, rel=1e-12)


def test_grows_only_if_the_enlarged_step_passes_against_the_same_test_solver() -> None:
    for second, expected in ((PASSES, 0.22), (FAILS, 0.2)):
        rule, measure = PaperStepRule("euler", 1.0, 0.2), Made(PASSES, second)
        test = rule.test_solver
        assert rule.propose(measure, PROGRESS).step_size == pytest.approx(expected, rel=1e-12)
        (_, first_test), (enlarged, second_test) = measure.asked
        assert enlarged.step_size == pytest.approx(0.22, rel=1e-12)
        assert first_test == second_test == test


def test_the_step_never_exceeds_the_interval() -> None:
    rule, measure = PaperStepRule("rk4", 2.0, 1.9), Made(PASSES)
    assert rule.propose(measure, PROGRESS).step_size == 2.0
    assert rule.propose(measure, PROGRESS).step_size == 2.0
    assert len(measure.asked) == 3  # no step is larger than the interval


def test_near_the_most_steps_their_number_goes_half_of_the_way_and_then_stays() -> None:
    rule = PaperStepRule("euler", 3.0, 3.0 / 300, max_steps=500)
    counts = []
    for _ in range(12):
        counts.append(rule.propose(Made(FAILS), PROGRESS).count(3.0))
        if counts[-1] < 500:
            assert rule.notice == ""
    before = 300
    for n in counts:
        assert n == before + ceil((500 - before) / 2)
        before = n
    assert counts[:3] == [400, 450, 475]
    assert counts[-1] == 500
    assert "max_steps = 500" in rule.notice
    assert rule.solver.step_size == 3.0 / 500
    rule.propose(Made(PASSES, FAILS), PROGRESS)
    assert rule.notice == ""  # it is about the last proposal


def test_halving_that_ends_at_the_most_steps_is_an_ordinary_one() -> None:
    rule = PaperStepRule("euler", 1.0, 1 / 250, max_steps=500)
    assert rule.propose(Made(FAILS), PROGRESS).count(1.0) == 500
    assert rule.notice == ""


@given(
    st.lists(st.sampled_from([FAILS, PASSES]), min_size=1, max_size=40),
    st.floats(0.1, 30.0),
    st.integers(1, 600),
    st.integers(1, 600),
)
def test_the_step_stays_within_its_limits(
    differences: list[float], length: float, n: int, max_steps: int
) -> None:
    rule = PaperStepRule("midpoint", length, length / min(n, max_steps), max_steps=max_steps)
    for difference in differences:
        solver = rule.propose(Made(difference), PROGRESS)
        assert solver.step_size <= length * (1 + 1e-12)
        assert 1 <= len(solver.fractions(length)) - 1 <= max_steps  # raises if there are more


@pytest.mark.parametrize(
    ("method", "step", "test", "test_step"),
    [
        ("euler", 0.5, "midpoint", (0.5 / 50) ** 0.5),
        ("euler", 0.05, "midpoint", (0.05 / 50) ** 0.5),
        ("euler", 0.01, "midpoint", 0.01),  # 1/h > 50
        ("midpoint", 0.5, "rk4", (0.25 / 50) ** 0.25),
        ("midpoint", 0.1, "rk4", 0.1),  # 1/h² > 50
        ("heun2", 0.5, "rk4", (0.25 / 50) ** 0.25),
        ("heun2", 0.1, "rk4", 0.1),
        ("rk4", 0.5, "rk4", 0.5 * 50**-0.25),
        ("rk4", 0.01, "rk4", 0.01 * 50**-0.25),
        ("rk4_38", 0.2, "rk4", 0.2 * 50**-0.25),
    ],
)
def test_the_solver_that_a_step_is_checked_with(
    method: str, step: float, test: str, test_step: float
) -> None:
    rule, measure = PaperStepRule(method, 1.0, step), Made(FAILS)
    assert rule.test_solver.method == test
    assert rule.test_solver.step_size == pytest.approx(test_step, rel=1e-12)
    expected = rule.test_solver
    rule.propose(measure, PROGRESS)
    assert [reference for _, reference in measure.asked] == [expected]


@given(
    st.sampled_from([("euler", 1, 2), ("midpoint", 2, 4), ("heun2", 2, 4), ("rk4", 4, 4)]),
    st.floats(1e-3, 5.0),
)
def test_the_check_is_fifty_times_as_accurate_and_never_coarser(
    method: tuple[str, int, int], step: float
) -> None:
    name, p, q = method
    test = PaperStepRule(name, 10.0, step).test_solver
    assert test.step_size <= step
    assert test.step_size**q <= step**p / 50 * (1 + 1e-9)


def test_a_restored_step_rule_decides_as_the_saved_one() -> None:
    differences = [PASSES, PASSES, FAILS, PASSES, FAILS, FAILS]
    saved = PaperStepRule("euler", 1.0, 0.037)
    for difference in differences:
        saved.propose(Made(difference), PROGRESS)
    restored = PaperStepRule("euler", 1.0, 0.5)
    restored.load_state_dict(json.loads(json.dumps(saved.state_dict())))
    assert restored.solver == saved.solver
    for difference in differences:
        assert restored.propose(Made(difference), PROGRESS) == saved.propose(
            Made(difference), PROGRESS
        )


# the tolerance


def by_tolerance(solver: Solver) -> float:
    """More evaluations for a smaller tolerance, whatever the method."""
    assert isinstance(solver, Adaptive)
    return 1000 - solver.rtol


@pytest.mark.parametrize(
    ("method", "part"), [("fehlberg2", 5), ("dopri5", 10), ("bosh3", 10), ("tsit5", 10)]
)
def test_the_solver_that_a_tolerance_is_checked_with(method: str, part: int) -> None:
    rule, measure = PaperToleranceRule(method, 1e-2), Made(PASSES, nfe=by_tolerance)
    rule.propose(measure, PROGRESS)
    (own, test), (enlarged, same_test) = measure.asked
    assert (own.method, own.rtol, own.atol) == (method, 1e-2, 1e-2)
    assert test.method == "dopri5"
    assert test.rtol == test.atol == pytest.approx(1e-2 / part, rel=1e-12)
    assert enlarged.method == method
    assert enlarged.rtol == enlarged.atol == pytest.approx(1.1e-2, rel=1e-12)
    assert same_test == test


def test_error_control_per_sample_is_kept_in_every_solve() -> None:
    rule, measure = (
        PaperToleranceRule("bosh3", 1e-2, per_sample=True),
        Made(PASSES, nfe=by_tolerance),
    )
    assert rule.propose(measure, PROGRESS).per_sample
    assert all(solver.per_sample for pair in measure.asked for solver in pair)


def test_the_tolerance_halves_stays_or_grows_by_a_tenth() -> None:
    for differences, expected in (
        ((0.1000001,), 0.5e-2),
        ((0.1, 0.1), 1.1e-2),
        ((PASSES, PASSES), 1.1e-2),
        ((PASSES, FAILS), 1e-2),
    ):
        rule, measure = PaperToleranceRule("dopri5", 1e-2), Made(*differences, nfe=by_tolerance)
        solver = rule.propose(measure, PROGRESS)
        assert solver == rule.solver
        assert solver.rtol == solver.atol == pytest.approx(expected, rel=1e-12)
        assert len(measure.asked) == len(differences)
        assert rule.notice == ""


def test_the_check_is_refined_while_it_costs_no_more_than_training() -> None:
    # the training solve costs as much as a check at 1e-5, so a check at a tenth of that is needed
    def nfe(solver: Solver) -> float:
        return 100.0 if solver.method == "fehlberg2" else 100.0 if solver.rtol > 0.9e-5 else 101.0

    rule, measure = PaperToleranceRule("fehlberg2", 5e-2), Made(PASSES, nfe=nfe)
    rule.propose(measure, PROGRESS)
    tests = [reference.rtol for _, reference in measure.asked]
    assert tests == pytest.approx([1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-6], rel=1e-9)
    assert [candidate.rtol for candidate, _ in measure.asked] == pytest.approx(
        [5e-2] * 5 + [5.5e-2], rel=1e-9
    )


def test_what_counts_is_the_difference_of_the_refined_check() -> None:
    def nfe(solver: Solver) -> float:
        return 2.0 if solver.method == "dopri5" and solver.rtol < 5e-4 else 1.0

    rule = PaperToleranceRule("bosh3", 1e-2)
    assert rule.propose(Made(PASSES, FAILS, nfe=nfe), PROGRESS).rtol == 0.5e-2


@pytest.mark.parametrize("floor", [1e-7, 1e-13])
def test_no_check_is_made_below_the_floor(floor: float) -> None:
    rule, measure = (
        PaperToleranceRule("dopri5", 3e-3, floor=floor),
        Made(FAILS),
    )  # the check never costs more
    rule.propose(measure, PROGRESS)
    tests = [reference.rtol for _, reference in measure.asked]
    assert tests[-1] == floor
    assert all(x > y for x, y in pairwise(tests))


def test_a_tolerance_is_never_halved_below_the_floor() -> None:
    rule = PaperToleranceRule("dopri5", 1e-2, floor=1e-4)
    seen = [rule.propose(Made(FAILS, nfe=by_tolerance), PROGRESS).rtol for _ in range(10)]
    assert seen[:6] == pytest.approx([1e-2 / 2**i for i in range(1, 7)], rel=1e-12)
    assert min(seen) == seen[-1] >= 1e-4
    assert "cannot be refined" in rule.notice
    rule.propose(Made(PASSES, FAILS, nfe=by_tolerance), PROGRESS)
    assert rule.notice == ""


def test_a_tolerance_below_the_floor_is_checked_with_itself() -> None:
    rule, measure = PaperToleranceRule("dopri5", 1e-9, floor=1e-7), Made(PASSES)
    rule.propose(measure, PROGRESS)
    assert measure.asked[0][1].rtol == 1e-9


@pytest.mark.parametrize(
    ("recent", "grows"),
    [
        ((20.0,) * 5, False),
        ((26.0, *(20.0,) * 5), False),  # the last five decide
        ((20.0,) * 4, True),
        ((), True),
        ((20.0, 20.0, 26.0, 20.0, 20.0), True),
        ((26.0, *(20.0,) * 4), True),
        ((26.0,) * 5, True),
    ],
)
def test_growth_that_saves_nothing_is_refused(recent: tuple[float, ...], grows: bool) -> None:
    def nfe(solver: Solver) -> float:
        return 20.0 if solver.method == "fehlberg2" else 50.0

    rule = PaperToleranceRule("fehlberg2", 1e-2)
    solver = rule.propose(Made(PASSES, nfe=nfe), Progress(50, 1000, recent))
    assert solver.rtol == pytest.approx(1.1e-2 if grows else 1e-2, rel=1e-12)


def test_a_restored_tolerance_rule_decides_as_the_saved_one() -> None:
    differences = [PASSES, PASSES, FAILS, PASSES, FAILS, FAILS]
    saved = PaperToleranceRule("fehlberg2", 0.037)
    for difference in differences:
        saved.propose(Made(difference, nfe=by_tolerance), PROGRESS)
    restored = PaperToleranceRule("fehlberg2", 0.5)
    restored.load_state_dict(json.loads(json.dumps(saved.state_dict())))
    assert restored.solver == saved.solver
    for difference in differences:
        made = Made(difference, nfe=by_tolerance)
        assert restored.propose(made, PROGRESS) == saved.propose(
            Made(difference, nfe=by_tolerance), PROGRESS
        )


# the first step


def linear(a: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The field ``a z``."""
    return lambda t, z: a * z


@pytest.mark.parametrize("order", [1, 2, 4])
@pytest.mark.parametrize("a", [-0.3, 2.0, 7.0])
def test_first_step_of_a_linear_field(a: float, order: int) -> None:
    """By hand: d1 = |a| d0, h0 = 0.01 / |a|; over the trial step the field changes by a² h0 d0."""
    z0 = torch.tensor([[3.0, 4.0], [0.0, 1.0]], dtype=torch.float64)
    d0 = (5.0 + 1.0) / 2
    h1 = (0.01 / max(abs(a) * d0, a * a * d0)) ** (1 / (order + 1))
    expected = min(1 / abs(a), h1)
    step = paper_starting_step(linear(a), z0, 10.0, order=order, max_steps=10_000)
    assert step == pytest.approx(expected, rel=1e-9)


def test_first_step_where_a_hundred_trial_steps_are_the_limit() -> None:
    # h0 = 0.01 d0 / d1 = 1e-4, h1 = (0.01 / 1e-2)^(1/5) = 1 for the constant field
    z0 = torch.full((3, 1), 1e-4, dtype=torch.float64)
    step = paper_starting_step(
        lambda t, z: torch.full_like(z, 1e-2), z0, 10.0, order=4, max_steps=10_000
    )
    assert step == pytest.approx(1e-2, rel=1e-9)


def test_first_step_is_clipped_to_the_interval_and_its_most_steps() -> None:
    z0 = torch.ones(2, 2, dtype=torch.float64)
    slow, fast = linear(1e-3), linear(1e3)
    assert paper_starting_step(slow, z0, 0.5, order=1, max_steps=500) == 0.5
    assert paper_starting_step(fast, z0, 0.5, order=1, max_steps=50) == 0.5 / 50
    assert paper_starting_step(fast, z0, 8.0, order=1, max_steps=50) == 8.0 / 50


def test_first_step_of_an_interval_that_starts_elsewhere() -> None:
    z0 = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    how = {"order": 2, "max_steps": 10_000}
    at_0 = paper_starting_step(lambda t, z: (1 + t) * z, z0, 3.0, **how)
    at_7 = paper_starting_step(lambda t, z: (t - 6) * z, z0, 3.0, start=7.0, **how)
    assert at_7 == pytest.approx(at_0, rel=1e-9)


def test_first_step_of_a_field_that_vanishes_or_is_not_finite() -> None:
    z0 = torch.ones(2, 2)
    for field in (torch.zeros_like, lambda z: torch.full_like(z, float("nan"))):
        assert (
            paper_starting_step(lambda t, z, f=field: f(z), z0, 2.0, order=2, max_steps=100)
            == 2.0 / 100
        )
    # a state of zero: the trial step is 1e-6
    away = paper_starting_step(lambda t, z: z + 1, torch.zeros(2, 2), 2.0, order=2, max_steps=10**5)
    assert away == pytest.approx(1e-4, rel=1e-3)


def test_first_step_depends_on_an_image_as_on_the_vector_of_its_numbers() -> None:
    z0 = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for field in (linear(2.0), lambda t, z: torch.tanh(3 * z)):
        image = paper_starting_step(field, z0, 1.0, order=1, max_steps=10**6)
        flat = paper_starting_step(field, z0.flatten(1), 1.0, order=1, max_steps=10**6)
        assert image == pytest.approx(flat, rel=1e-12)
    norm = float(z0.flatten(1).norm(dim=1).mean())
    assert paper_starting_step(linear(2.0), z0, 1.0, order=1, max_steps=10**6) == pytest.approx(
        (0.01 / (4 * norm)) ** 0.5, rel=1e-9
    )


def test_first_step_takes_two_evaluations_and_no_gradient() -> None:
    calls = []

    def field(t: Tensor, z: Tensor) -> Tensor:
        calls.append(float(t))
        assert not torch.is_grad_enabled()
        return -z

    paper_starting_step(field, torch.ones(2, 2), 1.0, order=1, max_steps=500)
    assert calls == [0.0, pytest.approx(0.01)]


class Sum:
    """Sums over threads that act as ranks; all of them must call it."""

    def __init__(self, size: int) -> None:
        self.barrier = Barrier(size, timeout=20)
        self.parts: list[Tensor] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.parts.append(x)
        self.barrier.wait()
        total = torch.stack([part.double() for part in self.parts]).sum(0)
        if self.barrier.wait() == 0:
            self.parts.clear()
        self.barrier.wait()
        return total


@pytest.mark.parametrize("cuts", [(4, 3), (6, 1), (2, 3, 2)])
def test_first_step_does_not_depend_on_how_ranks_share_the_batch(cuts: tuple[int, ...]) -> None:
    z0 = torch.randn(7, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z0 *= torch.arange(1, 8).unsqueeze(
        1
    )  # samples of different sizes: means of means would be wrong
    whole = paper_starting_step(lambda t, z: torch.tanh(z), z0, 1.0, order=2, max_steps=10**6)
    total, found = Sum(len(cuts)), []

    def rank(part: Tensor) -> None:
        found.append(
            paper_starting_step(
                lambda t, z: torch.tanh(z), part, 1.0, order=2, max_steps=10**6, total=total
            )
        )

    threads = [Thread(target=rank, args=(part,)) for part in z0.split(cuts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [pytest.approx(whole, rel=1e-12)] * len(cuts)
