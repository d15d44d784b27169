"""The exact flow, on which two methods agree."""

from __future__ import annotations

import sys
from itertools import islice, pairwise

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from tests.evaluation.flows import (
    CLASSES,
    NUMBERS,
    SERIES,
    Given,
    Turn,
    counted,
    logits,
    on,
    sides,
    turned,
)
from tests.problems import PROBLEMS, states
from trueode.evaluation import ExactFlow, Runnable, exact_flow, finer_solver
from trueode.evaluation.course import FINEST
from trueode.evaluation.flow import PRECISE, least_cost
from trueode.evaluation.refinement import levels
from trueode.solvers import FixedStep

LINEAR = PROBLEMS[0]


def flow(runnable: Runnable, **how: float) -> ExactFlow:
    return exact_flow(runnable, runnable.run(), **how)


@pytest.mark.parametrize("batch_size", [1, 2, 256])
def test_a_linear_field_is_the_matrix_exponential(batch_size: int) -> None:
    found = flow(
        on(LINEAR.field, LINEAR.start, task=NUMBERS, end=LINEAR.t[1], batch_size=batch_size),
        level=PRECISE,
    )
    expected = LINEAR.exact(LINEAR.t[1])
    torch.testing.assert_close(found.outputs, expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found.states, expected, rtol=1e-7, atol=1e-7)
    assert found.outputs.dtype == torch.float64
    assert found.settled.tolist() == [[True]] * 3
    assert (found.complete, found.converged) == (True, True)
    assert found.floor < 1e-6


def test_a_relu_field_is_that_of_scipy() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2)).double()
    x = states(12)
    found = flow(on(lambda t, z: 3 * net(z), x, task=NUMBERS))

    def field(t: float, z: Tensor) -> Tensor:
        with torch.no_grad():
            return 3 * net(torch.as_tensor(z)).numpy()

    exact = torch.stack(
        [torch.as_tensor(solve_ivp(field, (0, 1), z, rtol=1e-9, atol=1e-9).y[:, -1]) for z in x]
    )
    assert bool(found.settled.all())
    assert bool(((found.outputs - exact).abs() <= 0.1 * found.allowed).all())


@pytest.mark.parametrize("training", [1, 2, 3, 5, 7, 8.2, 17, 35, 100, 1000])
@pytest.mark.parametrize("order", [1, 3, 4, 5])
def test_steps_are_no_multiples_of_the_trainings(training: float, order: int) -> None:
    """Common grid points hide common errors; a method of the same order needs a margin."""
    steps, tolerances = zip(*levels(training, order, True, 0), strict=True)
    assert steps[0] == next(levels(training, order))[0] >= (4 * training if order >= 4 else 17)
    assert all(b >= 2 * a for a, b in pairwise(steps))
    assert all(b <= a for a, b in pairwise(tolerances))
    assert steps[-1] >= FINEST / 2.1
    if training > 1:
        assert all(n % -(-training // 1) for n in steps)
    assert next(islice(levels(training, order, True, 2), 1)) == (steps[2], tolerances[2])


def spin(t: Tensor, z: Tensor) -> Tensor:
    """The first two components turn at a speed given by the third."""
    return z[:, 2:] * torch.stack([-z[:, 1], z[:, 0], 0 * z[:, 0]], 1)


def test_only_what_has_not_settled_is_refined() -> None:
    x = torch.tensor(
        [[1.0, 0.0, 0.1], [0.0, 1.0, 0.1], [1.0, 0.0, 4.0], [1.0, 1.0, 4.0]], dtype=torch.float64
    )
    seen = []

    def field(t: Tensor, z: Tensor) -> Tensor:
        seen.append(len(z))
        return 5 * spin(t, z)

    runnable = on(field, x, task=NUMBERS)
    own = runnable.run()
    seen.clear()
    found = exact_flow(runnable, own)
    assert bool(found.settled.all())
    assert sum(seen) <= found.evaluations < 1.01 * sum(seen)
    assert found.evaluations > 2 * least_cost(1, 1)
    assert found.n_steps > 71
    assert sum(n == 2 for n in seen) > 4 * 71
    a = 5 * x[:, 2]
    exact = torch.stack(
        [x[:, 0] * a.cos() - x[:, 1] * a.sin(), x[:, 0] * a.sin() + x[:, 1] * a.cos(), x[:, 2]], 1
    )
    torch.testing.assert_close(found.outputs, exact, rtol=0, atol=1e-3)


def test_a_budget_that_is_too_small_leaves_samples_unresolved() -> None:
    runnable = on(Turn(40.0), states(6).float(), task=NUMBERS)
    plenty, (_, found, counts) = flow(runnable), counted(runnable, budget=6 * 200.0)
    assert (plenty.complete, plenty.converged) == (True, True)
    assert (found.complete, bool(found.settled.any()), found.disagreeing) == (False, False, 6)
    assert (counts.changed, counts.unresolved) == (0, 6)
    assert "budget" in counts.trouble


def test_on_the_boundary_nothing_settles_and_close_to_it_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error of logits must be below a share of their margin."""
    monkeypatch.setattr(sys.modules["trueode.evaluation.refinement"], "FINEST", 600)
    ends = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1e-8, 1.0]], dtype=torch.float64)
    found = flow(on(Turn().double(), turned(ends, -2.0), downstream=sides().double()))
    assert found.settled.tolist() == [[True], [False], [True]]
    assert (found.complete, found.n_steps) == (True, 575)
    assert float(found.outputs[2, 0]) == pytest.approx(1e-8, rel=0.2)


def test_nothing_settles_where_the_methods_disagree() -> None:
    classes = torch.tensor([0, 1, 1, 0])
    for other in (1 - classes, torch.tensor([1, 1, 1, 0])):
        runnable = Given(logits(classes), logits(classes), logits(other))
        _, found, counts = counted(runnable)
        assert found.settled[:, 0].tolist() == (classes == other).tolist()
        assert found.complete
        assert (counts.changed, counts.unresolved) == (0, int((classes != other).sum()))
    # the same class, but logits that differ by a tenth of the margin
    found = flow(Given(logits(classes), logits(classes), 1.11 * logits(classes)))
    assert not bool(found.settled.any())


def square(t: Tensor, z: Tensor) -> Tensor:
    """z' = z², with z(1) = z / (1 - z); solutions that start above 1 blow up before time 1."""
    return z * z


@pytest.mark.parametrize("batch_size", [1, 3, 256])
@pytest.mark.parametrize("task", [CLASSES, NUMBERS], ids=lambda task: task.name)
def test_what_blows_up_does_not_disturb_others(task: object, batch_size: int) -> None:
    x = torch.tensor([[-1.0], [5.0], [0.5], [3.0], [-0.2], [0.9]], dtype=torch.float64)
    good = torch.tensor([0, 2, 4, 5])
    how = {
        "task": task,
        "downstream": (lambda z: torch.cat([z, -z], 1)) if task is CLASSES else None,
    }
    _, found, counts = counted(on(square, x, batch_size=batch_size, **how))
    alone = flow(on(square, x[good], **how))
    assert found.blown_up.tolist() == [False, True, False, True, False, False]
    assert found.settled[:, 0].tolist() == (~found.blown_up).tolist()
    assert (found.complete, found.converged) == (True, True)
    torch.testing.assert_close(found.outputs[good], alone.outputs, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found.outputs[good, :1], x[good] / (1 - x[good]), rtol=2e-3, atol=0)
    assert (counts.blown_up, counts.unresolved) == (2, 0)


def test_a_blow_up_close_to_the_end_takes_no_others_along() -> None:
    """rk4 steps over it, and dopri5 fails."""
    x = torch.tensor([[-1.0], [1.00001], [0.5]], dtype=torch.float64)
    found = flow(on(square, x, downstream=lambda z: torch.cat([z, -z], 1)), budget=3000.0)
    assert found.settled[:, 0].tolist() == [True, False, True]


def test_explicit_instability_is_no_blow_up() -> None:
    """rk4 with 71 steps overflows; dopri5 does not, alone or with samples that blow up."""

    def field(t: Tensor, z: Tensor) -> Tensor:
        stiff, blows = z[:, 1:], z[:, :1]
        return torch.cat([blows * blows, -2000 * stiff], 1)

    x = torch.tensor(
        [[-1.0, 1.0], [-1.0, 2.0], [1.05, 0.0], [1.3, 0.0], [5.0, 0.0]], dtype=torch.float64
    )
    for start in (x[:1], x):
        found = flow(on(field, start, downstream=lambda z: torch.cat([z[:, :1], -z[:, :1]], 1)))
        assert found.blown_up.tolist() == (start[:, 0] > 1).tolist()
        assert found.settled[:, 0].tolist() == (~found.blown_up).tolist()


def test_time_series_at_shared_and_at_own_times() -> None:
    nan = torch.nan
    shared = torch.tensor([0.0, 0.7, 1.5], dtype=torch.float64)
    exact = torch.stack([LINEAR.exact(t) for t in shared.tolist()], 1)
    how = {"task": SERIES, "end": 1.5, "solver": FixedStep("rk4", n_steps=64)}
    for times in (shared, shared.float()):
        found = flow(on(LINEAR.field, LINEAR.start, exact, times, **how))
        torch.testing.assert_close(found.outputs, exact, rtol=0, atol=1e-3)
    own = torch.tensor([[0.7, nan], [0.0, 1.5], [1.5, nan]], dtype=torch.float64)
    truth = torch.full((3, 2, 2), nan, dtype=torch.float64)
    truth[0, 0], truth[1], truth[2, 0] = exact[0, 1], exact[1, [0, 2]], exact[2, 2]
    _, found, counts = counted(on(LINEAR.field, LINEAR.start, truth, own, batch_size=2, **how))
    assert bool(found.settled.all())
    torch.testing.assert_close(found.outputs, truth, rtol=0, atol=1e-3, equal_nan=True)
    assert (counts.flips, counts.unresolved) == (0, 0)


def test_a_sample_is_refined_for_the_predictions_that_count() -> None:
    """The second pixel, on the class boundary, does not count."""
    outputs = torch.stack([torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]])], 1).double()
    for counts, steps in (([True, False], 35), ([False, True], 4607)):
        found = flow(Given(outputs, outputs, mask=torch.tensor([counts])))
        assert found.settled.tolist() == [[True, False]]
        assert found.n_steps == steps


def test_what_is_referred_to_in_training_is_finer() -> None:
    for method, n_steps, expected in (
        ("euler", 100, 100),
        ("midpoint", 3, 16),
        ("rk4", 20, 40),
        ("dopri5", 9.5, 20),
    ):
        assert finer_solver(FixedStep(method, n_steps=1), n_steps) == FixedStep(
            "rk4", n_steps=expected
        )
