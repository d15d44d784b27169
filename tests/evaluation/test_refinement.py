"""Rows are refined, solved by implicit methods, or have no flow that can be computed."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from tests.evaluation.flows import NUMBERS, Given, Turn, circle, counted, logits, on, sides
from trueode.evaluation import implicit, stiff
from trueode.evaluation.flow import exact_flow
from trueode.evaluation.refinement import COARSEST, levels
from trueode.evaluation.runnable import ALL, Part
from trueode.evaluation.tasks import get_task
from trueode.solvers import Adaptive, FixedStep


def points(n: int, d: int = 2) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


class Relaxing(nn.Module):
    """A stiff relaxation to a slow component: ``x' = -rate (x - y)``, ``y' = y``."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.cat([-self.rate * (z[:, :1] - z[:, 1:]), z[:, 1:]], 1)


@pytest.mark.parametrize("rate", [1e5, 1e7])
def test_stiff_fields_are_solved_implicitly(rate: float) -> None:
    x = points(10)
    runnable = on(Relaxing(rate), x, task=NUMBERS, solver=FixedStep("euler", n_steps=10))
    exact = exact_flow(runnable, runnable.run())
    slow = x[:, 1] * math.e
    truth = torch.stack([slow * rate / (rate + 1), slow], 1)
    assert exact.converged
    assert not exact.blown_up.any()
    torch.testing.assert_close(exact.outputs, truth, rtol=1e-6, atol=1e-6)
    assert exact.width >= 0.01, "no witness has seen what rk4 cannot solve"


def test_stiff_rows_that_change_at_times_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A solve of all rows together would take more evaluations than an implicit solve may."""
    for module in (implicit, stiff):
        monkeypatch.setattr(module, "PATIENCE", 2200)
    x = points(60, 3)
    x[:, 2] = torch.linspace(0.1, 0.9, 60)

    def field(t: Tensor, z: Tensor) -> Tensor:
        step = torch.tanh(50 * (t - z[:, 2:]))
        return torch.cat([-1e6 * (z[:, :1] - step), z[:, :1], 0 * z[:, 2:]], 1)

    runnable = on(field, x, task=NUMBERS, solver=FixedStep("euler", n_steps=10))
    exact = exact_flow(runnable, runnable.run())
    assert bool(exact.settled.all())
    torch.testing.assert_close(exact.outputs[:, 1], x[:, 1] + 1 - 2 * x[:, 2], rtol=0, atol=1e-5)


def test_stiff_fields_of_many_numbers_stay_open() -> None:
    x = torch.cat([points(2, 50), points(2, 50)], 1)
    rate = torch.full((100,), 1e7, dtype=torch.float64)
    runnable = on(
        lambda t, z: -rate * (z - 1), x, task=NUMBERS, solver=FixedStep("euler", n_steps=10)
    )
    exact = exact_flow(runnable, runnable.run())
    assert not exact.settled.any()
    assert not exact.blown_up.any()


def test_predictions_that_move_with_the_start_are_not_settled() -> None:
    """For some rows, the head amplifies a change of 1e-9 of the start."""
    x = points(40).clamp(0.1, 1.0)
    x[:, 1] = torch.arange(40) % 2

    def head(z: Tensor) -> Tensor:
        fine = torch.where(z[:, 1] > 0.5, 1e10, 1.0)
        return torch.stack([torch.sin(fine * z[:, 0]), 0 * z[:, 0]], 1)

    def field(t: Tensor, z: Tensor) -> Tensor:
        return torch.stack([torch.ones_like(z[:, 0]), 0 * z[:, 1]], 1)

    _, exact, counts = counted(on(field, x, downstream=head, solver=FixedStep("rk4", n_steps=8)))
    fine = x[:, 1] > 0.5
    assert exact.sensitive is not None
    assert exact.sensitive[fine].any()
    assert not exact.sensitive[~fine].any()
    assert exact.settled[~fine].all()
    assert not (exact.settled[fine, 0] & exact.sensitive[fine]).any()
    assert "chaotic" in counts.trouble


def test_precision_of_the_model_is_enough_far_from_boundaries() -> None:
    x = circle(400)
    ran: list[bool] = []

    class Watched(type(on(Turn(), x))):
        def run(self, solver: object = None, part: Part = ALL) -> object:
            ran.extend([part.double] * (self.n if part.indices is None else len(part.indices)))
            return super().run(solver, part)

    made = on(Turn(), x, downstream=sides())
    runnable = Watched(made.model, made.samples, made.task, made.solver)
    single = exact_flow(runnable, runnable.run())
    assert sum(ran) < 0.2 * len(ran), "few were solved in double precision"
    double = on(Turn().double(), x.double(), downstream=sides().double())
    exact = exact_flow(double, double.run())
    assert torch.equal(single.settled, exact.settled)
    assert torch.equal(single.outputs.argmax(1), exact.outputs.argmax(1))


def test_predictions_near_rounding_are_settled_in_double_precision() -> None:
    """Single precision changes some classes at margins of 1e-6, double precision none."""
    x = torch.linspace(-1, 1, 400)[:, None] * 1e-6
    head = lambda z: torch.cat([1 + z, 1 - z], 1)  # noqa: E731
    runnable = on(lambda t, z: z, x, downstream=head, solver=FixedStep("rk4", n_steps=8))
    _, exact, counts = counted(runnable)
    assert exact.converged
    assert torch.equal(exact.outputs.argmax(1), (x[:, 0] < 0).long())
    assert counts.flips == 0


def test_methods_that_disagree_are_not_settled_by_implicit_ones() -> None:
    classes = torch.tensor([0, 1, 1, 0])
    exact = exact_flow(
        runnable := Given(logits(classes), logits(classes), logits(1 - classes)), runnable.run()
    )
    assert not exact.settled.any()


@pytest.mark.parametrize(("training", "order"), [(1, 1), (8, 4), (1500, 4)])
def test_many_steps_go_with_fine_tolerances(training: int, order: int) -> None:
    found = list(levels(training, order))
    assert found[0][1] == 1e-4
    for (steps, tolerance), (more, finer) in pairwise(found):
        assert more > 2 * steps
        assert finer <= tolerance
        assert finer <= max(1e-12, 1e-4 * 1e-2 ** int(math.log2(more / COARSEST) / 2))


@pytest.mark.parametrize("many", [1, 20])
def test_a_trajectory_under_an_input_that_jumps(many: int) -> None:
    """All rows jump at the same times; the true solution is piecewise exponential."""
    jumps = torch.linspace(0.71, 9.3, 7, dtype=torch.float64).tolist()
    times = torch.linspace(0, 10, many + 1, dtype=torch.float64)[1:]

    def field(t: Tensor, z: Tensor) -> Tensor:
        return (-1.0) ** sum(float(t) > jump for jump in jumps) - z

    z, truth = torch.tensor([0.4], dtype=torch.float64), list[Tensor]()
    for start, end in pairwise(sorted({0.0, *times.tolist(), *jumps})):
        sign = (-1.0) ** sum((start + end) / 2 > jump for jump in jumps)
        z = sign + (z - sign) * math.exp(start - end)
        truth += [z] if end in times else []
    y = torch.stack(truth)[None]
    task = get_task("timeseries", absolute=0.01)
    solver = Adaptive("dopri5", 1e-7, 1e-9)
    x = torch.tensor([[0.4]], dtype=torch.float64)
    runnable = on(field, x, y, times, task=task, solver=solver, end=10.0)
    exact = exact_flow(runnable, runnable.run())
    assert exact.converged
    torch.testing.assert_close(exact.outputs, y, rtol=0, atol=1e-3)
    assert exact.width <= 2 / 20_000
