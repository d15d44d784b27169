"""The slider: paths, planes, regions and numbers of a model under solvers from coarse to fine."""

from __future__ import annotations

import base64
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.problems import TanhField
from trueode import Adaptive, ContinuousFlow, FixedStep, NeuralODE, audit
from trueode.auditing.page import contents_of, slider_of
from trueode.data import Split
from trueode.errors import UsageError
from trueode.evaluation import ModelOnSamples, get_task
from trueode.evaluation.course import Course
from trueode.evaluation.runnable import Part
from trueode.fields import DenseField
from trueode.report import slider as module
from trueode.report.paths import Recorder, plane_of
from trueode.report.slider import Slider, ladder
from trueode.solvers import Solver

MATRIX = torch.tensor([[-0.5, 2.0], [-2.0, -0.1]], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine, too, nothing is left out."""
    monkeypatch.setattr(module, "SECONDS", math.inf)


def made(
    field: Any, width: int = 2, classes: int = 2, solver: Solver | None = None, n: int = 40
) -> ModelOnSamples:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Flatten(), nn.Linear(width, classes)).double()
    model = NeuralODE(field, None, head, solver or FixedStep("euler", n_steps=4))
    x = torch.randn(n, width, dtype=torch.float64)
    labels = torch.randint(classes, (n,))
    samples = Split(x, labels, dtype=torch.float64)
    return ModelOnSamples(model, samples, get_task("classification"), model.solver)


def rotation(t: Tensor, z: Tensor) -> Tensor:
    return z @ MATRIX.to(z).T


def judged(runnable: ModelOnSamples) -> Slider:
    return slider_of(audit(runnable.model, (runnable.samples.batch(torch.arange(40)).x,
                                            runnable.y), methods=()))  # fmt: skip


def paths_of(plain: dict[str, Any], stop: int) -> NDArray[Any]:
    flat = np.frombuffer(base64.b64decode(plain["paths"][stop]), dtype="<f4")
    return flat.reshape(plain["n_paths"], plain["n_points"][stop], 2)


def record(runnable: ModelOnSamples, solver: Solver, points: int = 65) -> tuple[Tensor, Tensor]:
    recorder = Recorder(Course(), points)
    runnable.run(solver, Part(torch.arange(runnable.n), whole=True, solving=recorder))
    assert recorder.paths is not None
    return recorder.paths


@pytest.mark.parametrize("n_steps", [3, 100])
def test_paths_of_euler_are_powers_of_its_matrix(n_steps: int) -> None:
    runnable = made(rotation)
    times, states = record(runnable, FixedStep("euler", n_steps=n_steps))
    assert len(times) == min(n_steps + 1, 65)
    step = torch.eye(2, dtype=torch.float64) + MATRIX / n_steps
    for t, state in zip(times, states, strict=True):
        exact = runnable.inputs @ torch.linalg.matrix_power(step, round(float(t) * n_steps)).T
        torch.testing.assert_close(state, exact)


def test_paths_of_a_fine_solver_are_those_of_the_flow() -> None:
    runnable = made(rotation)
    times, states = record(runnable, Adaptive("dopri5", 1e-10, 1e-10))
    exact = torch.stack([runnable.inputs @ torch.linalg.matrix_exp(MATRIX * t).T for t in times])
    torch.testing.assert_close(states, exact, rtol=1e-7, atol=1e-7)


def test_paths_end_where_the_model_does() -> None:
    runnable = made(TanhField())
    for solver in ladder(runnable.run()):
        ends = record(runnable, solver)[1][-1]
        torch.testing.assert_close(ends, runnable.run(solver).states)


def test_the_ladder_doubles_steps_and_refines_tolerances() -> None:
    own = made(rotation, solver=FixedStep("rk4", n_steps=6)).run()
    assert [solver.n_steps for solver in ladder(own)] == [1, 2, 4, 8, 16]  # type: ignore[union-attr]
    own = made(rotation, solver=FixedStep("rk4", n_steps=40)).run()
    assert [solver.n_steps for solver in ladder(own)] == [2**k for k in range(8)]  # type: ignore[union-attr]
    own = made(rotation, solver=Adaptive("bosh3", 1e-3, 1e-3)).run()
    tolerances = [solver.rtol for solver in ladder(own)]  # type: ignore[union-attr]
    assert tolerances == pytest.approx([10.0**-k for k in range(1, 7)])
    assert all(solver.name == "bosh3" for solver in ladder(own))


@pytest.mark.parametrize("solver", [FixedStep("euler", n_steps=6), Adaptive("bosh3", 2e-3, 2e-3)])
def test_stops_go_from_coarse_to_fine_with_the_training_solver_among_them(solver: Solver) -> None:
    slider = judged(made(TanhField(), solver=solver))
    stops = slider.plain["stops"]
    assert [stop["mark"] for stop in stops if stop["mark"]] == ["training", "exact"]
    costs = [stop["nfe"] for stop in stops[:-1]]
    assert costs == sorted(costs)
    training = next(k for k, stop in enumerate(stops) if stop["mark"] == "training")
    assert slider.plain["changed"][training] == []
    assert len(set(map(len, slider.plain["predicted"]))) == 1
    assert stops[-1]["flips"] == 0


def test_numbers_are_those_of_an_independent_count() -> None:
    runnable = made(TanhField(), solver=FixedStep("euler", n_steps=1))
    slider = judged(runnable)
    exact = runnable.run(Adaptive("dopri5", 1e-12, 1e-12)).outputs.argmax(1)
    own = runnable.run().outputs.argmax(1)
    for stop, predicted, changed in zip(
        slider.plain["stops"], slider.plain["predicted"], slider.plain["changed"], strict=True
    ):
        found = torch.tensor(predicted)
        assert stop["flips"] == pytest.approx(float((found != exact).double().mean()))
        assert stop["accuracy"] == pytest.approx(float((found == runnable.y).double().mean()))
        assert changed == (found != own).nonzero()[:, 0].tolist()


def test_regions_are_the_predictions_of_their_points() -> None:
    runnable = made(rotation)
    slider = judged(runnable)
    regions = slider.plain["regions"]
    width, height = regions["width"], regions["height"]
    x0, x1, y0, y1 = regions["bounds"]
    x, y = torch.linspace(x0, x1, width), torch.linspace(y0, y1, height)
    rows = [(0, 0), (17, 93), (height - 1, width // 2)]
    points = torch.stack([torch.stack([x[j], y[i]]) for i, j in rows]).double()
    step = torch.linalg.matrix_power(torch.eye(2, dtype=torch.float64) + MATRIX / 4, 4)
    expected = runnable.model.downstream(points @ step.T).argmax(1)  # type: ignore[misc]
    training = next(k for k, s in enumerate(slider.plain["stops"]) if s["mark"] == "training")
    drawn = np.frombuffer(base64.b64decode(regions["maps"][training]), dtype=np.uint8)
    drawn = drawn.reshape(height, width)
    assert [int(drawn[i, j]) for i, j in rows] == expected.tolist()


def test_shades_of_a_density_are_relative_to_the_exact_one() -> None:
    torch.manual_seed(0)
    flow = ContinuousFlow(
        DenseField(2, 16, "tanh", True), (2,), solver=FixedStep("euler", n_steps=2)
    )
    slider = slider_of(audit(flow, (torch.randn(120, 2),), methods=(), task="density"))
    regions, stops = slider.plain["regions"], slider.stops
    assert regions["shaded"]
    x0, x1, y0, y1 = regions["bounds"]
    x, y = torch.linspace(x0, x1, regions["width"]), torch.linspace(y0, y1, regions["height"])
    points = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], -1).view(-1, 2)

    def density(stop: int) -> Tensor:
        with torch.no_grad():
            found: Tensor = flow(points, stops[stop].solver)
        return found

    most = density(-1).max()
    for k in range(len(stops)):
        drawn = torch.tensor(np.frombuffer(base64.b64decode(regions["maps"][k]), dtype=np.uint8))
        expected = 255 * (density(k) - most).exp().clamp(max=1)
        assert float((drawn - expected).abs().max()) <= 1.01


def test_the_plane_of_two_classes_separates_them_as_the_head_does() -> None:
    runnable = made(lambda t, z: z.tanh(), width=7)
    own = runnable.run()
    assert own.states is not None
    plane = plane_of(runnable, own.states, own.outputs)
    assert plane.directions is not None
    torch.testing.assert_close(plane.directions.T @ plane.directions, torch.eye(2).double())
    head = runnable.model.downstream[1]  # type: ignore[index]
    shown = plane.of(torch.zeros(1), own.states[None])[0, :, 0]
    normal = (head.weight[1] - head.weight[0]) @ plane.directions[:, 0]
    margin = shown * normal + head.bias[1] - head.bias[0]
    torch.testing.assert_close(margin, own.outputs[:, 1] - own.outputs[:, 0])


def test_the_plane_of_three_classes_keeps_all_margins() -> None:
    runnable = made(lambda t, z: z.tanh(), width=7, classes=3)
    own = runnable.run()
    assert own.states is not None
    plane = plane_of(runnable, own.states, own.outputs)
    shown = plane.of(torch.zeros(1), own.states[None])[0]
    head = runnable.model.downstream[1]  # type: ignore[index]
    weights = head.weight - head.weight.mean(0)
    logits = shown @ (weights @ plane.directions).T + head.bias
    torch.testing.assert_close(logits.diff(dim=1), own.outputs.diff(dim=1))


def test_the_head_of_a_foreign_model_is_found_from_its_outputs() -> None:
    runnable = made(lambda t, z: z.tanh(), width=5, classes=3)
    own = runnable.run()
    assert own.states is not None
    known = plane_of(runnable, own.states, own.outputs).directions
    runnable.model.downstream = None
    found = plane_of(runnable, own.states, own.outputs).directions
    assert known is not None
    assert found is not None
    torch.testing.assert_close(found @ found.T, known @ known.T)


def test_without_a_linear_head_the_plane_is_that_of_the_largest_spread() -> None:
    runnable = made(lambda t, z: 0 * z, width=6)
    runnable.model.downstream = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    stretched = torch.diag(torch.tensor([0.1, 5.0, 0.2, 0.1, 3.0, 0.1], dtype=torch.float64))
    states = runnable.inputs @ stretched
    directions = plane_of(runnable, states, states[:, :2]).directions
    assert directions is not None
    assert directions[[1, 4]].square().sum() == pytest.approx(2, abs=0.05)


def test_states_of_one_number_are_drawn_over_time() -> None:
    slider = judged(made(lambda t, z: -z, width=1))
    drawn = paths_of(slider.plain, 0)
    np.testing.assert_allclose(drawn[:, :, 0], np.broadcast_to([0, 1], drawn.shape[:2]))
    assert slider.plain["plane"]["labels"][0] == "time"


def test_time_series_have_lines_over_time_instead_of_paths() -> None:
    torch.manual_seed(0)
    model = NeuralODE(TanhField(), solver=FixedStep("rk4", n_steps=4))
    x, t = torch.randn(30, 2, dtype=torch.float64), torch.linspace(0, 1, 7, dtype=torch.float64)
    with torch.no_grad():
        y = model(x, FixedStep("rk4", n_steps=200), save_at=t).transpose(0, 1)
    own_times = t.expand(30, -1).clone()
    own_times[::2, -1] = torch.nan
    y[::2, -1] = torch.nan
    for times in (t, own_times):
        found = audit(model, (x, y, times), task="timeseries", methods=())
        plain = slider_of(found).plain
        series = plain["series"]
        assert plain["paths"] is None
        np.testing.assert_allclose(series["t"], t)
        truth = np.array(series["measured"], dtype=float)
        exact = np.array(series["exact"], dtype=float)
        assert np.nanmax(np.abs(truth - exact)) < 1e-4
        assert len(series["lines"]) == len(plain["stops"])
        assert np.array(series["lines"]).shape[1:] == truth.shape == (4, 7)


def test_a_foreign_model_has_a_slider_and_is_left_as_it_was() -> None:
    torchdiffeq = pytest.importorskip("torchdiffeq")

    class Foreign(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.field, self.head = TanhField(), nn.Linear(2, 2).double()

        def forward(self, x: Tensor) -> Tensor:
            t = torch.tensor([0.0, 1.0], dtype=torch.float64)
            out = torchdiffeq.odeint(self.field, x, t, method="euler", options={"step_size": 0.25})
            return self.head(out[-1])

    torch.manual_seed(0)
    model = Foreign()
    x = torch.randn(60, 2, dtype=torch.float64)
    found = audit(model, (x, (x[:, 0] > 0).long()), methods=())
    slider = slider_of(found)
    assert model.training
    with torch.no_grad():
        assert slider.plain["predicted"][2] == model(x).argmax(1).tolist()
    assert slider.plain["stops"][2]["mark"] == "training"
    assert slider.plain["stops"][2]["accuracy"] == pytest.approx(found.metric)
    assert slider.plain["regions"] is not None


def test_weights_that_changed_are_refused(tmp_path: Any) -> None:
    runnable = made(TanhField())
    found = audit(runnable.model, (runnable.inputs, runnable.y), methods=())
    with torch.no_grad():
        runnable.model.downstream[1].weight += 1  # type: ignore[index]
    with pytest.raises(UsageError, match="changed"):
        slider_of(found)
    contents = contents_of(tmp_path, found)
    assert contents["slider"] is None
    assert any(fact["code"] for fact in contents["facts"])
    with pytest.raises(UsageError):
        slider_of(replace(found, subject=None))


class _Twice(nn.Module):
    """Two ODE blocks, each of which must stop at half of its time."""

    def __init__(self, first: str) -> None:
        super().__init__()
        self.fields = nn.ModuleList([TanhField(0), TanhField(1)])
        self.methods = first, "rk4"

    def forward(self, x: Tensor) -> Tensor:
        torchdiffeq = pytest.importorskip("torchdiffeq")
        for field, method in zip(self.fields, self.methods, strict=True):
            x = torchdiffeq.odeint(field, x, torch.linspace(0, 1, 3).to(x), method=method)[-1]
        return x


class _Stopping(nn.Module):
    """A flow that must stop at thirds of its time."""

    def __init__(self) -> None:
        super().__init__()
        self.field = TanhField()

    def forward(self, x: Tensor) -> Tensor:
        torchdiffeq = pytest.importorskip("torchdiffeq")
        times = torch.linspace(0, 1, 4, dtype=torch.float64)
        states: Tensor = torchdiffeq.odeint(self.field, x, times, method="euler")
        return states[-1]


def test_paths_take_the_steps_of_their_solver_between_given_times() -> None:
    pytest.importorskip("torchdiffeq")
    torch.manual_seed(0)
    x = torch.randn(40, 2, dtype=torch.float64)
    slider = slider_of(audit(_Stopping(), (x, torch.randint(2, (40,))), methods=()))
    for k, stop in enumerate(slider.stops[:-1]):
        ends = torch.tensor(paths_of(slider.plain, k)[:, -1])
        torch.testing.assert_close(ends, stop.outputs.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("first", ["rk4", "euler"])
def test_each_solver_has_one_stop(first: str) -> None:
    pytest.importorskip("torchdiffeq")
    torch.manual_seed(0)
    model, x = _Twice(first).eval(), torch.randn(40, 2, dtype=torch.float64)
    plain = slider_of(audit(model, (x, torch.randint(2, (40,))), methods=())).plain
    labels = [stop["label"] for stop in plain["stops"]]
    assert len(set(labels)) == len(labels)
    assert [stop["mark"] for stop in plain["stops"]].count("training") == 1
