"""Metrics of a model on a data set."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from tests.problems import TanhField
from trueode.data import Batch, Split
from trueode.distributed import Ranks
from trueode.errors import SolveError
from trueode.evaluation import Task, evaluate, get_task
from trueode.models import NeuralODE
from trueode.solvers import Adaptive, FixedStep, Solver

CLASSES, NUMBERS, SERIES = (
    get_task("classification"),
    get_task("regression"),
    get_task("timeseries"),
)
RK4 = FixedStep("rk4", n_steps=5)
N = 11


def problem(task: Task) -> tuple[NeuralODE, Split]:
    """A small model and eleven samples."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(N, 2, generator=generator, dtype=torch.float64)
    torch.manual_seed(0)
    if task is SERIES:
        y = torch.randn(N, 3, 2, generator=generator, dtype=torch.float64)
        t = torch.rand(N, 3, generator=generator, dtype=torch.float64).sort(1).values
        y[4, 1:], t[4, 1:] = torch.nan, torch.nan
        return NeuralODE(TanhField(), solver=RK4), Split(x, y, t)
    model = NeuralODE(TanhField(), downstream=nn.Linear(2, 3).double(), solver=RK4)
    if task is CLASSES:
        return model, Split(x, torch.randint(3, (N,), generator=generator))
    return model, Split(x, torch.randn(N, 3, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("task", [CLASSES, NUMBERS, SERIES], ids=lambda task: task.name)
@pytest.mark.parametrize("batch_size", [1, 3, 4, 10])
def test_does_not_depend_on_the_batches(task: Task, batch_size: int) -> None:
    model, split = problem(task)
    whole, parts = evaluate(model, split, task), evaluate(model, split, task, batch_size=batch_size)
    assert (whole.n, whole.n_steps) == (parts.n, parts.n_steps) == (N, 5.0)
    if task is not SERIES:  # states between steps cost further evaluations
        assert whole.nfe == parts.nfe == 20.0
    assert parts.loss == pytest.approx(whole.loss, rel=1e-12)
    assert parts.metric == pytest.approx(whole.metric, rel=1e-12)
    assert not whole.outputs.numel()


@pytest.mark.parametrize("per_sample", [False, True])
def test_effort_is_averaged_over_samples_too(per_sample: bool) -> None:
    model, split = problem(CLASSES)
    split.x[-3:] *= 40  # the last, smaller batch costs more
    solver = Adaptive("bosh3", 1e-4, 1e-4, per_sample=per_sample)
    whole = evaluate(model, split, CLASSES, solver, batch_size=8)
    first = evaluate(model, split.first(8), CLASSES, solver)
    last = evaluate(model, Split(split.x[8:], split.y[8:]), CLASSES, solver)
    assert first.nfe != last.nfe
    for name in ("nfe", "n_steps", "loss", "metric"):
        mean = (8 * getattr(first, name) + 3 * getattr(last, name)) / N
        assert getattr(whole, name) == pytest.approx(mean, rel=1e-9)


@pytest.mark.parametrize("training", [True, False])
def test_evaluates_in_evaluation_mode_and_leaves_the_mode_as_it_was(training: bool) -> None:
    modes = []
    model, split = problem(NUMBERS)
    model.upstream = nn.Sequential(nn.Identity(), nn.Identity()).train(training)
    model.upstream[1].eval()  # a part in another mode
    model.upstream.register_forward_hook(
        lambda module, *_: modes.append((module.training, torch.is_grad_enabled()))
    )
    before = [module.training for module in model.modules()]
    assert evaluate(model, split, NUMBERS) == evaluate(model, split, NUMBERS, RK4)
    with pytest.raises(SolveError):
        evaluate(model, split, NUMBERS, Adaptive("dopri5", 1e-9, 1e-9, max_steps=1))
    assert modes == [(False, False)] * 3
    assert (before, True) == (
        [module.training for module in model.modules()],
        torch.is_grad_enabled(),
    )


@dataclass(frozen=True)
class Alone(Ranks):
    """A rank that sums only its part, unless it is given the sums of the others."""

    others: tuple[Tensor, ...] = ()
    seen: tuple[list[Tensor], ...] = ((),)

    def sum(self, x: Tensor) -> Tensor:
        self.seen[0].append(x)
        return sum(self.others, x)


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize(
    "solver", [RK4, Adaptive("bosh3", 1e-4, 1e-4, per_sample=True)], ids=["fixed", "per sample"]
)
def test_ranks_share_the_work(world_size: int, solver: Solver) -> None:
    """The last batch has two samples: one of three ranks has none of them."""
    model, split = problem(CLASSES)
    one = evaluate(model, split, CLASSES, solver, batch_size=3)
    cpu, seen = torch.device("cpu"), []
    padding = torch.ones(5, dtype=torch.float64)
    for rank in range(world_size):
        ranks = Alone(rank, world_size, cpu, (padding,), (seen,))
        evaluate(model, split, CLASSES, solver, batch_size=3, ranks=ranks)
    assert sum(int(part[0]) for part in seen) == N
    for rank in range(world_size):
        others = tuple(part for other, part in enumerate(seen[:world_size]) if other != rank)
        found = evaluate(
            model,
            split,
            CLASSES,
            solver,
            batch_size=3,
            ranks=Alone(rank, world_size, cpu, others, ([],)),
        )
        values = [(each.n, each.loss, each.metric, each.n_steps) for each in (found, one)]
        assert values[0] == pytest.approx(values[1], rel=1e-9)


def test_a_batch_on_its_own_device_is_left_alone() -> None:
    batch = Batch(torch.zeros(2), torch.zeros(2))
    assert batch.to(torch.device("cpu")) is batch
    moved = batch._replace(t=torch.ones(3)).to(torch.device("meta"))
    assert [part.device.type for part in moved if part is not None] == ["meta", "meta", "cpu"]
