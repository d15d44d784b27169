"""Audits of models on a GPU: the answers are those on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import StringIO
from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor, nn

import trueode
from tests.pretend import CUDA, pretend
from trueode import Adaptive, FixedStep, ModelInspection, NeuralODE
from trueode.data import Split
from trueode.evaluation import get_task, phase_portrait
from trueode.solvers.backends import native

SEEN = StringIO()  # audits would undo changes of a list


@pytest.fixture(autouse=True)
def without_kernel() -> Iterator[None]:
    """The kernel is for processors."""
    with native.using("off"):
        yield


class Field(nn.Module):
    """A field that depends on the time, and takes it only on the device of the state."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, t: Any, z: Tensor) -> Tensor:
        if isinstance(t, Tensor):
            assert t.device == z.device
        t = torch.as_tensor(t, dtype=z.dtype, device=z.device).reshape(-1, 1)
        return torch.tanh(self.linear(z)) * torch.cos(t)


class Foreign(nn.Module):
    """A model that solves by torchdiffeq, with a state in the middle."""

    def __init__(self, method: str, **how: Any) -> None:
        super().__init__()
        self.field, self.head, self.method, self.how = Field(), nn.Linear(2, 2), method, how

    def forward(self, x: Tensor) -> Tensor:
        t = torch.tensor([0.0, 0.5, 1.0], device=x.device)
        states = torchdiffeq.odeint(self.field, x, t, method=self.method, **self.how)
        return self.head(states[-1])


def ours(solver: Any) -> NeuralODE:
    return NeuralODE(Field(), downstream=nn.Linear(2, 2), solver=solver)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "euler": lambda: ours(FixedStep("euler", n_steps=2)),
    "per sample": lambda: ours(Adaptive("bosh3", 1e-3, 1e-3, per_sample=True)),
    "torchdiffeq": lambda: Foreign("euler", options={"step_size": 0.5}),
}


def samples() -> tuple[Tensor, Tensor]:
    x = torch.randn(12, 2, generator=torch.Generator().manual_seed(1))
    return x, (x[:, 0] > 0).long()


def made(name: str) -> Any:
    torch.manual_seed(0)
    return MODELS[name]()


@pytest.mark.parametrize(
    ("name", "methods"), [("torchdiffeq", ("euler",)), ("euler", ()), ("per sample", ())]
)
def test_an_audit_is_that_of_the_cpu(name: str, methods: tuple[str, ...]) -> None:
    how: dict[str, Any] = {"methods": methods, "breaks": (0.3,)}
    here = trueode.audit(made(name), samples(), **how)
    with pretend():
        there = trueode.audit(made(name).to(CUDA), samples(), **how)
        assert there.figures()
    assert (here.provenance["device"], there.provenance["device"]) == ("cpu", "cuda:0")
    assert (there.sentence, there.flips) == (here.sentence, here.flips)
    assert there.preconditions == here.preconditions
    if here.reasons is not None:
        assert there.reasons is not None
        assert there.reasons.lipschitz == pytest.approx(here.reasons.lipschitz, rel=1e-3)
    assert [row.nfe for row in there.rows] == [row.nfe for row in here.rows]
    for row, same in zip(there.rows, here.rows, strict=True):
        assert row.output_error == pytest.approx(same.output_error, rel=1e-3, abs=1e-6)


class Loose(nn.Module):
    """A model whose calls differ by noise, as sums on a GPU whose order varies."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.model, self.size = made("euler"), size

    def forward(self, x: Tensor) -> Tensor:
        SEEN.write(f"{torch.are_deterministic_algorithms_enabled()} ")
        found = self.model(x)
        return found + self.size * torch.randn(found.shape).to(found)


@pytest.mark.parametrize(("size", "named"), [(1e-6, "equal bits"), (1e-2, "deterministic")])
def test_determinism_is_told_up_to_rounding(size: float, named: str) -> None:
    how: dict[str, Any] = {"methods": (), "population": "all"}
    here = trueode.audit(Loose(size), samples(), **how)
    assert "deterministic" in [each.name for each in here.preconditions if not each.holds]
    with pretend():
        there = trueode.audit(Loose(size).to(CUDA), samples(), **how)
    (broken,) = (each for each in there.preconditions if each.name == named)
    assert not broken.holds
    assert broken.text in " ".join([there.sentence, *there.notes])
    assert (there.exact is None) == broken.decisive == (size > 1e-3)


def test_deterministic_algorithms_are_asked_for_on_a_gpu_only() -> None:
    how: dict[str, Any] = {"methods": ()}
    SEEN.seek(0)
    SEEN.truncate()
    trueode.audit(Loose(0.0), samples(), **how)
    assert "True" not in SEEN.getvalue()
    with pretend():
        trueode.audit(Loose(0.0).to(CUDA), samples(), **how)
    seen = SEEN.getvalue().split()
    assert {"True", "False"} == set(seen)
    assert not torch.are_deterministic_algorithms_enabled()


def test_counts_of_a_certificate_are_those_of_the_cpu() -> None:
    x = samples()[0]

    def count(device: torch.device) -> Any:
        model = made("euler").to(device)
        inspection = ModelInspection(model, lambda attempt: x, get_task("classification"))
        return inspection.count(model.solver, 1)

    here = count(torch.device("cpu"))
    with pretend():
        assert count(CUDA) == here


def test_a_portrait_is_that_of_the_cpu() -> None:
    split = Split(*samples())
    model = made("euler")
    here = phase_portrait(model, split, model.solver)
    with pretend():
        there = phase_portrait(model.to(CUDA), split, model.solver)
    assert here is not None
    assert there is not None
    for key, value in here.items():
        assert str(there[key]) == str(value)
