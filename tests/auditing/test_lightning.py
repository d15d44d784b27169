"""Checks during training: `check_solver` in a plain loop, `SolverCheck` in Lightning."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator
from importlib import util
from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import trueode
from trueode import Audit, FixedStep, NeuralODE, check_solver
from trueode.errors import UsageError

pl = pytest.importorskip("pytorch_lightning")

X = torch.randn(96, 2, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] * X[:, 1] > 0).long()
UNSEEN = (torch.randn(40, 2, generator=torch.Generator().manual_seed(1)), torch.arange(40) % 2)


class Field(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 8)
        self.norm = nn.BatchNorm1d(8)  # has buffers, and another output in evaluation mode
        self.drop = nn.Dropout(0.2)  # draws random numbers
        self.b = nn.Linear(8, 2)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        out: Tensor = self.b(self.drop(torch.tanh(self.norm(self.a(z)))))
        return out


class Torchdiffeq(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.field, self.head = Field(), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        times = torch.linspace(0, 1, 3)
        out: Tensor = self.head(torchdiffeq.odeint(self.field, x, times, method="euler")[-1])
        return out


def ours() -> nn.Module:
    return NeuralODE(Field(), nn.Identity(), nn.Linear(2, 2), FixedStep("euler", n_steps=2))


def same(a: nn.Module, b: nn.Module) -> bool:
    """Whether two models are equal bit for bit, buffers included."""
    mine, other = a.state_dict(), b.state_dict()
    return all(torch.equal(mine[name], other[name]) for name in mine)


@pytest.mark.parametrize("make", [ours, Torchdiffeq])
@pytest.mark.parametrize("training", [True, False])
def test_a_check_leaves_no_trace_in_a_loop(make: Any, training: bool) -> None:
    ends = []
    for checks in (False, True):
        torch.manual_seed(0)
        model = make()
        model.train(training)
        model.get_submodule("field.norm").eval()  # modes differ between modules
        model.get_submodule("head" if make is Torchdiffeq else "downstream").requires_grad_(False)
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.05)
        for k in range(6):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(X), Y).backward()
            if checks and k % 2 == 0:  # between the gradients and the step
                before = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
                modes = [module.training for module in model.modules()]
                report = check_solver(model, UNSEEN)
                assert isinstance(report, Audit)
                assert (report.n, report.own.nfe, report.decision.counts.trouble) == (40, 2, "")
                assert 0 <= report.decision.lower <= report.flips / 40 <= report.decision.upper <= 1
                assert report.state_error > 0
                assert [module.training for module in model.modules()] == modes
                after = [p.grad for p in model.parameters()]
                assert all(a is b or torch.equal(a, b) for a, b in zip(before, after, strict=True))
            optimizer.step()
        ends.append((model, torch.rand(3), torch.is_grad_enabled()))
    (plain, numbers, grad), (checked, after, grad_after) = ends
    assert same(plain, checked)
    assert torch.equal(numbers, after)
    assert grad is grad_after is True


# Lightning


class Lit(pl.LightningModule):
    """Calls torchdiffeq or trueode in its forward."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.net = make()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out

    def training_step(self, batch: Any, index: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 0.05)


class Kept(pl.loggers.logger.DummyLogger):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[int, dict[str, float]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        self.values.setdefault(step, {}).update(metrics)


class Monitor(pl.Callback):
    """Sees what callbacks can monitor."""

    def __init__(self) -> None:
        self.seen: dict[int, float] = {}

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if "solver/flips_upper" in trainer.callback_metrics:
            self.seen[trainer.global_step] = float(trainer.callback_metrics["solver/flips_upper"])


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


def fit(make: Any, callbacks: list[Any]) -> tuple[Lit, dict[int, dict[str, float]]]:
    """Twelve steps in three epochs."""
    torch.manual_seed(0)
    module, logger = Lit(make), Kept()
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=logger,
        callbacks=callbacks,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(X, Y), batch_size=24, shuffle=True))
    return module, logger.values


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.* is deprecated")
@pytest.mark.parametrize("make", [ours, Torchdiffeq])
def test_a_callback_logs_and_leaves_no_trace(make: Any) -> None:
    callback = trueode.SolverCheck(UNSEEN, every_n_steps=5, samples=30)
    monitored = Monitor()
    checked, logged = fit(make, [callback, monitored])
    plain, nothing = fit(make, [])
    assert same(plain, checked)
    assert not nothing
    assert list(callback.reports) == [5, 10]
    found = {
        step: values
        for step, values in logged.items()
        if any(name.startswith("solver/") for name in values)
    }
    assert list(found) == [5, 10], (
        "and not again, as if it had been found again, at the steps after"
    )
    for step, report in callback.reports.items():
        assert (report.n, report.own.nfe) == (30, 2)
        assert found[step] == {
            "solver/flips": report.flips / report.n,
            "solver/flips_upper": report.decision.upper,
            "solver/state_error": report.state_error,
            "solver/nfe": report.own.nfe,
        }
    assert monitored.seen[5] == pytest.approx(callback.reports[5].decision.upper)


def test_a_callback_takes_no_steps_between_nothing() -> None:
    with pytest.raises(UsageError, match="every_n_steps"):
        trueode.SolverCheck(UNSEEN, every_n_steps=0)


def test_without_lightning_it_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [
        name for name in sys.modules if name.split(".")[0] in ("lightning", "pytorch_lightning")
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "trueode.auditing.lightning", raising=False)
    monkeypatch.setattr(util, "find_spec", lambda name, package=None: None)
    monkeypatch.delitem(vars(trueode), "SolverCheck", raising=False)
    assert callable(trueode.audit), "all the rest is there"
    with pytest.raises(UsageError, match=r"pip install 'trueode\[lightning\]'"):
        _ = trueode.SolverCheck
    with pytest.raises(UsageError, match="Lightning"):
        importlib.import_module("trueode.auditing.lightning")
