"""downstream ∘ flow ∘ upstream."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.problems import TanhField, states
from trueode.errors import UsageError
from trueode.models import NeuralODE
from trueode.solvers import Adaptive, Adjoint, FixedStep, solve

RK4 = FixedStep("rk4", n_steps=6)


def head() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(2, 3).double()


def test_is_downstream_of_flow_of_upstream() -> None:
    field, up, down, x = TanhField(), nn.Linear(2, 2).double(), head(), states()
    model = NeuralODE(field, up, down, solver=RK4, t=(0.0, 2.0))
    torch.testing.assert_close(model(x), down(solve(field, up(x), (0.0, 2.0), solver=RK4).z))
    assert {id(p) for p in model.parameters()} == {
        id(p) for m in (field, up, down) for p in m.parameters()
    }


def test_layers_around_are_optional() -> None:
    field, x = TanhField(), states()
    torch.testing.assert_close(NeuralODE(field, solver=RK4)(x), solve(field, x, solver=RK4).z)
    torch.testing.assert_close(
        NeuralODE(lambda t, z: -z, solver=RK4)(x), x * 0.36788, rtol=1e-4, atol=1e-4
    )


def test_the_solver_is_a_value_of_the_call() -> None:
    model, x = NeuralODE(TanhField(), downstream=head(), solver=RK4), states()
    coarse = model(x, FixedStep("euler", n_steps=1))
    assert not torch.allclose(coarse, model(x))
    torch.testing.assert_close(
        model(x, Adaptive("dopri5", 1e-9, 1e-9)), model(x), rtol=1e-3, atol=1e-3
    )
    assert model.solver is RK4
    output, solution = model(x, FixedStep("euler", n_steps=5), return_solution=True)
    assert output.shape == (4, 3)
    assert solution.nfe == 5
    assert not torch.allclose(model(x, t=(0.0, 0.5)), model(x))


def test_outputs_at_saved_times() -> None:
    model, x = NeuralODE(TanhField(), downstream=head(), solver=RK4), states()
    outputs = model(x, save_at=[0.25, 0.5, 1.0])
    assert outputs.shape == (3, 4, 3)
    torch.testing.assert_close(outputs[2], model(x))
    states_only = NeuralODE(model.field, solver=RK4)(x, save_at=[0.25, 0.5, 1.0])
    torch.testing.assert_close(model.downstream(states_only[1]), outputs[1])


def test_times_of_each_sample() -> None:
    """Equal to solving on all times and selecting; masked entries are zero without gradient."""
    nan = float("nan")
    model, x = NeuralODE(TanhField(), downstream=head(), solver=RK4), states(3)
    times = torch.tensor([[0.1, 0.5], [0.5, nan], [0.9, 1.0]], dtype=torch.float64)
    outputs = model(x, save_at=times)
    assert outputs.shape == (2, 3, 3)
    for i in range(3):
        for j in range(2):
            if times[i, j].isnan():
                assert bool((outputs[j, i] == 0).all())
            else:
                expected = model(x, save_at=times[i, j : j + 1])[0, i]
                torch.testing.assert_close(outputs[j, i], expected)
    outputs.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


def test_times_that_do_not_fit() -> None:
    model, x = NeuralODE(TanhField(), solver=RK4), states(3)
    with pytest.raises(UsageError, match=r"3 samples|batch has 3"):
        model(x, save_at=torch.zeros(2, 2, dtype=torch.float64))
    with pytest.raises(UsageError, match="all entries are NaN"):
        model(x, save_at=torch.full((3, 2), float("nan")))


def test_gradients_by_adjoint() -> None:
    found = []
    for gradient in (None, Adjoint()):
        model = NeuralODE(
            TanhField(), downstream=head(), solver=Adaptive("dopri5", 1e-8, 1e-8), gradient=gradient
        )
        found.append(
            torch.autograd.grad(model(states()).square().sum(), list(model.field.parameters()))
        )
    for x, y in zip(*found, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


def test_times_of_no_samples() -> None:
    """A rank may have no part of a small batch."""
    field = TanhField()
    model = NeuralODE(field, solver=RK4)
    output = model(
        torch.zeros(0, 2, dtype=torch.float64), save_at=torch.zeros(0, 4, dtype=torch.float64)
    )
    assert output.shape == (4, 0, 2)
    output.sum().backward()


def test_a_tuple_state_at_times_per_sample() -> None:
    model = NeuralODE(lambda t, z: (-z[0], -2 * z[1]), solver=RK4)
    times = torch.tensor([[0.5, float("nan")], [0.25, 1.0]])
    first, second = model((torch.ones(2, 1), torch.ones(2, 3)), save_at=times)
    assert first.shape == (2, 2, 1)
    assert second.shape == (2, 2, 3)
    assert float(first[1, 0].abs().max()) == float(second[1, 0].abs().max()) == 0.0
    torch.testing.assert_close(first[:, 1, 0], torch.exp(-times[1]), rtol=1e-4, atol=1e-4)


def test_a_learnable_end_is_a_parameter_of_the_model() -> None:
    """It is trained, saved, moved and copied with the model."""
    end = nn.Parameter(torch.tensor(0.5))
    model = NeuralODE(lambda t, z: z, t=(0.0, end), solver=FixedStep("rk4", n_steps=10))
    assert dict(model.named_parameters()) == {"t_end": end}
    assert "t_end" in model.state_dict()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    for _ in range(60):
        optimizer.zero_grad()
        (model(torch.ones(1, 1)) - 2).square().sum().backward()
        optimizer.step()
    assert float(end.detach()) == pytest.approx(0.6931, abs=1e-3)
    other = NeuralODE(
        lambda t, z: z,
        t=(0.0, nn.Parameter(torch.tensor(9.0))),
        solver=FixedStep("rk4", n_steps=10),
    )
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(torch.ones(1, 1)), model(torch.ones(1, 1)))
    wide = copy.deepcopy(model).double()
    assert isinstance(wide.t[1], nn.Parameter)
    assert wide.t[1].dtype == torch.float64


def test_other_ends_of_time() -> None:
    """A tensor that is not learnt becomes a buffer; numbers and computed tensors stay the same."""
    assert dict(NeuralODE(lambda t, z: z, t=(0.0, torch.tensor(2.0))).named_buffers()) == {
        "t_end": torch.tensor(2.0)
    }
    raw = torch.tensor(0.0, requires_grad=True)
    model = NeuralODE(lambda t, z: z, t=(0.0, raw.exp()), solver=FixedStep("rk4", n_steps=4))
    model(torch.ones(1, 1)).sum().backward()
    assert float(raw.grad) == pytest.approx(2.718, abs=1e-2)
    assert not model.state_dict()
    model.t = (0.0, nn.Parameter(torch.tensor(1.0)))
    assert list(model.state_dict()) == ["t_end"]
    model.t = (0, 3)
    assert model.t == (0, 3)
    assert not model.state_dict()
    with pytest.raises(UsageError, match="two times"):
        NeuralODE(lambda t, z: z, t=(0.0, 1.0, 2.0))
