"""Audits of densities: verdict, mass, forth and back, noise, and the same for foreign models."""

from __future__ import annotations

from math import exp
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchdiffeq import odeint, odeint_adjoint

from tests.evaluation.linear_flows import (
    EULER,
    RK4,
    SHRINK,
    TURN,
    base,
    change,
    density,
    euler_map,
    points,
)
from trueode import FixedStep, NeuralODE, audit, check_solver
from trueode.auditing import Audit
from trueode.data import Split
from trueode.errors import DataError, UsageError
from trueode.evaluation import Status

X = points(600)
INFLATED, COARSE, FINE = density(SHRINK), density(TURN), density(SHRINK, RK4)


def means(found: Audit) -> Any:
    assert found.decision.counts.likelihood is not None
    return found.decision.counts.likelihood


@pytest.fixture(scope="module")
def inflated() -> Audit:
    return audit(INFLATED, X, task="density", sample=drawn, methods=("euler", "midpoint", "rk4"))


def drawn(model: NeuralODE, n: int) -> Tensor:
    """Samples of the density: solved backwards from the base."""
    field = Reversed(model.field.matrix)  # type: ignore[union-attr, arg-type]
    z: Tensor = NeuralODE(field, solver=model.solver)(torch.randn(n, 2))
    return z


class Reversed(nn.Module):
    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = matrix

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return -z @ self.matrix.T


def test_three_verdicts_in_words(inflated: Audit) -> None:
    assert (inflated.verdict, inflated.exit_code) == ("solver-dependent", 3)
    assert "NOT an ODE" in inflated.sentence
    assert "inflated" in inflated.sentence
    coarse, fine = (audit(m, X, task="density", methods=()) for m in (COARSE, FINE))
    assert (coarse.verdict, fine.verdict) == ("solver-dependent", "ode")
    assert "too coarse" in coarse.sentence
    assert "NOT" not in coarse.sentence
    assert (fine.exit_code, "bits per dimension" in fine.sentence) == (0, True)
    few = check_solver(INFLATED, X, samples=99, task="density")
    assert (few.verdict, few.decision.needed) == ("inconclusive", 100)


def test_safe_solvers_are_those_whose_change_is_small(inflated: Audit) -> None:
    for row in inflated.rows:
        if row.method == "euler":
            expected = change(X, n_steps=int(row.n_steps)).mean() / means(inflated).bit
            assert row.change == pytest.approx(float(expected), abs=1e-5)
            assert row.safe is (row.upper <= 0.01)
            assert row.upper >= abs(row.change)
    assert inflated.safe
    assert all(row.safe for row in inflated.safe)
    headers = [str(column.header) for column in inflated.to_rich().columns]
    assert headers[-2:] == ["change", "at most"]


def test_the_mass_under_the_training_solver(inflated: Audit) -> None:
    """It is the determinant of the exact flow over that of Euler's map."""
    found = inflated.density
    assert found is not None
    mass = exp(float(SHRINK.trace())) / float(torch.linalg.det(euler_map(SHRINK, 2)))
    assert found.mass_lower < mass < found.mass_upper
    assert found.mass == pytest.approx(mass, rel=0.1)
    assert found.mass_lower > 1
    assert any("no density" in text for text in found.texts)
    fine = audit(FINE, X, task="density", sample=drawn, methods=("rk4",))
    assert fine.density is not None
    assert fine.density.mass == pytest.approx(1.0, abs=1e-3)
    assert any("mass" in note for note in fine.notes)
    assert not any("no density" in note for note in fine.notes)


def test_forth_and_back_by_the_training_method(inflated: Audit) -> None:
    assert inflated.density is not None
    there_and_back = euler_map(-SHRINK, 2) @ euler_map(SHRINK, 2)
    moved = X.double() @ (there_and_back - torch.eye(2)).T
    spread = (X - X.mean(0)).double().square().mean().sqrt()
    expected = float(moved.square().mean().sqrt() / spread)
    assert inflated.density.forth_and_back == pytest.approx(expected, rel=1e-4)


def test_a_density_in_plain_values(inflated: Audit) -> None:
    found = inflated.to_dict()
    assert found["density"]["mass"] == inflated.density.mass  # type: ignore[union-attr]
    assert found["likelihood"]["mean"] == means(inflated).mean
    assert found["performance"]["name"] == "bits_per_dim"
    assert found["margin"] == 0.01


# the same weights in torchdiffeq, written as continuous normalizing flows are


class Flow(nn.Module):
    """A continuous normalizing flow of torchdiffeq, with a tuple as state."""

    def __init__(
        self, matrix: Tensor = SHRINK, solve: Any = odeint, hutchinson: bool = False, **options: Any
    ) -> None:
        super().__init__()
        self.matrix, self.solve, self.options = nn.Parameter(matrix.clone()), solve, options
        self.hutchinson = hutchinson
        self.register_buffer("evaluations", torch.tensor(0.0))  # a counter, as in public code
        self.noise = torch.empty(0)

    def field(self, t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        self.evaluations += 1
        with torch.enable_grad():
            z = state[0].requires_grad_()
            dz = z @ self.matrix.T
            if self.hutchinson:
                (product,) = torch.autograd.grad(dz, z, self.noise, create_graph=True)
                trace = (product * self.noise).sum(1)
            else:
                trace = sum(  # type: ignore[assignment]
                    torch.autograd.grad(dz[:, i].sum(), z, create_graph=True)[0][:, i]
                    for i in range(2)
                )
        return dz, -trace[:, None]

    def forward(self, x: Tensor) -> Tensor:
        if self.hutchinson:
            self.noise = torch.randn_like(x)
        times = torch.tensor([0.0, 1.0]).to(x)
        options = dict(self.options)
        if self.solve is odeint_adjoint:
            options["adjoint_params"] = tuple(self.parameters())
        z, lost = self.solve(self.field, (x, x.new_zeros(len(x), 1)), times, **options)
        return base(z[-1]) - lost[-1][:, 0]


STEPS = {"method": "euler", "options": {"step_size": 0.5}}


@pytest.mark.parametrize("solve", [odeint, odeint_adjoint])
@pytest.mark.parametrize("matrix", [SHRINK, TURN], ids=["shrink", "turn"])
def test_the_same_flow_in_torchdiffeq_has_the_same_verdict(solve: Any, matrix: Tensor) -> None:
    found = audit(Flow(matrix, solve, **STEPS).eval(), X, task="density", methods=())
    own = audit(density(matrix), X, task="density", methods=())
    assert found.status is own.status is Status.SOLVER_DEPENDENT
    assert means(found).mean == pytest.approx(means(own).mean, rel=1e-4)
    assert (found.n, found.flips) == (own.n, own.flips)


def test_a_foreign_flow_with_everything() -> None:
    model = Flow(**STEPS).eval()
    found = audit(model, X, task="density", methods=("euler", "rk4"))
    assert found.density is not None
    assert found.density.forth_and_back == pytest.approx(
        audit(INFLATED, X, task="density", methods=("rk4",)).density.forth_and_back,  # type: ignore[union-attr]
        rel=1e-2,
    )
    assert any("sample=" in text for text in found.density.texts)
    assert float(model.evaluations) == 0, "the counter is left as it was"
    assert all(each.holds for each in found.preconditions if each.decisive)


def test_noise_of_a_stochastic_trace() -> None:
    model = Flow(hutchinson=True, **STEPS).eval()
    refused = audit(model, X, task="density", methods=())
    assert (refused.verdict, "seed=" in refused.sentence) == ("inconclusive", True)
    found = audit(model, X, task="density", methods=("euler",), seed=3)
    # the trace estimate of a linear field is the same under all solvers
    assert means(found).mean == pytest.approx(float(change(X).mean()), abs=1e-4)
    expected = []
    for seed in range(4, 9):
        torch.manual_seed(seed)
        expected.append(model(X).detach().double().mean())
    assert found.density is not None
    assert found.density.noise == pytest.approx(float(torch.stack(expected).std()), rel=1e-3)
    assert any("random numbers" in text for text in found.density.texts)


# wrong requests


def of_dict(model: nn.Module, batch: Any) -> Tensor:
    found: Tensor = model(batch["x"])
    return found


def test_dimensions_that_cannot_be_told() -> None:
    batches = [{"x": X[:300]}, {"x": X[300:]}]
    how: dict[str, Any] = {"task": "density", "call": of_dict, "methods": ()}
    with pytest.raises(UsageError, match="dimensions="):
        audit(INFLATED, batches, **how)
    found = audit(INFLATED, batches, dimensions=2, **how)
    assert means(found).mean == pytest.approx(float(change(X).mean()), abs=1e-4)
    twice = audit(INFLATED, batches, dimensions=4, **how)
    assert twice.decision.lower == pytest.approx(found.decision.lower / 2)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"tolerance": 0.1}, "absolute="),
        ({"decision": torch.sign}, "margin="),
        ({"call": lambda model, batch: model(batch)[:, None].expand(-1, 2)}, r"\(n,\)"),
        ({"task": "regression", "dimensions": 2}, "dimensions does not go with regression"),
        ({"task": "regression", "sample": drawn}, "mass of a density"),
        ({"sample": lambda model, n: torch.zeros(n, 2), "methods": ("rk4",)}, "sample=… cannot"),
        ({"sample": lambda model, n: 1 / 0, "methods": ("rk4",)}, "sample=… cannot.*ZeroDivision"),
        (
            {"sample": lambda model, n: drawn(model, n)[:, :1], "methods": ("rk4",)},
            "sample=… cannot.*shape",
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else ", ".join(x),
)
def test_wrong_requests(wrong: dict[str, Any], told: str) -> None:
    given = {"task": "density", "methods": (), **wrong}
    data = (X, X) if given["task"] == "regression" else X
    with pytest.raises((UsageError, DataError), match=told):
        audit(INFLATED, data, **given)


class Sampled(NeuralODE):
    """A density with a method `sample`."""

    def sample(self, n: int) -> Tensor:
        return drawn(self, n)


def test_the_method_sample_is_used_and_the_random_state_is_left() -> None:
    model = Sampled(INFLATED.field, INFLATED.upstream, INFLATED.downstream, EULER).eval()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    found, again = (audit(model, X, task="density", methods=("euler",)) for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert found.density is not None
    assert found.density.mass > 1
    assert found.density == again.density
    model.sample = lambda n, temperature: torch.zeros(n)  # type: ignore[method-assign, assignment]
    other = audit(model, X, task="density", methods=("euler",))
    assert other.density is not None
    assert other.density.mass != other.density.mass


@pytest.mark.parametrize("kind", ["split", "dict", "pair"])
def test_samples_replace_the_inputs_of_any_batch(kind: str) -> None:
    data: Any = {
        "split": Split(X, X.new_empty(len(X), 0)),
        "dict": [{"x": X}],
        "pair": (X, torch.zeros(len(X)).long()),
    }[kind]
    call: Any = of_dict if kind == "dict" else None
    how: dict[str, Any] = {"dimensions": 2, "call": call, "sample": drawn, "methods": ("rk4",)}
    found = audit(FINE, data, task="density", **how)
    assert found.density is not None
    assert found.density.mass == pytest.approx(1.0, abs=1e-3)


def test_labels_beside_the_inputs_are_ignored() -> None:
    loader = [(X[:300], torch.zeros(300).long()), (X[300:], torch.ones(300).long())]
    found = audit(INFLATED, loader, task="density", methods=())
    assert means(found).mean == pytest.approx(float(change(X).mean()), abs=1e-4)
    assert found.chance != found.chance


def test_an_own_metric_is_shown() -> None:
    def mean(outputs: Tensor, y: Any) -> Tensor:
        assert y is None
        return outputs.mean()

    found = audit(INFLATED, X, task="density", methods=(), metric=mean)
    assert found.metric_name == "mean"
    assert found.metric == pytest.approx(means(found).own, abs=1e-5)
    assert found.verdict == "solver-dependent"


def test_steps_of_a_run_are_fine_enough() -> None:
    model = density(SHRINK, FixedStep("rk4", n_steps=1))
    assert audit(model, X, task="density", methods=()).verdict == "ode"


def test_a_mass_below_one() -> None:
    found = audit(COARSE, X, task="density", sample=drawn, methods=("euler",)).density
    mass = 1 / float(torch.linalg.det(euler_map(TURN, 2)))
    assert found is not None
    assert found.mass_lower < mass < found.mass_upper < 1
    assert any("no density" in text for text in found.texts)
