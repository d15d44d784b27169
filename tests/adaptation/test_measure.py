"""Each solver runs once, and all evaluations are counted."""

from __future__ import annotations

from trueode.adaptation import Evidence, Extrapolated, Measure
from trueode.solvers import Adaptive, FixedStep, Solver

COARSE, MEDIUM, FINE = (FixedStep("euler", n_steps=n) for n in (2, 4, 8))


class Runs:
    """A stand-in for a solve: the output is 100 / steps, the evaluations are the steps."""

    def __init__(self) -> None:
        self.solvers: list[Solver] = []

    def __call__(self, solver: Solver) -> tuple[float, float]:
        self.solvers.append(solver)
        assert isinstance(solver, FixedStep)
        return 100.0 / solver.count(1.0), float(solver.count(1.0))


def gap(one: float, other: float) -> float:
    return one - other


def test_tells_the_difference_and_the_costs() -> None:
    assert Measure(Runs(), gap)(COARSE, FINE) == Evidence(
        difference=37.5, candidate_nfe=2.0, reference_nfe=8.0
    )


def test_each_solver_value_is_solved_once() -> None:
    run = Runs()
    measure = Measure(run, gap)
    first = measure(COARSE, FINE)
    assert measure.nfe == 10.0
    assert measure(COARSE, FINE) == first
    assert (
        measure(FixedStep("euler", n_steps=2), FINE) == first
    )  # an equal value is the same solver
    measure(MEDIUM, FINE)
    assert run.solvers == [COARSE, FINE, MEDIUM]
    assert measure.nfe == 14.0
    assert measure(FINE, FINE) == Evidence(0.0, 8.0, 8.0)
    assert measure.nfe == 14.0


def test_outputs_that_were_there_already_are_not_counted_again() -> None:
    run = Runs()
    measure = Measure(run, gap)
    measure.seed(COARSE, 51.0, 3.0)
    assert measure.nfe == 0.0
    assert measure(COARSE, FINE) == Evidence(51.0 - 12.5, 3.0, 8.0)
    assert run.solvers == [FINE]
    assert measure.nfe == 8.0


def test_solvers_of_different_settings_are_different() -> None:
    seen = []

    def run(solver: Solver) -> tuple[int, float]:
        seen.append(solver)
        return len(seen), 1.0

    measure = Measure(run, gap)
    solvers = [
        Adaptive("dopri5", 1e-3, 1e-3),
        Adaptive("dopri5", 1e-4, 1e-4),
        Adaptive("dopri5", 1e-3, 1e-3, per_sample=True),
        Adaptive("bosh3", 1e-3, 1e-3),
        FixedStep("euler", step_size=0.5),
    ]
    for solver in solvers[1:]:
        measure(solver, solvers[0])
    assert sorted(map(str, seen)) == sorted(map(str, solvers))
    assert measure.nfe == len(solvers)


def test_an_extrapolated_reference_is_better_than_its_two_solves() -> None:
    """With errors of exactly first order, 100 / steps, its error is zero."""
    run = Runs()
    measure = Measure(run, gap)
    found = measure(COARSE, Extrapolated(COARSE))
    assert found == Evidence(difference=50.0, candidate_nfe=2.0, reference_nfe=6.0)
    assert measure(MEDIUM, Extrapolated(COARSE)).difference == 25.0
    assert run.solvers == [COARSE, MEDIUM], "each solved once"
    for order, tableau in ((2, "midpoint"), (4, "rk4")):
        reference = Extrapolated(FixedStep(tableau, n_steps=3))
        assert reference.weight == 1 / (2**order - 1)
        assert reference.finer == FixedStep(tableau, n_steps=6)
    assert Extrapolated(Adaptive("dopri5", 1e-3, 1e-3)).finer == Adaptive(
        "dopri5", 1e-3, 1e-3
    ).scaled(2**-5)


def test_what_fails_differs_infinitely() -> None:
    def run(solver: Solver) -> tuple[float | None, float]:
        return (None if solver == COARSE else 1.0), 1.0

    for candidate, reference in ((COARSE, FINE), (FINE, COARSE), (FINE, Extrapolated(COARSE))):
        assert Measure(run, gap)(candidate, reference).difference == float("inf")
    assert Measure(run, gap)(FINE, MEDIUM).difference == 0.0
