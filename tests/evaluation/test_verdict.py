"""The verdict: an ODE or not, or too little to tell."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from math import pi

import pytest
import torch
from torch import Tensor, nn

from trueode.data import Split
from trueode.evaluation import Verdict, clopper_pearson, evaluate, get_task, verdict
from trueode.evaluation.reference import least_cost
from trueode.evaluation.verdict import SAMPLES
from trueode.models import NeuralODE
from trueode.solvers import Adaptive, FixedStep, Solver

CLASSES, NUMBERS, SERIES = get_task("classification"), get_task("regression"), get_task("timeseries")
EULER, RK4 = FixedStep("euler", step_size=1.0), FixedStep("rk4", step_size=0.125)
PLENTY = 1e9
ANGLE = 2.0


class Turn(nn.Module):
    """The field that turns the plane by an angle in a unit of time."""

    def __init__(self, angle: float = ANGLE) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor([[0.0, -angle], [angle, 0.0]]))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return z @ self.matrix.T


def sides() -> nn.Linear:
    """A classifier that tells positive from negative first components."""
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    return layer


def turned(x: Tensor, angle: float = ANGLE) -> Tensor:
    """The exact solution of `Turn` at time 1."""
    matrix = torch.linalg.matrix_exp(torch.tensor([[0.0, -angle], [angle, 0.0]], dtype=torch.float64))
    return (x.double() @ matrix.T).to(x.dtype)


def circle(n: int) -> Tensor:
    """Points of the unit circle in random order whose images under `Turn` keep away from the classifier's boundary."""
    phi = torch.linspace(0.05, pi - 0.05, (n + 1) // 2)
    phi = torch.cat([phi, phi + pi])[:n] - pi / 2 - ANGLE
    phi = phi[torch.randperm(n, generator=torch.Generator().manual_seed(0))]
    return torch.stack([phi.cos(), phi.sin()], 1)


def classes(n: int) -> Split:
    """Labelled by the exact flow."""
    x = circle(n)
    return Split(x, sides()(turned(x)).argmax(1))


def classifier(solver: Solver) -> NeuralODE:
    return NeuralODE(Turn(), downstream=sides(), solver=solver)


def judge(n: int, solver: Solver, **how: float | str) -> Verdict:
    return verdict(classifier(solver), classes(n), CLASSES, solver, **{"run_evaluations": PLENTY, **how})


def test_a_model_whose_predictions_are_those_of_the_exact_flow_behaves_as_an_ode() -> None:
    found = judge(600, RK4)
    assert found.status == "ode"
    assert (found.n, found.flips, found.lower) == (600, 0, 0.0)
    assert found.upper == clopper_pearson(0, 600)[1] < 0.01
    assert found.metric == found.metric_exact == 1.0
    assert found.metric_name == "accuracy"
    assert found.solver == str(RK4)
    assert found.n_steps_exact == 128  # two doublings of four times 8 steps
    assert found.evaluations == 600 * least_cost(8) <= found.budget
    assert "test accuracy 100.0 % with rk4, h = 0.125; 100.0 % under the exact flow" in found.sentence
    assert "behaves as an ODE (0.0 % of its predictions" in found.sentence
    assert "at most 0.5 % with 95 % confidence" in found.sentence


def test_a_model_that_needs_its_coarse_solver_is_not_an_ode() -> None:
    found = judge(600, EULER)
    # one step of Euler turns by arctan(angle) instead
    off = torch.tensor(ANGLE) - torch.tensor(ANGLE).atan()
    assert found.status == "solver-dependent"
    assert found.flips / found.n == pytest.approx(float(off) / pi, abs=0.02)
    assert (found.lower, found.upper) == (clopper_pearson(found.flips, 600)[0], clopper_pearson(found.flips, 600)[1])
    assert found.metric == pytest.approx(1 - found.flips / found.n)
    assert found.metric_exact == 1.0
    assert "NOT an ODE" in found.sentence
    assert f"{100 * found.flips / 600:.1f} % of its predictions depend on the solver" in found.sentence


def test_accuracy_never_decides() -> None:
    """Opposite points have opposite predictions: with labels right for one of each two, the accuracies are equal."""
    half = circle(300)
    x = torch.cat([half, -half])
    model = classifier(EULER)
    with torch.no_grad():
        own, exact = model(x).argmax(1), sides()(turned(x)).argmax(1)
    y = torch.cat([own[:300], exact[300:]])
    found = verdict(model, Split(x, y), CLASSES, EULER, run_evaluations=PLENTY)
    assert found.metric == pytest.approx(found.metric_exact)
    assert found.status == "solver-dependent"
    # labels that are wrong for every solver: the model is as bad, and an ODE
    wrong = Split(x, 1 - exact)
    found = verdict(classifier(RK4), wrong, CLASSES, RK4, run_evaluations=PLENTY)
    assert (found.metric, found.metric_exact, found.status) == (0.0, 0.0, "ode")


@pytest.mark.parametrize("n", [40, 298])
def test_few_samples_are_too_few_to_say_that_it_is_one(n: int) -> None:
    found = judge(n, RK4)
    assert found.status == "inconclusive"
    assert (found.n, found.flips) == (n, 0)
    assert f"undecided on {n} samples" in found.sentence
    assert "at least 299 samples are needed" in found.sentence
    assert judge(299, RK4).status == "ode"


def test_few_samples_may_be_enough_to_say_that_it_is_none() -> None:
    assert judge(40, EULER).status == "solver-dependent"


def test_a_share_of_flips_near_the_margin_is_undecided() -> None:
    """Six of 600: neither bound is on one side of 1 %."""
    split = classes(600)
    split.x[:6] = 0.0  # the centre stays on the boundary
    found = verdict(classifier(RK4), split, CLASSES, RK4, run_evaluations=PLENTY)
    assert (found.status, found.flips) == ("inconclusive", 6)
    assert found.lower < 0.01 < found.upper
    assert "undecided on 600 samples" in found.sentence
    assert "samples are needed" not in found.sentence


def test_a_sample_that_never_settles_counts_as_a_flip() -> None:
    split = classes(300)
    split.x[:20] = 0.0
    found = verdict(classifier(RK4), split, CLASSES, RK4, run_evaluations=PLENTY)
    assert found.flips == 20
    assert found.status == "solver-dependent"
    assert found.n_steps_exact == 4096


def test_samples_that_the_budget_did_not_settle_are_unknown() -> None:
    """Enough evaluations for the first chance to settle, not for the points on the boundary."""
    split = classes(300)
    split.x[:20] = 0.0
    budget = 1.1 * 300 * least_cost(8) + 1
    how = {"run_evaluations": budget, "share": 1.0, "flops": 1e12, "command": "run"}
    found = verdict(classifier(RK4), split, CLASSES, RK4, **how)
    assert found.status == "not checked"
    assert "run --verdict_budget" in found.sentence
    # where many flip, they decide all the same
    split = classes(300)
    split.x[:1] = 0.0
    how["run_evaluations"] = 1.1 * 300 * least_cost(1) + 1
    found = verdict(classifier(EULER), split, CLASSES, EULER, **how)
    assert found.n_steps_exact < 4096
    assert found.status == "solver-dependent"
    assert found.upper == clopper_pearson(found.flips + 1, 300)[1]  # the unknown one may be a flip
    assert found.lower == clopper_pearson(found.flips, 300)[0]


def test_a_check_beyond_the_budget_is_not_made_and_the_sentence_says_how() -> None:
    how = {"flops": 1e12, "run_evaluations": 1e5, "command": "trueode --phase infer --name run"}
    found = judge(600, RK4, share=0.0, **how)
    assert found.status == "not checked"
    assert (found.n_steps_exact, found.evaluations) == (0, 0)
    assert (found.lower, found.upper) == (0.0, 1.0)
    assert found.metric == 1.0
    assert "not checked whether this model is an ODE" in found.sentence
    named = re.search(r"trueode --phase infer --name run --verdict_budget (\S+)$", found.sentence)
    assert named
    assert judge(600, RK4, share=float(named[1]), **how).status == "ode"  # what it says is enough
    assert "--verdict_budget" not in judge(600, RK4, share=0.0, flops=1e12, run_evaluations=1e5).sentence


def test_a_smaller_budget_looks_at_fewer_samples_and_never_spends_more() -> None:
    for samples in (150, 350):
        budget = 1.1 * samples * least_cost(8) + 1
        found = judge(600, RK4, run_evaluations=2 * budget, share=0.5, flops=1e12)
        assert found.n == samples
        assert found.evaluations <= found.budget == budget
        assert found.status == ("ode" if samples >= 299 else "inconclusive")
        assert f"(first {samples} samples)" in found.sentence
    few = judge(600, RK4, run_evaluations=1.1 * 99.5 * least_cost(8), share=1.0, flops=1e12)
    assert few.status == "not checked"  # fewer than 100 would not be worth the name


def test_fifty_gigaflop_are_always_there() -> None:
    found = judge(600, RK4, share=0.0, run_evaluations=0.0, flops=50e9 / 1e6)
    assert found.budget == pytest.approx(1e6)
    assert found.status == "ode"


def test_at_most_the_first_samples_are_looked_at() -> None:
    assert judge(SAMPLES + 50, RK4).n == SAMPLES


def numbers(n: int, solver: Solver) -> Verdict:
    x = circle(n)
    return verdict(NeuralODE(Turn(), solver=solver), Split(x, turned(x)), NUMBERS, solver, run_evaluations=PLENTY)


def test_regression_is_judged_by_the_gap_of_outputs() -> None:
    fine = numbers(400, RK4)
    assert (fine.status, fine.flips, fine.metric_name) == ("ode", 0, "mse")
    assert fine.metric == pytest.approx(fine.metric_exact, abs=1e-5)
    # the error of midpoint is more than 1 % of the scale, and the mse small
    coarse = numbers(400, FixedStep("midpoint", step_size=0.25))
    assert coarse.status == "solver-dependent"
    assert coarse.flips == 400
    assert coarse.metric < 0.01


def test_time_series_are_judged_by_the_gap_of_outputs() -> None:
    x = circle(320)
    t = torch.tensor([0.0, 0.5, 1.0])
    y = torch.stack([x, turned(x, ANGLE / 2), turned(x)], 1)
    for solver, status in ((RK4, "ode"), (FixedStep("euler", step_size=0.05), "solver-dependent")):
        model = NeuralODE(Turn(), solver=solver)
        assert verdict(model, Split(x, y, t), SERIES, solver, run_evaluations=PLENTY).status == status


def test_an_output_that_is_constant_in_a_component_is_undecided() -> None:
    class First(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return torch.stack([z[:, 0], torch.full_like(z[:, 0], 3.0)], 1)

    x = circle(120)
    model = NeuralODE(Turn(), downstream=First(), solver=RK4)
    found = verdict(model, Split(x, torch.zeros(120, 2)), NUMBERS, RK4, run_evaluations=PLENTY)
    assert found.status == "inconclusive"
    assert "constant" in found.sentence


@pytest.mark.parametrize(
    "solver",
    [RK4, Adaptive("dopri5", 1e-5, 1e-5), Adaptive("dopri5", 1e-5, 1e-5, per_sample=True)],
    ids=["fixed", "adaptive", "per sample"],
)
def test_equal_calls_have_equal_verdicts(solver: Solver) -> None:
    first, second = judge(300, solver), judge(300, solver)
    assert first == second
    assert first.status == "ode"
    assert json.loads(json.dumps(first.to_dict())) == first.to_dict()


def test_a_solver_that_fails_on_the_data_leaves_the_model_unchecked() -> None:
    found = judge(300, Adaptive("dopri5", 1e-6, 1e-6, max_steps=2), what="train")
    assert found.status == "not checked"
    assert "fails on the train data" in found.sentence
    assert found.metric != found.metric
    assert (found.n, found.flips, found.lower, found.upper) == (0, 0, 0.0, 1.0)


def blow_up(downstream: Callable[[Tensor], Tensor] | None) -> NeuralODE:
    """z' = z²: from above 1 the exact flow never arrives at time 1; one step of Euler does."""
    return NeuralODE(lambda t, z: z * z, downstream=downstream, solver=EULER)


def test_samples_whose_exact_flow_ends_early_count_as_flips() -> None:
    x = torch.linspace(-1.0, 0.2, 300, dtype=torch.float64).unsqueeze(1)
    x[:30] = 3.0
    model = blow_up(lambda z: torch.cat([z + 10, -z], 1))  # the others have one and the same class
    found = verdict(model, Split(x, torch.zeros(300, dtype=torch.int64)), CLASSES, EULER, run_evaluations=PLENTY)
    assert found.flips == 30
    assert found.status == "solver-dependent"


def test_samples_whose_exact_flow_ends_early_do_not_hide_the_gaps_of_the_others() -> None:
    x = torch.linspace(-1.0, -0.5, 300, dtype=torch.float64).unsqueeze(1)
    assert verdict(blow_up(None), Split(x, x), NUMBERS, EULER, run_evaluations=PLENTY).flips == 300
    x = torch.cat([x, torch.full((2, 1), 3.0, dtype=torch.float64)])
    found = verdict(blow_up(None), Split(x, x), NUMBERS, EULER, run_evaluations=PLENTY)
    assert found.flips == 302
    assert found.status == "solver-dependent"


def test_the_model_is_left_as_it_was() -> None:
    model, split = classifier(RK4), classes(120)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    verdict(model, split, CLASSES, RK4, run_evaluations=PLENTY)
    assert model.training
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name])
    assert evaluate(model, split, CLASSES, RK4).metric == 1.0
