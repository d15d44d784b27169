"""The fidelity rule on made-up convergence curves: no network is involved."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from math import ceil, inf, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from trueode.adaptation import (
    Certificate,
    DiscretisationPenalty,
    Evidence,
    Extrapolated,
    FidelityRule,
    Ladder,
    Progress,
    Refine,
)
from trueode.adaptation.certificate import ATTEMPTS
from trueode.catalog import METHODS
from trueode.errors import UsageError
from trueode.evaluation import Flips, Status, get_task
from trueode.solvers import Adaptive, FixedStep, Solver

FIDELITY = 0.01
COLD = FixedStep("rk4", n_steps=2)
ROUNDING = 1e-7


class Curve:
    """A model whose outputs under a solver differ from the exact ones by the solver's error.

    The errors of two solvers have the same sign and partly cancel, unless that of the finer solver
    is hardly smaller: then both are arbitrary.

    Args:
        error: maps a solver to its error.
        noise: relative standard deviation of the result of a check.
    """

    def __init__(self, error: Callable[[Solver], float], noise: float = 0.0) -> None:
        self.error = error
        self.noise = noise
        self.random = np.random.default_rng(0)
        self.nfe = 0.0

    def __call__(self, candidate: Solver, reference: Solver | Extrapolated) -> Evidence:
        assert isinstance(reference, Extrapolated)
        factor = np.exp(self.noise * self.random.normal() - self.noise**2 / 2)
        own, coarse, fine = map(self.error, (candidate, reference.solver, reference.finer))
        exact = fine + reference.weight * (fine - coarse)
        difference = abs(own - exact) if fine < 0.9 * coarse else own
        costs = {solver: cost(solver) for solver in (candidate, reference.solver, reference.finer)}
        self.nfe += sum(costs.values())
        return Evidence(
            difference * factor, cost(candidate), cost(reference.solver) + cost(reference.finer)
        )


def cost(solver: Solver) -> float:
    if isinstance(solver, Adaptive):
        return 12 * solver.rtol ** (-1 / solver.order)
    return float(solver.fractions(1.0)[1:].__len__() * solver.tableau.advancing_stages)


def count(solver: Solver) -> int:
    assert isinstance(solver, FixedStep)
    assert solver.n_steps is not None
    return solver.n_steps


def order(p: float, constant: float) -> Callable[[Solver], float]:
    """Errors that fall with order p, down to rounding."""
    return lambda solver: min(1.0, constant * count(solver) ** -p) + ROUNDING


def cliff(edge: int) -> Callable[[Solver], float]:
    """Errors that are large below the edge, and almost zero from there on."""
    return lambda solver: 0.2 if count(solver) < edge else 1e-4


def allowed(p: float) -> float:
    """The error that a method of order p may have during training."""
    return FIDELITY * (0.2 + 2 / p)


def follow(rule: FidelityRule, curve: Curve, checks: int) -> list[Solver]:
    return [rule.propose(curve, Progress(50 * i, 50 * checks)) for i in range(1, checks + 1)]


def changes(solvers: list[Solver]) -> int:
    return sum(a != b for a, b in pairwise(solvers))


@pytest.mark.parametrize("method", [name for name, (kind, _) in METHODS.items() if kind == "fixed"])
@settings(max_examples=8, deadline=None)
@given(constant=st.floats(1e-3, 10), start=st.integers(1, 60))
def test_ends_close_to_the_coarsest_solver_that_meets_the_target(
    method: str, constant: float, start: int
) -> None:
    p = METHODS[method].order
    error = order(p, constant)
    solvers = follow(FidelityRule(FixedStep(method, n_steps=start), FIDELITY), Curve(error), 1600)
    n = count(solvers[-1])
    least = next(k for k in range(1, 2000) if error(FixedStep(method, n_steps=k)) <= allowed(p))
    assert error(solvers[-1]) <= 1.1 * allowed(p) or n == 500
    assert n <= ceil(least * 0.5 ** (-1 / p) * 1.1) + 1
    assert changes(solvers[-200:]) == 0


def test_a_cliff_is_climbed_and_not_stepped_over() -> None:
    solvers = follow(FidelityRule(COLD, FIDELITY), Curve(cliff(6)), 200)
    assert [count(s) for s in solvers[:3]] == [4, 7, 7]
    assert count(solvers[-1]) == 6
    assert min(count(s) for s in solvers[2:]) == 6, "a step that fails is measured, and not taken"


def test_kinks_make_order_two_of_rk4() -> None:
    solvers = follow(FidelityRule(COLD, FIDELITY), Curve(order(2, 1.0)), 200)
    assert 9 <= count(solvers[-1]) <= 13
    assert changes(solvers[30:]) == 0


@pytest.mark.parametrize("p", [1, 2, 4])
def test_noise_does_not_make_it_oscillate(p: int) -> None:
    method = {1: "euler", 2: "midpoint", 4: "rk4"}[p]
    curve = Curve(order(p, allowed(p) * 8**p), noise=0.8)
    solvers = follow(FidelityRule(FixedStep(method, n_steps=2), FIDELITY), curve, 400)
    later = np.array([count(s) for s in solvers[200:]])
    assert np.abs(np.diff(np.log(later))).sum() <= 1
    assert curve.error(solvers[-1]) <= 1.2 * allowed(p)


def test_with_a_penalty_it_refines_gently_and_to_three_times_the_target() -> None:
    """The model follows the solver: jumps by theory would overshoot."""
    error = order(4, allowed(4) * 7.0**4)
    plain, gentle = (
        follow(FidelityRule(COLD, FIDELITY, penalised=penalised), Curve(error), 400)
        for penalised in (False, True)
    )
    steps = [count(solver) for solver in gentle]
    assert max(after / before for before, after in pairwise(steps)) <= 1.5
    assert max(count(a) / count(b) for b, a in pairwise(plain)) > 1.5
    assert allowed(4) < error(gentle[-1]) <= 3 * allowed(4)
    assert changes(gentle[-100:]) == 0


def test_with_a_penalty_checks_compare_grids_that_it_never_sees() -> None:
    compared: list[tuple[int, int]] = []

    def error(solver: Solver) -> float:
        return 1e-4

    class Noted(Curve):
        def __call__(self, candidate: Solver, reference: Solver | Extrapolated) -> Evidence:
            assert isinstance(reference, Extrapolated)
            compared.append((count(reference.solver), count(reference.finer)))
            return super().__call__(candidate, reference)

    follow(FidelityRule(FixedStep("rk4", n_steps=5), FIDELITY, penalised=True), Noted(error), 100)
    assert compared
    assert all(fine == 3 * coarse for coarse, fine in compared)
    partners = DiscretisationPenalty().partner
    assert max(partners(5, iteration) for iteration in range(500)) < 15


@pytest.mark.parametrize("edge", [1.0, 5.0, 30.0, 1e9])
def test_with_a_penalty_the_first_solver_is_accurate_for_the_new_model(edge: float) -> None:
    ladder = Ladder(max_steps=100)
    rule = FidelityRule(COLD, FIDELITY, penalised=True, ladder=ladder)
    curve = Curve(order(4, 3 * allowed(4) * edge**4))
    start = count(rule.begin(curve))
    assert rule.solver == FixedStep("rk4", n_steps=start)
    assert start == (2 if edge < 2 else 100 if edge > 100 else pytest.approx(edge, abs=1))
    same = FidelityRule(COLD, FIDELITY, ladder=ladder)
    assert same.begin(curve) == COLD


def test_a_start_whose_error_is_infinite_or_unknown() -> None:
    def broken(value: float) -> Callable[[Solver], float]:
        return lambda solver: value if count(solver) < 16 else 1e-6

    for value, start in ((inf, 16), (nan, 2)):
        rule = FidelityRule(COLD, FIDELITY, penalised=True)
        assert count(rule.begin(Curve(broken(value)))) == start


def test_with_a_penalty_the_first_trials_go_as_far_as_theory_allows() -> None:
    """A trial that fails makes the next ones careful."""
    start = FixedStep("rk4", n_steps=60)
    bold, plain = (
        FidelityRule(start, FIDELITY, penalised=penalised, patience=5)
        for penalised in (True, False)
    )
    error = order(4, allowed(4) * 20.0**4)
    steps = {rule: [count(s) for s in follow(rule, Curve(error), 30)] for rule in (bold, plain)}
    assert steps[bold][4] == 30 < steps[plain][4] == 55
    assert 0.9 * 20 * (1 / 1.5) ** 0.25 <= steps[bold][-1] <= 1.1 * 20 * (1 / 1.5) ** 0.25 + 1
    rule = FidelityRule(start, FIDELITY, penalised=True, patience=5)
    steep = [count(s) for s in follow(rule, Curve(cliff(50)), 60)]
    assert min(steep) >= 50, "a cliff is not stepped over"
    assert steep[9] == 55, "after a failed trial only the next coarser one is tried"


def test_a_plateau_is_left_alone() -> None:
    """Every number of steps has the same error, below the target: the cheapest solver is kept."""
    solvers = follow(
        FidelityRule(FixedStep("rk4", n_steps=5), FIDELITY),
        Curve(lambda s: 0.003 if count(s) < 50 else 0.0),
        200,
    )
    assert count(solvers[-1]) == 1
    assert changes(solvers[120:]) == 0


def test_a_target_that_cannot_be_met_ends_at_the_cap_and_says_so() -> None:
    rule = FidelityRule(COLD, FIDELITY, ladder=Ladder(max_steps=100))
    curve = Curve(lambda s: 1.0 if count(s) <= 100 else 0.0)
    solvers = follow(rule, curve, 20)
    assert [count(s) for s in solvers[:7]] == [4, 8, 16, 32, 64, 100, 100]
    assert count(solvers[-1]) == 100
    assert "rk4 x 100 is the finest allowed solver" in rule.notice
    assert "--max_steps" in rule.notice
    curve.error = order(4, 1.0)
    follow(rule, curve, 500)
    assert rule.notice == ""
    assert count(rule.solver) < 25, "it recovers when the target can be met again"


def test_a_check_that_tells_nothing_changes_nothing() -> None:
    rule = FidelityRule(COLD, FIDELITY)
    follow(rule, Curve(lambda s: 0.005), 3)
    before = rule.state_dict()
    assert rule.propose(lambda one, other: Evidence(nan, 1.0, 1.0), Progress(50, 1000)) == COLD
    assert rule.state_dict() == before
    assert "constant" in rule.notice


def test_evidence_that_is_infinite_refines() -> None:
    rule = FidelityRule(COLD, FIDELITY)

    def broken(candidate: Solver, reference: Solver | Extrapolated) -> Evidence:
        return Evidence(inf, 1.0, 1.0)

    assert count(rule.propose(broken, Progress(50, 1000))) == 4
    assert count(rule.propose(broken, Progress(100, 1000))) == 8
    assert changes(follow(rule, Curve(lambda s: 0.007), 8)) == 0, "what was not finite is forgotten"


def test_a_cheaper_solver_that_is_not_finite_is_not_taken() -> None:
    solvers = follow(
        FidelityRule(FixedStep("rk4", n_steps=4), FIDELITY),
        Curve(lambda s: nan if count(s) < 4 else 0.0),
        50,
    )
    assert {count(s) for s in solvers} == {4}


def test_one_check_only() -> None:
    assert count(FidelityRule(COLD, FIDELITY).propose(Curve(order(4, 1.0)), Progress(50, 60))) == 4
    assert FidelityRule(COLD, FIDELITY).propose(Curve(lambda s: 0.0), Progress(50, 60)) == COLD


def test_a_refinement_is_at_most_a_doubling() -> None:
    assert count(FidelityRule(COLD, FIDELITY).propose(Curve(order(1, 2.0)), Progress(50, 60))) == 4


def test_a_decrease_that_is_taken_back_is_not_tried_again_soon() -> None:
    """Cheaper solvers fail as soon as they are taken: the rule waits longer after each failure."""
    rule, changed = FidelityRule(FixedStep("rk4", n_steps=8), FIDELITY), []
    for check in range(1, 400):
        before = count(rule.solver)
        bad = before < 8
        after = count(
            rule.propose(
                Curve(lambda s, bad=bad: 0.02 if bad else 0.0), Progress(50 * check, 20_000)
            )
        )
        if after < before:
            changed.append(check)
    waits = np.diff([0, *changed])
    assert all(later > 1.6 * earlier for earlier, later in pairwise(waits))


def test_checks_are_cheap() -> None:
    """A check at rest costs two solves (one at half the step), sometimes one more for a trial."""
    rule, curve = FidelityRule(FixedStep("rk4", n_steps=8), FIDELITY), Curve(order(4, 0.005 * 8**4))
    follow(rule, curve, 100)
    assert count(rule.solver) == 8
    assert curve.nfe <= 100 * (32 + 64) * 2


@pytest.mark.parametrize(
    "method", [name for name, (kind, _) in METHODS.items() if kind == "adaptive"]
)
@settings(max_examples=8, deadline=None)
@given(constant=st.floats(1e-2, 1e3))
def test_tolerances(method: str, constant: float) -> None:
    """With errors proportional to the tolerance, it ends within a factor of 4 of the loosest.

    The reference takes twice the steps, so a method of high order reaches rounding sooner.
    """
    ladder = Ladder()
    rule = FidelityRule(Adaptive(method, 3e-3, 3e-3), FIDELITY, ladder=ladder)
    solvers = follow(rule, Curve(lambda s: constant * s.rtol), 300)
    tol = solvers[-1].rtol
    limit = ladder.tightest * 2 ** METHODS[method].order
    best = max(min(allowed(1) / constant, ladder.loosest), limit)
    assert best / 4 <= tol <= 1.1 * best
    assert changes(solvers[-100:]) == 0


def test_a_tolerance_is_never_loosened_beyond_where_control_idles_nor_where_it_saves_nothing() -> (
    None
):
    rule = FidelityRule(Adaptive("dopri5", 1e-3, 1e-3), FIDELITY)
    assert {s.rtol for s in follow(rule, Curve(lambda s: 0.0), 50)} == {1e-3, 2e-3, 3e-3}

    def idle(candidate: Solver, reference: Solver | Extrapolated) -> Evidence:
        return Evidence(0.0, 14.0, 14.0)

    rule = FidelityRule(Adaptive("dopri5", 1e-3, 1e-3), FIDELITY)
    for check in range(50):
        assert rule.propose(idle, Progress(check, 50)) == Adaptive("dopri5", 1e-3, 1e-3)


def test_the_tightest_tolerance() -> None:
    rule = FidelityRule(Adaptive("dopri5", 1e-5, 1e-5), FIDELITY, ladder=Ladder(tightest=1e-6 / 32))
    solvers = follow(rule, Curve(lambda s: 1.0 if s.rtol > 1e-7 else 0.0), 5)
    assert solvers[-1] == Adaptive("dopri5", 1e-6, 1e-6)
    assert "--precision float64" in rule.notice


OTHERS = (
    FixedStep("midpoint", n_steps=1),
    FixedStep("euler", n_steps=1),
    Adaptive("dopri5", 3e-3, 3e-3),
)


def method_errors(euler: float, midpoint: float, rk4: float) -> Callable[[Solver], float]:
    constants = {"euler": (1, euler), "midpoint": (2, midpoint), "rk4": (4, rk4)}

    def error(solver: Solver) -> float:
        if isinstance(solver, Adaptive):
            return 1.0
        p, constant = constants[solver.name]
        return constant * count(solver) ** -float(p)

    return error


@pytest.mark.parametrize(
    ("constants", "best"),
    [((0.001, 1.0, 1.0), "euler"), ((1.0, 0.002, 1.0), "midpoint"), ((10.0, 10.0, 1.0), "rk4")],
)
def test_the_method_of_least_cost_is_chosen(
    constants: tuple[float, float, float], best: str
) -> None:
    solvers = follow(
        FidelityRule(COLD, FIDELITY, others=OTHERS), Curve(method_errors(*constants)), 500
    )
    assert solvers[-1].name == best
    assert changes(solvers[-100:]) == 0


def test_when_the_cheap_method_does_not_do_any_more_a_better_one_is_found() -> None:
    rule = FidelityRule(COLD, FIDELITY, others=OTHERS)
    assert follow(rule, Curve(method_errors(0.001, 1.0, 1.0)), 300)[-1].name == "euler"
    solvers = follow(rule, Curve(method_errors(10.0, 10.0, 1.0)), 1000)
    assert solvers[-1].name == "rk4", "also back to the one that it started with"
    assert cost(solvers[-1]) <= 20


def test_a_change_of_method_costs_no_more_than_keeping_it() -> None:
    rule = FidelityRule(COLD, FIDELITY, others=OTHERS)
    solvers = [rule.solver, *follow(rule, Curve(method_errors(0.5, 0.3, 1.0), noise=0.5), 400)]
    for before, after in pairwise(solvers):
        assert before.name == after.name or cost(after) < 2 * cost(before), (
            "at most what refining would cost"
        )


def test_a_saved_rule_decides_as_one_that_went_on() -> None:
    for start, others in ((COLD, OTHERS), (Adaptive("dopri5", 3e-3, 3e-3), ())):
        error = method_errors(0.4, 0.3, 1.0) if others else lambda s: s.rtol
        whole, curve = FidelityRule(start, FIDELITY, others=others), Curve(error, noise=0.7)
        follow(whole, curve, 37)
        restored = FidelityRule(start, FIDELITY, others=others)
        restored.load_state_dict(json.loads(json.dumps(whole.state_dict())))
        assert restored.solver == whole.solver
        seeds = curve.random.bit_generator.state
        first = follow(whole, curve, 100)
        curve.random.bit_generator.state = seeds
        assert follow(restored, curve, 100) == first
        assert restored.state_dict() == whole.state_dict()


def test_the_signal_is_what_was_decided_by() -> None:
    rule = FidelityRule(COLD, FIDELITY)
    assert rule.signal is None
    rule.propose(Curve(order(4, 0.1)), Progress(50, 100))
    assert rule.signal is not None
    assert rule.signal.value == pytest.approx(0.1 / 16, rel=1e-3)
    assert rule.signal.target == allowed(4)


def test_a_step_size_is_refused() -> None:
    rule = FidelityRule(FixedStep("rk4", step_size=0.1), FIDELITY)
    with pytest.raises(UsageError, match="n_steps"):
        rule.propose(Curve(lambda s: 1.0 if s.step_size > 0.09 else 0.0), Progress(50, 100))


# certificates


class Made:
    """An inspection with given numbers of flips."""

    source, task = "made up", get_task("classification")

    def __init__(self, *flips: int, n: int = 1000) -> None:
        self.flips, self.n = list(flips), n
        self.asked: list[tuple[Solver, int]] = []

    def size(self, attempt: int) -> int:
        return self.n

    def count(self, solver: Solver, attempt: int) -> Flips:
        self.asked.append((solver, attempt))
        return Flips(self.n, self.flips[len(self.asked) - 1])


def test_a_good_model_is_certified_at_once() -> None:
    inspection = Made(0)
    answer = FidelityRule(COLD, FIDELITY).certify(inspection)
    assert isinstance(answer, Certificate)
    assert answer.certified
    assert inspection.asked == [(COLD, 1)]


@pytest.mark.parametrize(
    ("start", "finer"),
    [
        (FixedStep("rk4", n_steps=10), FixedStep("rk4", n_steps=12)),
        (FixedStep("euler", n_steps=10), FixedStep("euler", n_steps=20)),
        (Adaptive("dopri5", 1e-3, 1e-3), Adaptive("dopri5", 5e-4, 5e-4)),
    ],
)
@pytest.mark.parametrize("flips", [20, 900])
def test_a_failure_halves_the_error_whatever_the_number_of_flips(
    start: Solver, finer: Solver, flips: int
) -> None:
    rule, inspection = FidelityRule(start, FIDELITY), Made(flips, 0)
    assert rule.certify(inspection) == Refine(finer, 200)
    assert rule.solver == finer
    restored = FidelityRule(start, FIDELITY)
    restored.load_state_dict(json.loads(json.dumps(rule.state_dict())))
    answer = restored.certify(inspection)
    assert isinstance(answer, Certificate)
    assert (answer.certified, len(answer.attempts)) == (True, 2)
    assert inspection.asked == [(start, 1), (finer, 2)]


def test_after_a_failure_nothing_cheaper_is_tried() -> None:
    rule = FidelityRule(FixedStep("rk4", n_steps=10), FIDELITY)
    rule.certify(Made(50))
    assert {count(solver) for solver in follow(rule, Curve(lambda s: 0.0), 40)} == {12}
    assert count(follow(rule, Curve(order(4, 0.02 * 12**4)), 20)[-1]) > 12, "finer ones are"
    before = count(rule.solver)
    rule.certify(Made(0))
    assert count(follow(rule, Curve(lambda s: 0.0), 40)[-1]) < before


def test_an_adaptive_solver_is_compared_over_a_whole_trial() -> None:
    """It takes 20 and 44 evaluations by turns, so a fixed-step solver with 40 saves none."""
    rule = FidelityRule(
        Adaptive("dopri5", 3e-3, 3e-3), FIDELITY, others=(FixedStep("rk4", n_steps=1),)
    )
    turn, tried = 0, set()

    def measure(candidate: Solver, reference: Solver | Extrapolated) -> Evidence:
        own = 20.0 if turn % 2 else 44.0
        if isinstance(candidate, FixedStep):
            tried.add(candidate)
        return Evidence(0.001, own if isinstance(candidate, Adaptive) else cost(candidate), 100.0)

    for turn in range(400):
        assert rule.propose(measure, Progress(turn, 400)).name == "dopri5" or cost(rule.solver) < 32
    assert tried


def test_the_target_is_that_of_the_measure() -> None:
    """The share is reduced for the order first, then converted to the scale of the measure."""
    rule = FidelityRule(FixedStep("euler", n_steps=4), 0.01, target=lambda share: share**0.125)
    rule.propose(Curve(lambda s: 0.1), Progress(50, 100))
    assert rule.signal is not None
    assert rule.signal.target == pytest.approx(0.024**0.125, rel=0.05)


def test_it_gives_up_after_four_attempts() -> None:
    start = FixedStep("rk4", n_steps=100)
    rule, inspection = FidelityRule(start, FIDELITY), Made(*[50] * ATTEMPTS)
    for _ in range(ATTEMPTS - 1):
        assert isinstance(rule.certify(inspection), Refine)
    assert count(rule.solver) == pytest.approx(100 * (2 * 4 * 8) ** (1 / 4), abs=3)
    answer = rule.certify(inspection)
    assert isinstance(answer, Certificate)
    assert answer.status is Status.SOLVER_DEPENDENT
    assert len(answer.attempts) == ATTEMPTS


def test_it_gives_up_where_nothing_finer_is_allowed() -> None:
    answer = FidelityRule(
        FixedStep("rk4", n_steps=100), FIDELITY, ladder=Ladder(max_steps=100)
    ).certify(Made(50))
    assert isinstance(answer, Certificate)
    assert answer.status is Status.SOLVER_DEPENDENT
    assert "--max_steps" in answer.sentence


def test_where_another_attempt_has_no_chance_nothing_is_trained_for_it() -> None:
    answer = FidelityRule(COLD, FIDELITY).certify(Made(3, n=400))
    assert isinstance(answer, Certificate)
    assert answer.status is Status.INCONCLUSIVE
    assert "another attempt needs n ≥ 437" in answer.sentence


@pytest.mark.parametrize("n", [400, 1000, 8000])
@pytest.mark.parametrize("share", [1.0, 1.05, 1.1, 1.25, 1.5])
@pytest.mark.parametrize("again", [True, False])
def test_a_run_certifies_wrong_models_at_most_five_times_in_a_hundred(
    n: int, share: float, again: bool
) -> None:
    """The true share is 1 to 1.5 times what is promised, and refinement does not help. Each attempt
    has new inputs, or all have the same. The upper bound of 2000 draws holds.
    """
    random, passed, draws = np.random.default_rng(7), 0, 2000
    for counts in random.binomial(n, share * FIDELITY * (1 + 1e-7), (draws, ATTEMPTS)):
        rule = FidelityRule(COLD, FIDELITY)
        inspection = Made(*(counts[:1].repeat(ATTEMPTS) if again else counts), n=n)
        answer = rule.certify(inspection)
        while isinstance(answer, Refine):
            answer = rule.certify(inspection)
        passed += answer.certified
    assert beta.ppf(0.95, passed + 1, draws - passed) <= 0.05


def test_too_few_inputs_are_not_looked_at() -> None:
    inspection = Made(n=100)
    answer = FidelityRule(COLD, FIDELITY).certify(inspection)
    assert isinstance(answer, Certificate)
    assert answer.status is Status.INCONCLUSIVE
    assert inspection.asked == []
