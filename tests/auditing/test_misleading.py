"""Models and data that would mislead an audit: it refuses or reports each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trueode import FixedStep, NeuralODE, audit, solve
from trueode.errors import UsageError

X = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
INSIDE = X.norm(dim=1) < 1.2


class Net(nn.Module):
    """A model with three Euler steps, or a given number."""

    def __init__(self, outputs: int = 2, n_steps: int = 3) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.inner, self.head = nn.Linear(2, 2), nn.Linear(2, outputs)
        self.solver = FixedStep("euler", n_steps=n_steps)

    def forward(self, x: Tensor) -> Tensor:
        states = solve(lambda t, z: 2 * torch.tanh(self.inner(z)), x, solver=self.solver).z
        return self.head(states)


def test_probabilities_are_refused() -> None:
    net = Net(outputs=1)
    with pytest.raises(UsageError, match="look like probabilities"):
        audit(lambda x: torch.sigmoid(net(x)), (X, INSIDE), methods=())
    found = audit(net, (X, INSIDE), methods=())
    again = audit(
        lambda x: torch.sigmoid(net(x)),
        (X, INSIDE),
        call=lambda model, batch: torch.logit(model(batch[0])),
        methods=(),
    )
    assert again.decision == found.decision


def test_numbers_that_are_labels_need_a_task() -> None:
    with pytest.raises(UsageError, match="all are 0 or 1"):
        audit(Net(outputs=1), (X, INSIDE.float()[:, None]))
    found = audit(Net(outputs=1), (X, INSIDE.float()[:, None]), task="classification", methods=())
    assert found.metric == audit(Net(outputs=1), (X, INSIDE), methods=()).metric


def test_repeated_samples_are_told_of() -> None:
    found = audit(Net(), (X[:4].repeat(100, 1), INSIDE[:4].repeat(100)), methods=())
    assert any("only 4 of the 400 samples are distinct" in note for note in found.notes)
    assert not any("distinct" in note for note in audit(Net(), (X, INSIDE), methods=()).notes)


def test_rounding_is_not_taken_for_the_solver() -> None:
    fine = Net(n_steps=256)
    offset = audit(lambda x: fine(x) + 3e3, (X, X), methods=())
    assert offset.verdict != "solver-dependent"
    constant = audit(
        lambda x: torch.cat([fine(x), torch.full((len(x), 1), 0.7)], 1),
        (X, torch.randn(400, 3)),
        methods=(),
    )
    assert constant.verdict == "inconclusive"
    assert "same for all samples" in constant.sentence


def test_times_that_samples_do_not_have() -> None:
    times = torch.linspace(0.2, 1, 5).repeat(400, 1)
    times[::2, 4] = torch.nan
    model = NeuralODE(lambda t, z: -z, solver=FixedStep("rk4", n_steps=16))
    exact = X[:, None] * torch.exp(-times)[:, :, None]
    found = audit(model, (X, exact.nan_to_num(), times))
    assert found.verdict == "ode"
    assert found.metric < 1e-9
    coarse = NeuralODE(lambda t, z: -z, solver=FixedStep("euler", n_steps=5))
    assert audit(coarse, (X, exact, times), methods=()).verdict == "solver-dependent"


def test_modules_behind_functions_are_left_as_they_were() -> None:
    net, norm = Net(), nn.BatchNorm1d(2)

    def predict(x: Tensor) -> Tensor:
        return norm(net(x))

    before = {name: value.clone() for name, value in norm.state_dict().items()}
    found = audit(predict, (X, INSIDE), methods=())
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    assert norm.training
    assert any("training mode" in note for note in found.notes)


def test_sparse_buffers() -> None:
    net = Net()
    net.register_buffer("graph", torch.eye(3).to_sparse())
    assert audit(net, (X, INSIDE), methods=()).provenance["weights"]


def test_blocks_of_different_solvers_are_no_row_of_one_method() -> None:
    def model(x: Tensor) -> Tensor:
        first = solve(lambda t, z: -1.9 * z, x, solver=FixedStep("euler", n_steps=1)).z
        return solve(lambda t, z: -z, first, solver=FixedStep("euler", n_steps=64)).z

    found = audit(model, (X, X), methods=("euler",))
    own, *others = found.rows
    assert own.method == "euler, h = 1 and euler, h = 0.015625"
    assert {row.method for row in others} == {"euler"}
    assert found.reasons is not None
    assert found.reasons.step_lipschitz != found.reasons.step_lipschitz


def test_batches_that_do_not_fit_together() -> None:
    class Lengths(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            states: Any = solve(
                lambda t, z: -z, x, (0.0, 1.0), solver=FixedStep("rk4", n_steps=4), save_at=t
            ).zs
            return states.transpose(0, 1)

    batches = [(X[:5], torch.zeros(5, n, 2), torch.linspace(0.1, 1, n)) for n in (3, 4)]
    with pytest.raises(UsageError, match="differ in shape"):
        audit(Lengths(), batches)
