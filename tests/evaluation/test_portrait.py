"""The arrays behind phase portraits and pictures of time series."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.problems import PROBLEMS, TanhField, states
from trueode.data import Split
from trueode.evaluation import density_portrait, get_task, phase_portrait, series_portrait
from trueode.evaluation.portrait import GRID, SAMPLES, TIMES
from trueode.fields import SequentialField
from trueode.models import ContinuousFlow, NeuralODE
from trueode.solvers import Adaptive, FixedStep, Solver, solve

LINEAR = PROBLEMS[0]
SHARED = torch.tensor([0.0, 0.5, 1.0, 1.5], dtype=torch.float64)


def classifier(solver: Solver, t: tuple[float, float] = (0.5, 2.0)) -> NeuralODE:
    torch.manual_seed(0)
    return NeuralODE(TanhField(), nn.Linear(2, 2).double(), nn.Linear(2, 3).double(), solver, t)


def samples(n: int) -> Split:
    return Split(states(n), torch.arange(n) % 3)


@pytest.mark.parametrize(
    ("solver", "times"),
    [
        (FixedStep("euler", n_steps=6), 7),
        (FixedStep("rk4", n_steps=TIMES - 1), TIMES),
        (FixedStep("euler", n_steps=1000), TIMES),
        (Adaptive("dopri5", 1e-4, 1e-4), None),
        (Adaptive("dopri5", 1e-4, 1e-4, per_sample=True), TIMES),
    ],
    ids=str,
)
def test_paths_lead_from_the_states_to_the_output(solver: Solver, times: int | None) -> None:
    model, split = classifier(solver), samples(9)
    found = phase_portrait(model, split, solver)
    assert found is not None
    assert times is None or len(found["times"]) == times
    assert found["paths"].shape == (len(found["times"]), 9, 2)
    assert found["output"].shape == (9, 2)
    assert found["labels"].tolist() == split.y.tolist()
    assert (found["times"][0], found["times"][-1]) == (0.5, 2.0)
    assert bool((np.diff(found["times"]) > 0).all())
    with torch.no_grad():
        z0 = model.upstream(split.x)
        logits = model(split.x, solver)
    np.testing.assert_allclose(found["paths"][0], z0.numpy())
    np.testing.assert_array_equal(found["paths"][-1], found["output"])
    np.testing.assert_allclose(
        found["output"], solve(model.field, z0, model.t, solver=solver).z.detach().numpy()
    )
    assert found["predictions"].tolist() == logits.argmax(1).tolist()
    assert found["accuracy"] == pytest.approx(float((logits.argmax(1) == split.y).double().mean()))
    assert found["solver"] == str(solver)


def test_regions_are_what_the_classifier_says_around_the_output() -> None:
    def quadrant(z: Tensor) -> Tensor:
        """Class 1 right of 0, class 2 right of 0 and above 0.1."""
        right = z[:, 0] > 0
        above = z[:, 1] > 0.1
        return torch.stack([~right, right & ~above, right & above], 1).double()

    solver = FixedStep("rk4", n_steps=4)
    model = NeuralODE(TanhField(), downstream=quadrant, solver=solver)
    found = phase_portrait(model.train(), samples(SAMPLES + 20), solver)
    assert (len(found["labels"]), found["paths"].shape, model.training) == (
        SAMPLES,
        (5, SAMPLES, 2),
        True,
    )
    x, y = found["grid_x"], found["grid_y"]
    assert found["regions"].shape == (len(y), len(x)) == (GRID, GRID)
    for axis, values in ((x, found["output"][:, 0]), (y, found["output"][:, 1])):
        width = values.max() - values.min()
        assert axis[0] == pytest.approx(values.min() - 0.15 * width, rel=1e-5)
        assert axis[-1] == pytest.approx(values.max() + 0.15 * width, rel=1e-5)
    expected = np.where(x[None, :] > 0, np.where(y[:, None] > 0.1, 2, 1), 0)
    away = (abs(x[None, :]) > 1e-6) & (abs(y[:, None] - 0.1) > 1e-6)
    np.testing.assert_array_equal(found["regions"][away], expected[away])


def test_there_is_none_unless_the_state_has_two_components_and_there_is_a_classifier() -> None:
    solver = FixedStep("euler", n_steps=2)
    labels = torch.zeros(4, dtype=torch.int64)
    for width in (1, 3):
        model = NeuralODE(lambda t, z: -z, downstream=nn.Identity(), solver=solver)
        assert phase_portrait(model, Split(torch.randn(4, width), labels), solver) is None
    assert (
        phase_portrait(NeuralODE(lambda t, z: -z), Split(torch.randn(4, 2), labels), solver) is None
    )
    lifted = NeuralODE(
        lambda t, z: -z, nn.Linear(2, 3), nn.Linear(3, 2)
    )  # the state counts, not the input
    assert phase_portrait(lifted, Split(torch.randn(4, 2), labels), solver) is None
    lowered = NeuralODE(lambda t, z: -z, nn.Linear(3, 2), nn.Linear(2, 2))
    assert phase_portrait(lowered, Split(torch.randn(4, 3), labels), solver) is not None


def exact(times: Tensor) -> Tensor:
    """``(samples, times, 2)``."""
    return torch.stack([LINEAR.exact(t) for t in times.tolist()], 1)


def test_series_with_times_of_their_own_are_predicted_at_all_of_them() -> None:
    nan = torch.nan
    own = torch.tensor([[0.5, 1.0, nan], [1.5, nan, nan], [0.0, 0.5, 1.5]], dtype=torch.float64)
    places = [[1, 2], [3], [0, 1, 3]]
    whole = exact(SHARED)
    y = torch.full((3, 3, 2), nan, dtype=torch.float64)
    for row, place in enumerate(places):
        y[row, : len(place)] = whole[row, place]
    solver = FixedStep("rk4", n_steps=64)
    model = NeuralODE(LINEAR.field, t=LINEAR.t)
    t, truth, predicted = series_portrait(
        model, Split(LINEAR.start, y, own), get_task("timeseries"), solver
    )
    np.testing.assert_array_equal(t, SHARED.numpy())
    np.testing.assert_allclose(predicted, whole.numpy(), rtol=1e-5, atol=1e-6)
    for row, place in enumerate(places):
        known = np.isin(np.arange(4), place)
        assert np.isnan(truth[row, ~known]).all()
        np.testing.assert_array_equal(truth[row, known], whole[row, place].numpy())


def test_a_density_is_shown_under_its_solver_and_under_the_exact_flow() -> None:
    """z' = A z: both densities are normal, with known factors."""
    layer = nn.Linear(2, 2, bias=False).double()
    matrix = torch.tensor([[-0.5, 2.0], [-2.0, -0.1]], dtype=torch.float64)
    layer.weight.data = matrix
    model, split = ContinuousFlow(SequentialField(layer), (1, 2)), samples(50)
    solver = FixedStep("euler", n_steps=2)
    split = Split(split.x[:, None], torch.empty(50, 0))
    found = density_portrait(model, split, solver)
    assert found is not None
    np.testing.assert_array_equal(found["data"], split.x[:, 0].numpy())
    x, y = np.meshgrid(found["grid_x"], found["grid_y"])
    points = torch.from_numpy(np.stack([x, y], axis=-1))
    for name, factor in (
        ("own", torch.linalg.matrix_power(torch.eye(2).double() + matrix / 2, 2)),
        ("exact", torch.linalg.matrix_exp(matrix)),
    ):
        part, change = found[name], float(matrix.trace())
        logs = -(points @ factor.T).square().sum(-1) / 2 - np.log(2 * np.pi) + change
        np.testing.assert_allclose(part["log_density"], logs.numpy(), rtol=1e-4, atol=1e-4)
        data = -(split.x[:, 0] @ factor.T).square().sum(-1) / 2 - np.log(2 * np.pi) + change
        assert part["mean"] == pytest.approx(float(data.mean()), rel=1e-4)
        cell = np.diff(found["grid_x"])[0] * np.diff(found["grid_y"])[0]
        assert part["mass"] == pytest.approx(np.exp(part["log_density"]).sum() * cell)
        assert part["samples"].shape == (50, 2)
    assert found["own"]["solver"] == str(solver)
    three = ContinuousFlow(lambda t, z: -z, (3,))
    assert density_portrait(three, Split(states(9, 3), torch.empty(9, 0)), solver) is None
