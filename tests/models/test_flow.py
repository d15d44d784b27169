"""Continuous normalizing flows: against closed forms, and laws of densities."""

from __future__ import annotations

import copy
from math import log, pi
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.problems import TanhField, states
from trueode.catalog import METHODS
from trueode.errors import UsageError
from trueode.fields import ConvField, DenseField, Divergence, SequentialField
from trueode.models import ContinuousFlow
from trueode.solvers import Adaptive, Adjoint, Backprop, Checkpoint, FixedStep, Solver

MATRIX = torch.tensor([[-0.5, 2.0], [-2.0, -0.1]], dtype=torch.float64)
FINE = Adaptive("dopri8", rtol=1e-10, atol=1e-10)


def normal(z: Tensor) -> Tensor:
    return -z.square().sum(1) / 2 - z.shape[1] * log(2 * pi) / 2


def linear() -> ContinuousFlow:
    """z' = A z, whose density is that of N(0, (e^A)⁻¹ (e^A)⁻ᵀ)."""
    layer = nn.Linear(2, 2, bias=False).double()
    layer.weight.data = MATRIX.clone()
    return ContinuousFlow(SequentialField(layer), (2,))


def exact(x: Tensor) -> Tensor:
    return normal(x @ torch.linalg.matrix_exp(MATRIX).T) + MATRIX.trace()


def curved(**how: Any) -> ContinuousFlow:
    torch.manual_seed(0)
    return ContinuousFlow(DenseField(2, 8, "tanh", True).double(), (1, 2), **how)


@pytest.mark.parametrize("name", [name for name, known in METHODS.items() if known.kind == "fixed"])
def test_log_densities_converge_with_the_order_of_fixed_steps(name: str) -> None:
    model, x = linear(), states(20)
    with torch.no_grad():
        errors = [
            float((model.log_prob(x, FixedStep(name, n_steps=n)) - exact(x)).abs().max())
            for n in (20, 40)
        ]
    assert torch.tensor(errors[0] / errors[1]).log2() == pytest.approx(
        METHODS[name].order, abs=0.35
    )


@pytest.mark.parametrize(
    "name", [name for name, known in METHODS.items() if known.kind == "adaptive"]
)
@pytest.mark.parametrize("per_sample", [False, True])
def test_log_densities_of_adaptive_methods_follow_the_tolerance(
    name: str, per_sample: bool
) -> None:
    model, x = linear(), states(20)
    solvers = [Adaptive(name, tol, tol, per_sample=per_sample) for tol in (1e-3, 1e-6)]
    with torch.no_grad():
        errors = [float((model(x, solver) - exact(x)).abs().max()) for solver in solvers]
    assert errors[1] < min(2e-3, errors[0] / 10)


def test_the_field_may_depend_on_time() -> None:
    """z' = c(t) z multiplies by e^C, with C the integral of c."""
    model = ContinuousFlow(lambda t, z: torch.cos(3 * t) * z, (2,), t=(0.2, 1.1))
    growth = float((torch.sin(torch.tensor(3.3)) - torch.sin(torch.tensor(0.6))) / 3)
    x = states()
    expected = normal(x * torch.tensor(growth, dtype=torch.float64).exp()) + 2 * growth
    torch.testing.assert_close(model(x, FINE), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("gradient", [Backprop(), Checkpoint(), Adjoint()])
@pytest.mark.parametrize("field", [DenseField(2, 4, "tanh", True).double(), TanhField(3)])
def test_gradients_are_finite_differences(gradient: Any, field: nn.Module) -> None:
    solver = FixedStep("rk4", n_steps=40 if isinstance(gradient, Adjoint) else 3)
    model, x = ContinuousFlow(field, (2,), solver, gradient=gradient), states(6).requires_grad_()
    generator = torch.Generator().manual_seed(0)
    model.zero_grad()
    model(x).mean().backward()
    for values in (x, *model.parameters()):
        assert values.grad is not None
        way = torch.randn(values.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            ends = []
            for sign in (1, -1):
                values += sign * 1e-5 * way
                ends.append(float(model(x).mean()))
                values -= sign * 1e-5 * way
        assert float((values.grad * way).sum()) == pytest.approx(
            (ends[0] - ends[1]) / 2e-5, rel=1e-4, abs=1e-7
        )


def test_the_mass_is_one_under_the_exact_flow() -> None:
    axis = torch.linspace(-9, 9, 181, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).view(-1, 1, 2)
    with torch.no_grad():
        fine = curved().log_prob(points, Adaptive("dopri5", 1e-7, 1e-7)).exp().sum() * 0.01
        coarse = linear().log_prob(points[:, 0], FixedStep("euler", n_steps=2)).exp().sum() * 0.01
    assert float(fine) == pytest.approx(1, abs=1e-4)
    # (I + A / 2)² is not e^A, but the trace is
    grown = torch.eye(2, dtype=torch.float64) + MATRIX / 2
    assert float(coarse) == pytest.approx(
        float(MATRIX.trace().exp() / (grown @ grown).det().abs()), rel=1e-3
    )


def test_samples_flow_back_to_the_noise_they_came_from() -> None:
    model = curved(solver=FINE)
    drawn = model.sample(50, generator=torch.Generator().manual_seed(3))
    noise = torch.randn(50, 1, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    _, solution = model(drawn, return_solution=True)
    torch.testing.assert_close(solution.z[:, :-1], noise.flatten(1), rtol=1e-6, atol=1e-6)
    # a Gaussian flow: the covariance of many samples
    many = linear().sample(20_000, FINE, torch.Generator().manual_seed(0))
    inverse = torch.linalg.matrix_exp(-MATRIX)
    torch.testing.assert_close(many.T.cov(), inverse @ inverse.T, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("solver", [FixedStep("rk4_38", n_steps=7), Adaptive("dopri5", 1e-9, 1e-9)])
def test_torchdiffeq_solves_the_same(solver: Solver) -> None:
    from torchdiffeq import odeint

    field, x = TanhField(1), states(8)

    def traced(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = state[0].detach().requires_grad_()
            value = field(t, z)
            rows = [torch.autograd.grad(value[:, i].sum(), z, retain_graph=True)[0] for i in (0, 1)]
        return value.detach(), -sum(row[:, i] for i, row in enumerate(rows))

    fixed = isinstance(solver, FixedStep)
    how: Any = (
        {"method": "rk4", "options": {"step_size": 1 / 7}}
        if fixed
        else {"method": "dopri5", "rtol": 1e-9, "atol": 1e-9}
    )
    z, change = odeint(traced, (x, x.new_zeros(8)), torch.tensor([0.0, 1.0]).double(), **how)
    with torch.no_grad():
        found = ContinuousFlow(field, (2,))(x, solver)
    close = 1e-12 if fixed else 1e-8
    torch.testing.assert_close(found, normal(z[-1]) - change[-1], rtol=close, atol=close)


def test_samples_may_be_images() -> None:
    torch.manual_seed(0)
    field, x = ConvField(2, 4, 2, "tanh", True).double(), torch.randn(3, 2, 4, 3).double()
    model = ContinuousFlow(field, (2, 4, 3), FixedStep("rk4", n_steps=3))
    one = torch.autograd.functional.jacobian(
        lambda z: model(z, return_solution=True)[1].z[:, :-1], x[:1]
    )
    # the log determinant of the map is minus the change of the log density, for fine steps
    with torch.no_grad():
        found, solution = model(x[:1], FixedStep("rk4", n_steps=60), return_solution=True)
    assert float(one.reshape(24, 24).det().log()) == pytest.approx(
        -float(solution.z[0, -1]), abs=1e-3
    )
    assert found.shape == (1,)
    assert model.sample(2).shape == (2, 2, 4, 3)


def test_estimates_are_unbiased_and_equal_under_all_solvers() -> None:
    """In training; otherwise the trace of few numbers is exact."""
    model, x = curved(trace="hutchinson", solver=FixedStep("rk4", n_steps=4)), states(256)[:, None]
    estimated, noise = model(x), model._noise(x)
    assert set(noise.unique().tolist()) == {-1.0, 1.0}
    torch.testing.assert_close(noise.mean(), torch.zeros(()).double(), rtol=0, atol=0.15)
    assert abs(float((noise[:, 0] * noise[:, 1]).mean())) < 0.2
    torch.testing.assert_close(model(x[3:9]), estimated[3:9])  # in any batch
    finer = model(x, FixedStep("rk4", n_steps=40))
    torch.testing.assert_close(finer, estimated, rtol=0.01, atol=0.01)
    single = copy.deepcopy(model).float()
    torch.testing.assert_close(
        copy.deepcopy(single).double()._noise(x.float().double()), single._noise(x.float()).double()
    )
    exact = curved(solver=model.solver)(x)
    assert (estimated - exact).abs().max() > 0.01
    torch.testing.assert_close(model.eval()(x), exact)
    with torch.no_grad():
        model.train().field.field.linear3.bias += 0.1
    assert (model._noise(x) != noise).any()


def test_estimates_of_many_numbers_remain_in_evaluation() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 33)
    models = [
        ContinuousFlow(DenseField(33, 8, "tanh"), (33,), trace=trace).eval()
        for trace in ("exact", "hutchinson")
    ]
    models[1].load_state_dict(models[0].state_dict())
    assert not torch.allclose(*(model(x) for model in models))


def test_flows_are_copied_saved_and_moved() -> None:
    model, x = curved(), states()[:, None]
    for other in (copy.deepcopy(model), curved()):
        other.load_state_dict(model.state_dict())
        torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)
    assert isinstance(model.field, Divergence)
    assert model.float()(x.float()).dtype == torch.float32


def test_bad_requests_are_refused() -> None:
    with pytest.raises(UsageError, match="hutchinson"):
        curved(trace="stochastic")
    with pytest.raises(UsageError, match=r"\('n', 1, 2\).*\(4, 2\)"):
        curved()(states())


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
@pytest.mark.parametrize(
    "field", [lambda t, z: None, lambda t, z: z[:, :1], lambda t, z: z.sum(), lambda t, z: (z, z)]
)
def test_fields_that_return_no_derivative_are_refused(field: Any, trace: str) -> None:
    model = ContinuousFlow(field, (2,), FixedStep("euler", n_steps=1), trace=trace)
    with pytest.raises(UsageError, match=r"[Ff]ield.*\(3, 2\)"):
        model(states(3, 2).squeeze())


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_log_densities_and_scores_under_vmap(trace: str) -> None:
    model, x = curved(trace=trace), states(5, 2)[:, None].requires_grad_()

    def single(z: Tensor) -> Tensor:
        return model.log_prob(z[None], FixedStep("rk4", n_steps=3))[0]

    expected = model.log_prob(x, FixedStep("rk4", n_steps=3))
    (score,) = torch.autograd.grad(expected.sum(), x)
    x = x.detach()
    torch.testing.assert_close(torch.func.vmap(single)(x), expected.detach())
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(single))(x), score)
