"""The whole audit: verdicts on fields with known flows, and the rest of the report."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import cache
from math import cos, isnan, pi, sin
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trueode import Adaptive, Audit, FixedStep, NeuralODE, audit, check_solver, solve
from trueode.errors import DataError, UsageError
from trueode.evaluation import Answer
from trueode.solvers import Solver

ROOT = Path(__file__).resolve().parents[2]
SPEED = 4.0
MATRIX = SPEED * torch.tensor([[0.0, 1.0], [-1.0, 0.0]])


def points(n: int, width: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def turned(x: Tensor, angle: float = SPEED) -> Tensor:
    """The exact flow of a rotation."""
    c, s = cos(angle), sin(angle)
    return x.double() @ torch.tensor([[c, s], [-s, c]], dtype=torch.float64)


def labelled(n: int = 320, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The class is the larger component after the exact turn."""
    x = points(n, seed=seed)
    return x, turned(x).argmax(1)


def rotation(t: Tensor, z: Tensor) -> Tensor:
    return z @ MATRIX.to(z)


def euler(n_steps: int) -> Solver:
    return FixedStep("euler", n_steps=n_steps)


def rk4(n_steps: int) -> Solver:
    return FixedStep("rk4", n_steps=n_steps)


def turning(solver: Solver) -> NeuralODE:
    return NeuralODE(rotation, solver=solver).eval()


def model_of(field: Callable[[Tensor, Tensor], Tensor], solver: Solver | None = None) -> NeuralODE:
    return NeuralODE(field, solver=solver or euler(4)).eval()


@cache
def coarse() -> Audit:
    return audit(turning(euler(4)), labelled(), methods=("rk4", "bosh3"))


class Late(nn.Module):
    """A rotation from a start time on, with states at given times after it."""

    def __init__(self, start: float, times: Tensor) -> None:
        super().__init__()
        self.model = NeuralODE(rotation, solver=rk4(8), t=(start, start + 1))
        self.times = start + times

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor = self.model(x, save_at=self.times)
        return states.transpose(0, 1)


def test_times_near_a_start_far_from_0_are_kept_apart() -> None:
    """Their distances from the start are below the resolution of float32 at its size."""
    x, times = points(40), torch.tensor([0.0, 1.0, 2.0, 3.0, 4096.0], dtype=torch.float64) / 4096
    y = torch.stack([turned(x, SPEED * float(t)) for t in times], 1)
    for start in (0.0, 2019.0, -2020.0):
        found = audit(Late(start, times), (x, y), task="timeseries", methods=("rk4",))
        assert found.reference is not None
        torch.testing.assert_close(found.reference.outputs, y, rtol=0, atol=1e-5)


# Verdicts


def test_coarse_euler_on_a_rotation_depends_on_the_solver() -> None:
    x, _ = labelled()
    found = coarse()
    assert (found.verdict, found.exit_code) == ("solver-dependent", 3)
    assert found.reference is not None
    torch.testing.assert_close(found.reference.outputs, turned(x), rtol=0, atol=1e-5)
    own = x.double() @ torch.linalg.matrix_power(torch.eye(2).double() + MATRIX.double() / 4, 4)
    flips = int((own.argmax(1) != turned(x).argmax(1)).sum())
    assert flips > 30
    assert (found.flips, found.rows[0].flips, found.rows[0].changed) == (flips, flips / found.n, 0)
    assert found.decision.lower > found.decision.margin
    assert found.metric == pytest.approx(1 - flips / len(x))
    assert found.metric_exact == 1
    error = (own - turned(x)).square().mean().sqrt() / (
        turned(x) - turned(x).mean(0)
    ).square().mean().sqrt()
    assert found.rows[0].output_error == pytest.approx(float(error), rel=1e-5)
    assert found.rows[0].state_error == pytest.approx(float(error), rel=1e-5)
    assert found.performance.answer is Answer.EXACT
    assert all(
        words in found.sentence
        for words in ("too coarse", found.solver, f"take {found.safe[0].solver}")
    )


def test_fine_rk4_on_a_rotation_is_an_ode() -> None:
    found = audit(turning(rk4(32)), labelled(), methods=())
    assert (found.verdict, found.exit_code, found.flips) == ("ode", 0, 0)
    assert found.decision.upper <= found.decision.margin
    assert "behaves as an ODE (0 of 320" in found.sentence


def test_a_field_that_euler_solves_exactly_is_an_ode() -> None:
    """The velocity depends only on a constant component: solutions are straight lines."""

    def constant(t: Tensor, z: Tensor) -> Tensor:
        velocity = torch.tensor([1.0, -1.0, 0.0]).to(z)
        return velocity * z[:, 2:]

    x = points(320, 3)
    labels = (x + torch.tensor([1.0, -1.0, 0.0]) * x[:, 2:]).argmax(1)
    found = audit(model_of(constant, euler(1)), (x, labels), methods=("euler", "rk4"))
    assert (found.verdict, found.flips, found.metric, found.metric_exact) == ("ode", 0, 1, 1)
    assert {row.flips for row in found.rows} == {0}
    assert found.orders == ()  # rounding is the only error
    assert (found.safe[0].method, found.safe[0].setting, found.safe[0].nfe) == ("euler", 1, 1)


def test_a_constant_predictor_is_an_ode_and_told_to_be_vacuous() -> None:
    model = NeuralODE(
        rotation, None, lambda z: z * 1e-3 + torch.tensor([1.0, 0.0]).to(z), euler(4)
    ).eval()
    found = audit(model, labelled(), methods=())
    assert found.verdict == "ode"
    assert [
        note
        for note in found.notes
        if note.startswith("vacuous: the model predicts the same class")
    ]


def test_a_model_no_better_than_chance_is_told_to_be_vacuous() -> None:
    x, y = labelled()
    shuffled = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0))]
    shuffled[turned(x).argmax(1) == 0] = 1  # always wrong there
    found = audit(turning(rk4(32)), (x, shuffled), methods=())
    assert found.chance == pytest.approx(
        max(shuffled.double().mean().item(), 1 - shuffled.double().mean().item())
    )
    assert found.metric < found.chance
    assert any(note.startswith("vacuous: accuracy") for note in found.notes)
    assert not any(note.startswith("vacuous") for note in coarse().notes)


@pytest.mark.parametrize(("n", "verdict"), [(298, "inconclusive"), (299, "ode")])
def test_fewer_samples_than_299_cannot_show_an_ode(n: int, verdict: str) -> None:
    found = audit(turning(rk4(32)), labelled(n), methods=())
    assert (found.verdict, found.flips) == (verdict, 0)
    if verdict == "inconclusive":
        assert found.exit_code == 4
        assert found.decision.needed == 299
        assert "about 299 new samples would decide" in found.sentence


def test_the_margin_decides() -> None:
    data = labelled(100)
    assert audit(turning(rk4(32)), data, margin=0.05, methods=()).verdict == "ode"
    assert audit(turning(euler(4)), data, margin=0.6, methods=()).verdict == "ode"
    assert audit(turning(euler(4)), data, margin=0.01, methods=()).verdict == "solver-dependent"


def test_more_samples_than_are_asked_for_are_not_looked_at() -> None:
    assert audit(turning(rk4(32)), labelled(400), samples=300, methods=()).n == 300


# No reference, no verdict


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the refinement give up sooner."""
    monkeypatch.setattr(sys.modules["trueode.evaluation.refinement"], "FINEST", 64)
    monkeypatch.setattr(sys.modules["trueode.evaluation.refinement"], "LEAST_SAMPLED", 200)
    monkeypatch.setattr(sys.modules["trueode.evaluation.flow"], "ROUNDS", 2)


def test_samples_that_blow_up_are_told_apart() -> None:
    """Solutions of z' = z² blow up at t = 1/z(0), which coarse steps do not notice."""
    x = 2 * torch.rand(100, 2, generator=torch.Generator().manual_seed(0))
    x = x[((x - 1).abs() > 0.1).all(1)]
    found = audit(model_of(lambda t, z: z * z), (x, x.argmax(1)), methods=("rk4",))
    gone = int((x > 1).any(1).sum())
    assert (found.verdict, found.exit_code) == ("solver-dependent", 3)
    assert (found.decision.counts.blown_up, found.decision.counts.unresolved) == (gone, 0)
    assert f"ceases to exist for {gone} of {len(x)} samples" in found.sentence
    assert found.safe == ()


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(
    "field",
    [
        lambda t, z: torch.where(z > 0, -1.0, 1.0) * 30 + rotation(t, z),
        lambda t, z: 5 * torch.sin(1e5 * z.flip(1)),
    ],
    ids=["discontinuous", "rough"],
)
def test_a_field_that_no_solver_resolves_is_inconclusive(
    field: Callable[[Tensor, Tensor], Tensor],
) -> None:
    x = points(20)
    found = check_solver(model_of(field), (x, x.argmax(1)))
    assert (found.verdict, found.exit_code) == ("inconclusive", 4)
    assert "stiff, rough or discontinuous" in found.sentence or "chaotic" in found.sentence
    assert found.reference is not None
    assert found.reference.disagreeing >= found.decision.counts.unresolved > 0


class Odd(nn.Module):
    """A rotation by `trueode.solve` with a property that audits refuse, or with counters."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))
        self.last: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        z = solve(self.field, x, solver=euler(4)).z
        if self.what in ("buffer", "memory"):
            self.calls += 1
        if self.what == "new buffer":
            self.calls = self.calls + 1
        if self.what == "list":
            self.last.append(z)
            z = z + 0.01 * len(self.last)
        return z * (1 + 0.01 * self.calls) if self.what == "memory" else z

    def field(self, t: Tensor, z: Tensor) -> Tensor:
        noise = 0.01 * torch.randn_like(z) if self.what == "stochastic" else 0.0
        kept = nn.functional.dropout(z, 0.5) if self.what == "dropout" else z
        return rotation(t, kept) + noise


@pytest.mark.parametrize(
    ("what", "precondition", "words"),
    [
        ("stochastic", "deterministic", "it is stochastic"),
        ("dropout", "deterministic", "it is stochastic"),
        ("memory", "memory", "depend on what was called before"),
        ("list", "memory", "depend on what was called before"),
    ],
)
def test_where_a_precondition_is_violated_there_is_no_verdict(
    what: str, precondition: str, words: str
) -> None:
    model = Odd(what).eval()
    found = audit(model, labelled(40))
    assert (found.verdict, found.exit_code) == ("inconclusive", 4)
    assert words in found.sentence
    assert [each.name for each in found.preconditions if each.decisive and not each.holds] == [
        precondition
    ]
    assert (found.reference, found.reasons, found.rows, found.safe) == (None, None, (), ())
    assert words in check_solver(model, labelled(40)).decision.reason
    json.loads(found.to_json())
    assert found.figures() == {}


@pytest.mark.parametrize("what", ["buffer", "new buffer"])
def test_a_counter_is_no_memory(what: str) -> None:
    model = Odd(what).eval()
    found = audit(model, labelled(), methods=())
    assert found.verdict == "solver-dependent"
    assert all(each.holds for each in found.preconditions)
    assert float(model.calls) == 0


def test_an_ordinary_model_violates_nothing() -> None:
    assert all(each.holds for each in coarse().preconditions)
    model = Odd("nothing")  # in training mode; its dropout is not used
    assert audit(model, labelled(), methods=()).verdict == "solver-dependent"
    assert model.training


def test_samples_that_see_each_other_are_kept_together() -> None:
    def crowd(t: Tensor, z: Tensor) -> Tensor:
        return rotation(t, z - z.mean(0))

    x, y = labelled()
    found = audit(model_of(crowd), (x, y), methods=("rk4",))
    (independent,) = (each for each in found.preconditions if each.name == "independent samples")
    assert not independent.holds
    assert found.verdict == "solver-dependent"
    assert found.reference is not None
    means = x.double().mean(0)
    torch.testing.assert_close(
        found.reference.outputs, turned(x - means) + means, rtol=0, atol=1e-5
    )


# Regression


def squares(model: NeuralODE, y: Tensor, **how: Any) -> Audit:
    return audit(model, (points(320), y), methods=(), **how)


def test_a_regression_is_judged_by_gaps_and_not_by_labels() -> None:
    x = points(320)
    good, bad = (
        squares(turning(euler(64)), turned(x).float()),
        squares(turning(euler(64)), 100 * points(320, seed=1)),
    )
    own = x.double() @ torch.linalg.matrix_power(torch.eye(2).double() + MATRIX.double() / 64, 64)
    exact = turned(x)
    scale = (exact - exact.mean(0)).square().mean(0).sqrt()
    gaps = ((own - exact) / scale).square().mean(1).sqrt()
    assert good.decision == bad.decision
    assert (good.performance.answer, bad.performance.answer) == (Answer.EXACT, Answer.SAME)
    assert (good.verdict, bad.verdict) == ("solver-dependent", "solver-dependent")
    assert good.flips == int((gaps > 0.01).sum())
    assert good.metric_name == "mse"
    assert good.metric == pytest.approx(float((own - exact).square().mean()), rel=1e-3)
    assert good.chance == pytest.approx(float((exact - exact.mean(0)).square().mean()), rel=1e-5)
    assert bad.metric == pytest.approx(bad.metric_exact, rel=0.01)
    assert squares(turning(rk4(32)), 100 * points(320, seed=1)).verdict == "ode"


def test_without_targets_the_verdict_is_the_same() -> None:
    found = audit(turning(euler(4)), labelled()[0], task="classification", methods=())
    assert found.decision == coarse().decision
    assert isnan(found.metric)
    assert isnan(found.chance)


def test_a_regression_whose_output_is_constant_has_no_gaps() -> None:
    model = NeuralODE(rotation, None, lambda z: z * torch.tensor([1.0, 0.0]).to(z), rk4(32)).eval()
    found = squares(model, points(320, seed=1))
    assert (found.verdict, found.exit_code) == ("inconclusive", 4)
    assert "the same for all samples" in found.sentence


# Options


def test_a_metric_of_ones_own() -> None:
    def closeness(outputs: Tensor, y: Tensor) -> Tensor:
        return -(outputs - y).abs().amax(1)

    x = points(320)
    found = squares(turning(euler(64)), turned(x).float(), metric=closeness)
    assert found.metric_name == "closeness"
    assert found.metric < -0.01
    assert found.metric_exact == pytest.approx(0, abs=1e-3)
    assert isnan(found.chance)
    assert found.decision == squares(turning(euler(64)), turned(x).float()).decision


def test_without_methods_there_is_the_verdict_alone() -> None:
    found = audit(turning(euler(4)), labelled(), methods=())
    assert found.decision == coarse().decision
    (row,) = found.rows
    assert row.is_training
    assert found.orders == ()
    assert not any("safe" in note for note in found.notes)


def test_the_solver_can_be_given() -> None:
    own = turning(euler(4))
    found = audit(own, labelled(), solver=rk4(32), methods=())
    assert found.verdict == "ode"
    assert found.solver.startswith("rk4")
    assert (found.rows[0].method, found.rows[0].setting, found.rows[0].nfe) == ("rk4", 32, 128)
    # a model that takes no solver: the given one replaces that of its calls
    inside = audit(lambda x: own(x), labelled(), solver=rk4(32), methods=())
    assert inside.decision == found.decision
    tight = audit(own, labelled(), solver=Adaptive("dopri5", 1e-6, 1e-6), methods=())
    assert (tight.verdict, tight.rows[0].kind, tight.rows[0].setting) == ("ode", "adaptive", 1e-6)
    assert (
        audit(turning(rk4(32)), labelled(), solver=euler(4), methods=()).decision
        == coarse().decision
    )


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"margin": 0.0}, "margin"),
        ({"margin": 1.0}, "margin"),
        ({"samples": 0}, "samples"),
        ({"methods": ("rk5",)}, "rk45|rk4"),
        ({"task": "clasification"}, "classification"),
        ({"metric": lambda outputs, y: outputs.mean()}, "a value for each"),
    ],
)
def test_bad_options(how: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        audit(turning(euler(4)), labelled(20), **how)


def test_bad_data_and_audits_inside_of_audits() -> None:
    with pytest.raises(DataError, match="2 classes"):
        audit(turning(euler(4)), (points(20), torch.arange(20)))
    model = turning(euler(4))
    with pytest.raises(UsageError, match="nested"):
        audit(model, labelled(20), call=lambda net, batch: audit(net, labelled(20)))
    assert audit(model, labelled(20), methods=()).flips > 0  # no replacement stays active


def test_what_is_done_is_told() -> None:
    told: list[str] = []
    audit(turning(rk4(8)), labelled(20), methods=("midpoint", "bosh3"), progress=told.append)
    assert told[:2] == ["training solver", "exact flow: 20 of 20 samples left"]
    assert told[-1] == "reasons"
    assert {"rk4 x 1", "midpoint x 1", "bosh3, tol = 0.1"} <= set(told)


# The rest of the report


def field_with(activation: nn.Module, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, 24), activation, nn.Linear(24, 2))
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(3)

    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            derivative: Tensor = self.net(z)
            return derivative

    return Field()


@cache
def ordered(activation: type[nn.Module]) -> Audit:
    """A regression, because gaps vanish later than flips and leave more rows."""
    model = NeuralODE(field_with(activation()), solver=euler(8)).eval().double()
    x = points(300).double()
    return audit(model, (x, x), methods=("euler", "midpoint", "bosh3", "rk4"))


def test_the_order_of_a_smooth_field_is_the_nominal_one() -> None:
    orders = {order.method: order for order in ordered(nn.Tanh).orders}
    assert set(orders) == {"euler", "midpoint", "rk4"}
    for order in orders.values():
        assert abs(order.observed - order.nominal) < 0.5
        assert order.lower <= order.observed <= order.upper


def test_kinks_keep_every_method_at_order_two() -> None:
    orders = {order.method: order for order in ordered(nn.ReLU).orders}
    assert orders["rk4"].nominal == 4
    assert orders["rk4"].observed <= 2.3
    assert orders["euler"].observed == pytest.approx(1, abs=0.5)


def test_the_gain_is_of_the_samples_right_with_one_only() -> None:
    model, (x, y) = turning(euler(4)), labelled()
    noisy = torch.where(
        torch.rand(len(y), generator=torch.Generator().manual_seed(3)) < 0.35, 1 - y, y
    )
    found = audit(model, (x, noisy), methods=())
    right, right_exact = model(x).argmax(1) == noisy, turned(x).argmax(1) == noisy
    first, second = int((right & ~right_exact).sum()), int((right_exact & ~right).sum())
    assert first > 0
    answer = found.performance
    assert answer.gain == pytest.approx((first - second) / len(y))
    assert answer.lower < answer.gain < answer.upper
    assert (found.metric, found.metric_exact) == (
        pytest.approx(right.double().mean().item()),
        pytest.approx(right_exact.double().mean().item()),
    )
    trained = audit(model, (x, noisy), methods=(), held_out=False)
    assert (trained.decision, trained.performance.answer) == (found.decision, Answer.UNDECIDED)


@cache
def fitted(solver: Solver) -> NeuralODE:
    """A model fitted to a disc in a ring, which no flow of the plane separates."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(200) % 2
    radius, angle = (
        0.5 * torch.rand(200, generator=generator) + y,
        2 * pi * torch.rand(200, generator=generator),
    )
    x = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    torch.manual_seed(0)
    model = NeuralODE(field_with(nn.Tanh()), None, nn.Linear(2, 2), solver)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.x, model.y = x, y
    return model.eval()


@pytest.mark.parametrize(
    ("solver", "feature"), [(euler(3), True), (rk4(4), False)], ids=["euler", "rk4"]
)
def test_coarse_steps_that_became_a_feature_are_told(solver: Solver, feature: bool) -> None:
    model = fitted(solver)
    found = audit(model, (model.x, model.y), methods=(solver.name,))
    assert (
        (found.performance.answer is Answer.SOLVER) == ("NOT an ODE" in found.sentence) == feature
    )
    own, *others = found.rows
    if feature:
        assert own.loss < min(row.loss for row in others)
        assert found.reasons is not None
        assert found.reasons.margin_share is not None
        assert found.reasons.margin_share["above_half"] > 0.01


def test_the_cheapest_safe_solver_is_safe_and_the_next_coarser_one_is_not() -> None:
    found = coarse()
    best = found.safe[0]
    assert best.upper <= found.decision.margin
    assert [each.nfe for each in found.safe] == sorted(each.nfe for each in found.safe)
    assert any("the cheapest safe solver" in note for note in found.notes)
    steps = int(next(each.setting for each in found.safe if each.method == "rk4"))
    data = labelled()
    assert audit(turning(rk4(steps)), data, methods=()).verdict == "ode"
    assert audit(turning(rk4(steps - 1)), data, methods=()).verdict != "ode"


def test_crossings_stability_and_idle_adaptivity_are_told() -> None:
    reasons = coarse().reasons
    assert reasons is not None
    assert reasons.lipschitz == pytest.approx(SPEED, rel=0.01)
    assert reasons.step_lipschitz == pytest.approx(SPEED / 4, rel=0.01)
    assert reasons.stability == pytest.approx(2)
    assert reasons.crossings_exact is not None
    idle = audit(
        model_of(lambda t, z: 0 * z + 1, Adaptive("dopri5", 1e-3, 1e-3)),
        labelled(),
        methods=("dopri5",),
    ).reasons
    assert idle is not None
    assert idle.idle
    assert any("adaptivity is idle" in text for text in idle.texts)


# Small audits in loops


@pytest.mark.parametrize("solver", [euler(4), euler(40), rk4(32)], ids=str)
def test_a_check_has_the_numbers_of_the_audit(solver: Solver) -> None:
    model, data = turning(solver), labelled(300)
    report, found = check_solver(model, data, samples=300), audit(model, data, methods=())
    assert report.to_dict() == found.to_dict()
    assert check_solver(model, data).n == 300


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("task", ["regression", "timeseries"])
def test_the_best_constant_of_a_single_sample(task: str) -> None:
    """A trajectory is compared with its mean over time, a row of numbers with itself."""
    t = torch.tensor([0.0, 0.5, 1.0])
    model = turning(rk4(8))
    if task == "regression":
        data: Any = (points(1), points(1, seed=1))
        found = audit(model, data, methods=(), task=task)
        assert found.chance == 0
        return

    def path(net: Any, batch: Any) -> Tensor:
        return torch.stack([batch[0], batch[0] + 1, batch[0] + 2], 1) * net(batch[0])[:, None]

    y = torch.tensor([[[0.0, 0.0], [1.0, 2.0], [2.0, 4.0]]])
    found = audit(model, (points(1), y, t), call=path, methods=())
    assert found.chance == pytest.approx(float((y[0] - y[0].mean(0)).square().mean()))


# What is written


def refuse(name: str) -> Any:
    raise AssertionError(f"{name} is no JSON")


def test_json_holds_what_the_audit_holds() -> None:
    audits = [coarse(), audit(turning(euler(4)), labelled()[0], task="classification", methods=())]
    for found in audits:
        written = json.loads(found.to_json(), parse_constant=refuse)
        plain = found.to_dict()
        assert list(written) == list(plain)
        for key in (
            "verdict",
            "sentence",
            "n",
            "flips",
            "lower",
            "upper",
            "notes",
            "solver",
            "margin",
        ):
            assert written[key] == plain[key]
        assert [row["flips"] for row in written["rows"]] == [row.flips for row in found.rows]
    assert written["performance"]["own"] is None
    assert written["schema"] == 2


def keys_of(value: Any) -> set[str]:
    """All keys of nested mappings, except names chosen by the libraries."""
    if isinstance(value, dict):
        nested = [
            keys_of(each) for key, each in value.items() if key not in ("settings", "versions")
        ]
        return set(value).union(*nested)
    if isinstance(value, list | tuple):
        return set().union(*map(keys_of, value))
    return set()


def test_every_field_is_documented() -> None:
    text = (ROOT / "docs" / "audit-reference.md").read_text(encoding="utf-8")
    found = ordered(nn.Tanh)
    plain = found.to_dict()
    assert all(
        plain[part]
        for part in ("rows", "orders", "safe", "pareto", "reasons", "exact_flow", "preconditions")
    )
    fields = keys_of(plain) | keys_of(coarse().to_dict())
    assert {key for key in fields if f"`{key}`" not in text} == set()


def test_saving_writes_the_figures_and_never_overwrites_unasked(tmp_path: Path) -> None:
    found = coarse()
    folder = tmp_path / "new" / "audit"
    path = found.save(folder)
    assert path == folder / "audit.json"
    assert json.loads(path.read_text(encoding="utf-8"))["flips"] == found.flips
    names = {f"audit_{name}.png" for name in found.figures()}
    assert {
        "audit_swap.png",
        "audit_order.png",
        "audit_cost.png",
        "audit_trajectories.png",
    } == names
    assert names <= {each.name for each in folder.iterdir()}
    assert all((folder / name).stat().st_size > 1000 for name in names)
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="exists already"):
        found.save(folder)
    assert path.read_text(encoding="utf-8") == "mine"
    found.save(folder, overwrite=True)
    assert path.read_text(encoding="utf-8") == found.to_json()
    page = tmp_path / "mine" / "report.html"
    page.parent.mkdir()
    page.write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="exists already"):
        found.save(page.parent, report=True)
    found.save(page.parent)
    assert page.read_text(encoding="utf-8") == "mine"


def test_the_table_has_a_line_for_every_row() -> None:
    found = coarse()
    assert found.to_rich().row_count == len(found.rows)
    assert found.lines()[0] == found.sentence
