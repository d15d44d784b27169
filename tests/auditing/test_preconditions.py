"""Preconditions: a model has no memory, and solves in evaluation mode as in training."""

from __future__ import annotations

from typing import Any

import torch
import torchdiffeq
from torch import Tensor, nn

from trueode import Audit, audit

X = torch.randn(320, 2, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


def precondition(found: Audit, name: str) -> Any:
    (each,) = (each for each in found.preconditions if each.name == name)
    return each


class Moody(nn.Module):
    """Solves differently in training mode, or fails in it."""

    def __init__(self, **training: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.norm, self.how = nn.Linear(2, 2), nn.BatchNorm1d(2), training
        self.modes, self.calls = list[bool](), 0

    def forward(self, x: Tensor) -> Tensor:
        self.modes.append(self.training)
        self.calls += 1
        how = self.how if self.training else {"method": "rk4", "options": {"step_size": 0.125}}
        if "raises" in how:
            raise RuntimeError("only in evaluation mode")
        field = lambda t, z: torch.tanh(self.net(z))  # noqa: E731
        return self.norm(torchdiffeq.odeint(field, x, torch.tensor([0.0, 1.0]).to(x), **how)[-1])


def test_options_that_are_dropped_in_evaluation_mode() -> None:
    model = Moody(method="euler", options={"step_size": 0.25})
    before = {name: x.clone() for name, x in model.state_dict().items()}
    for mode in (True, False):
        found = audit(model.train(mode), (X, Y), methods=())
        text = precondition(found, "options").text
        assert "with torchdiffeq euler, h = 0.25 in training mode" in text
        assert "with torchdiffeq rk4, h = 0.125 in evaluation mode" in text
        assert any(note.startswith("options: ") for note in found.notes)
        assert found.verdict == "ode"
        assert model.training is mode
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert (model.modes, model.calls) == ([], 0)


def test_settings_that_a_solver_does_not_show() -> None:
    model = Moody(method="rk4", options={"step_size": 0.125, "interp": "cubic"})
    text = precondition(audit(model, (X, Y), methods=()), "options").text
    assert "cubic" in text


def test_the_same_options_and_failures_in_training_mode_are_not_told() -> None:
    for how in ({"method": "rk4", "options": {"step_size": 0.125}}, {"raises": True}):
        assert precondition(audit(Moody(**how), (X, Y), methods=()), "options").holds


class Keeping(nn.Module):
    """Keeps its last states, on which its outputs may depend."""

    def __init__(self, depends: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.last, self.depends = nn.Linear(2, 2), None, depends
        self.history: dict[str, list[Tensor]] = {"states": []}

    def forward(self, x: Tensor) -> Tensor:
        start = x if self.last is None or not self.depends else x + 0.1 * self.last.mean(0).to(x)
        options = {"step_size": 0.125}
        field = lambda t, z: torch.tanh(self.net(z))  # noqa: E731
        self.last: Tensor | None = torchdiffeq.odeint(
            field, start, torch.tensor([0.0, 1.0]).to(x), method="rk4", options=options
        )[-1]
        self.history["states"].append(self.last)
        return self.last


def test_only_what_changes_outputs_is_a_memory() -> None:
    kept, used = Keeping(depends=False), Keeping(depends=True)
    assert audit(kept, (X, Y), methods=()).verdict == "ode"
    found = audit(used, (X, Y), methods=())
    assert found.verdict == "inconclusive"
    assert "what was called before" in found.sentence
    assert [each.name for each in found.preconditions if each.decisive and not each.holds] == [
        "memory"
    ]
    for model in (kept, used):
        assert model.last is None
        assert model.history == {"states": []}
