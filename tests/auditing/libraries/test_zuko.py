"""zuko: its solves are recorded and replaced, and the library is left as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trueode import Adaptive, FixedStep, audit
from trueode.auditing.interception import recorded, replaced
from trueode.auditing.replacement import replace_by
from trueode.solvers import solve

zuko = pytest.importorskip("zuko")
odeint = zuko.utils.odeint

TURN = torch.tensor([[0.0, 4.0], [-4.0, 0.0]])
X = torch.randn(320, 2, generator=torch.Generator().manual_seed(0))
FINE = FixedStep("rk4", n_steps=16)


class Counted:
    """A rotation whose speed grows with time."""

    def __init__(self) -> None:
        self.times = list[float]()

    def __call__(self, t: Tensor, z: Tensor) -> Tensor:
        self.times.append(float(t))
        return (1 + t) * (z @ TURN.to(z))


@pytest.mark.parametrize("tolerance", [1e-2, 1e-6])
@pytest.mark.parametrize("span", [(0.0, 1.0), (1.0, 0.0)])
def test_a_solve_is_recorded_as_it_is(tolerance: float, span: tuple[float, float]) -> None:
    plain, field = odeint(Counted(), X, *span, atol=tolerance, rtol=tolerance), Counted()
    with recorded() as solves:
        final = odeint(field, X, *span, atol=tolerance, rtol=tolerance)
    (solved,) = solves
    assert final.equal(plain)
    assert solved.nfe == len(field.times)
    starts = field.times[::7]
    assert solved.n_steps == len(set(starts))
    assert solved.n_rejected == len(starts) - len(set(starts))
    assert (solved.length, solved.status) == (1.0, "success")
    assert solved.final is not None
    assert solved.final.equal(plain)
    assert str(solved.found) == f"zuko dopri5, tol = {tolerance:.3g}"


@pytest.mark.parametrize("span", [(0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("solver", [FINE, Adaptive("dopri5", 1e-8, 1e-8)])
def test_a_solve_is_replaced(span: tuple[float, float], solver: Any) -> None:
    x = X.double()
    with replaced(replace_by(solver)) as solves:
        final = odeint(Counted(), x, *span)
        parts = odeint(lambda t, z, s: (Counted()(t, z), 0 * s + 1), (x, x[:, 0]), *span)
    torch.testing.assert_close(final, solve(Counted(), x, span, solver=solver).z)
    torch.testing.assert_close(parts[0], final, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(parts[1], x[:, 0] + span[1] - span[0])
    assert [each.final is None for each in solves] == [False, True]


def test_the_library_is_left_as_it_was() -> None:
    function = zuko.utils.AdaptiveCheckpointAdjoint
    for block in (recorded(), replaced(replace_by(FINE))):
        with block:
            assert "apply" in vars(function)
        assert "apply" not in vars(function)


def test_gradients_of_a_recorded_solve_are_those_of_the_library() -> None:
    turn = TURN.clone().requires_grad_()
    gradients = []
    for block in (None, recorded()):
        if block is None:
            final = odeint(lambda t, z: z @ turn, X, 0.0, 1.0, phi=(turn,))
        else:
            with block:
                final = odeint(lambda t, z: z @ turn, X, 0.0, 1.0, phi=(turn,))
        gradients.append(torch.autograd.grad(final.square().sum() + final.sum(), turn)[0])
    assert gradients[0].equal(gradients[1])


class Flow(nn.Module):
    """The log-determinant and the states of a linear flow, ``(n, 3)``."""

    def __init__(self, tolerance: float) -> None:
        super().__init__()
        self.matrix = nn.Parameter(TURN + torch.tensor([[0.5, 0.0], [0.0, -0.2]]))
        self.tolerance = tolerance

    def forward(self, x: Tensor) -> Tensor:
        flow = zuko.transforms.FreeFormJacobianTransform(
            lambda t, z: z @ self.matrix,
            torch.zeros(()).to(x),
            torch.ones(()).to(x),
            self.matrix,
            atol=self.tolerance,
            rtol=self.tolerance,
        )
        y, ladj = flow.call_and_ladj(x)
        return torch.cat([y, ladj[:, None]], 1)


@pytest.mark.parametrize(("tolerance", "verdict"), [(1e-6, "ode"), (10.0, "solver-dependent")])
def test_flows_of_the_library_are_audited(tolerance: float, verdict: str) -> None:
    model = Flow(tolerance)
    found = audit(model, X, task="regression", absolute=0.01, methods=())
    matrix = model.matrix.detach().double()
    exact = X.double() @ torch.linalg.matrix_exp(matrix)
    exact = torch.cat([exact, matrix.trace().expand(len(X), 1)], 1)
    assert found.exact is not None
    torch.testing.assert_close(found.exact.outputs, exact, rtol=1e-3, atol=1e-3)
    gap = ((model(X).detach() - exact) / 0.01).square().mean(1).sqrt()
    assert (found.flips, found.verdict) == (int((gap > 1).sum()), verdict)
