"""Features of a field that both methods step over are found, located and resolved."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tests.evaluation.flows import CLASSES, SERIES, Turn, counted, on
from trueode.evaluation import defects, get_task, witness
from trueode.evaluation.course import Course, Feature, Takes
from trueode.evaluation.defects import Rk4, Step, hermite
from trueode.evaluation.runnable import Part
from trueode.evaluation.witness import Witnessed
from trueode.fields import ConvField, DenseField
from trueode.fields.divergence import Divergence
from trueode.solvers import FixedStep
from trueode.solvers.backends import native
from trueode.solvers.problem import Problem

N = 400
SIGNS = torch.tensor([[1.0, -1.0]], dtype=torch.float64)


def points(n: int = N) -> Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def bump(t: Tensor, at: float | Tensor, width: float) -> Tensor:
    """An impulse of size 1."""
    return torch.exp(-(((t - at) / width) ** 2)) / (width * math.sqrt(math.pi))


def kicked(width: float, at: float, *, clock: bool) -> object:
    """A field that adds the second component to the first during a short impulse.

    The time of the impulse is that of the solve or, with ``clock``, a state.
    """

    def field(t: Tensor, z: Tensor) -> Tensor:
        now = z[:, 2:] if clock else t
        kick = 2 * bump(now, at, width) * z[:, 1:2] + 0 * z[:, :1]
        return torch.cat([kick, torch.zeros_like(kick), torch.ones_like(kick)], 1)

    return field


def plain(field: object) -> object:
    """The same field, which accepts only a number as its time."""
    return lambda t, z: field(torch.tensor(float(t)), z)


@pytest.mark.parametrize("kind", ["tensor", "number", "clock"])
@pytest.mark.parametrize(
    ("width", "at"), [(1e-1, 0.4), (1e-2, 0.613), (1e-3, 0.287), (2e-4, 0.731)]
)
def test_an_impulse_that_all_methods_step_over_is_found(width: float, at: float, kind: str) -> None:
    x = points()
    x[:, 2] = 0.0
    outputs = lambda z: torch.stack([z[:, 0], -z[:, 0]], 1)  # noqa: E731
    field = kicked(width, at, clock=kind == "clock")
    runnable = on(plain(field) if kind == "number" else field, x, downstream=outputs, task=CLASSES)
    _, exact, counts = counted(runnable)
    truth = x[:, 0] + x[:, 1] * (math.erf((1 - at) / width) + math.erf(at / width))
    assert counts.unresolved <= 0.01 * N
    torch.testing.assert_close(exact.outputs[:, 0], truth, rtol=0.1, atol=0.05)
    flips = int(((truth > 0) != (runnable.run().outputs[:, 0] > 0)).sum())
    assert counts.flips <= flips <= counts.flips + counts.unresolved
    assert exact.width <= (5.1e-4 if kind == "number" else 1e-4)


@pytest.mark.parametrize("away", [4, 6, 8, 10, 12, 16])
@pytest.mark.parametrize("side", [-1, 1])
def test_an_impulse_near_the_end_of_a_step_is_found(away: int, side: int) -> None:
    """Its width is a tenth of the way to that end: too wide for a jump, but no smooth error."""
    width, x = 1e-3, points()
    x[:, 2] = 0.0
    offset = Witnessed(Course(), 33, 0, torch.arange(N)).offset
    at = (10 + offset) / 32 + side * away * width  # rk4 takes 33 steps, the first and last shorter
    _, exact, counts = counted(
        on(kicked(width, at, clock=False), x, downstream=lambda z: z[:, :1] * SIGNS, task=CLASSES)
    )
    assert counts.unresolved == 0
    torch.testing.assert_close(exact.outputs[:, 0], x[:, 0] + 2 * x[:, 1], rtol=0.1, atol=0.05)


def test_an_impulse_in_images_is_found() -> None:
    """Their states have another memory layout than tensors of other shapes."""
    x = torch.randn(N, 2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def field(t: Tensor, z: Tensor) -> Tensor:
        kick = 2 * bump(t, 0.613, 1e-2) * z[:, 1:] + 0 * z[:, :1]
        return torch.cat([kick, torch.zeros_like(kick)], 1)

    def outputs(z: Tensor) -> Tensor:
        total = z[:, 0].sum((1, 2))
        return torch.stack([total, -total], 1)

    exact = counted(on(field, x, downstream=outputs, task=CLASSES))[1]
    assert bool(exact.settled.all())
    truth = (x[:, 0] + 2 * x[:, 1]).sum((1, 2))
    torch.testing.assert_close(exact.outputs[:, 0], truth, rtol=0.1, atol=0.05)
    assert any(exact.course.features.values())


@pytest.mark.parametrize("share", [0.05, 1.0])
def test_impulses_at_times_of_their_own_are_found(share: float) -> None:
    x = points()
    x[:, 2] = 0.05 + 0.9 * torch.rand(
        N, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    hit = torch.arange(N) < share * N

    def field(t: Tensor, z: Tensor) -> Tensor:
        kick = 3 * bump(t, z[:, 2:], 3e-3) * z[:, 1:2]
        return torch.cat([kick, torch.zeros_like(z[:, 1:])], 1)

    x[~hit, 1] = 0.0
    counts = counted(on(field, x, downstream=lambda z: torch.stack([z[:, 0], -z[:, 0]], 1)))[2]
    truth = int((((x[:, 0] + 3 * x[:, 1]) > 0) != (x[:, 0] > 0)).sum())
    assert counts.flips + counts.unresolved >= 0.8 * truth


def test_jumps_of_a_field_are_located() -> None:
    places = (0.2371, 0.7113)

    def field(t: Tensor, z: Tensor) -> Tensor:
        return z * (3.0 if places[0] < float(t) < places[1] else -3.0)

    exact = counted(on(field, points(), task=get_task("regression", tolerance=1e-6)))[1]
    assert bool(exact.settled.all())
    found = sorted(each.start for each in exact.course.features[0] if each.jumps)
    torch.testing.assert_close(found, list(places), rtol=0, atol=1e-6)
    growth = math.exp(3 * (2 * (places[1] - places[0]) - 1))
    torch.testing.assert_close(exact.outputs, growth * points(), rtol=1e-6, atol=0)


def test_smooth_fields_have_no_features() -> None:
    exact = counted(
        on(Turn(9.0).double(), points()[:, :2], task=get_task("regression", tolerance=1e-7))
    )[1]
    assert bool(exact.settled.all())
    assert not any(exact.course.features.values())


def test_what_a_field_takes_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    x = points()
    weight = x[:, :1]
    fields = {
        Takes.ROWS: lambda t, z: torch.cos(t) * z,
        Takes.TIMES: lambda t, z: torch.cos(t) * z * weight,
        Takes.PARTS: lambda t, z: math.cos(float(t)) * z,
        Takes.ONE: lambda t, z: math.cos(float(t)) * z * torch.sign(weight).abs(),
    }
    looked = {
        Takes.ROWS: 10 * N,
        Takes.TIMES: 10 * N,
        Takes.PARTS: 10 * N // 2,  # two parts of 2000
        Takes.ONE: 10,
    }
    monkeypatch.setattr(witness, "CALLS", 2000)
    flows = {}
    for takes, field in fields.items():
        runnable, course = on(field, x, batch_size=N), Course()
        solving = Witnessed(course, 17, 0, torch.arange(N), sampled=10)
        flows[takes] = runnable.run(
            FixedStep("rk4", n_steps=17), Part(torch.arange(N), solving=solving)
        ).outputs
        assert course.takes == {0: takes}
        assert solving.times == looked[takes]
    for takes in (Takes.PARTS, Takes.ONE):
        torch.testing.assert_close(flows[Takes.ROWS], flows[takes])


@pytest.mark.parametrize("how", ["ROWS", "TIMES", "PARTS", "ONE"])
def test_defects_do_not_depend_on_what_a_field_takes(how: str) -> None:
    """Compare with the formula for rows at different times, some of them twice."""
    x = points(7)[:, :2]
    problem = Problem(
        lambda t, z: torch.cos(3 * t) * z, x, (1.0, 3.0), solver=FixedStep("rk4", n_steps=1)
    )
    course = Course(takes={0: Takes[how]})
    solve = Rk4(problem, True, set(), course, 0)
    (step,) = solve.steps([0.0, 1.0], slopes=True)
    rows, time = torch.tensor([2, 0, 2, 5]), torch.tensor([0.3, 0.3, 0.7, 0.9], dtype=torch.float64)
    states, slopes = step.at(rows, time)
    expected = slopes - 2.0 * torch.cos(3 * (1 + 2 * time))[:, None] * states
    torch.testing.assert_close(solve.defects(step, rows, time), expected)


@pytest.mark.skipif(not native.instruction_sets(), reason=native.describe())
@pytest.mark.parametrize("slopes", [False, True], ids=["states", "slopes"])
@pytest.mark.parametrize(
    ("field", "shape"),
    [
        (DenseField(3, 8, "tanh", True), (3,)),
        (ConvField(1, 4, 2, "silu"), (1, 5, 5)),
        (Divergence(DenseField(3, 8, "tanh", True), (3,)), (4,)),
    ],
    ids=["dense", "convolutions", "divergence"],
)
def test_the_compiled_kernel_takes_the_same_steps(
    field: nn.Module, shape: tuple[int, ...], slopes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    x = torch.randn(30, *shape, dtype=torch.float64)
    x[7] = math.inf
    problem = Problem(field.double(), x, (2.0, -1.0), solver=FixedStep("rk4", n_steps=1))
    grid = [0.0, 0.05, 0.3, 0.31, 0.8, 1.0]
    monkeypatch.setattr(defects, "KEPT", 2 * x.numel())  # in three parts

    def taken(kernel: str) -> tuple[list[Step], Rk4]:
        with native.using(kernel), torch.no_grad():
            solve = Rk4(problem, True, set(), Course(), 0)
            return list(solve.steps(grid, slopes=slopes)), solve

    found, solve = taken(native.instruction_sets()[0])
    expected, called = taken("off")
    kept = torch.arange(len(x)) != 7
    assert torch.equal(solve.ended, called.ended)
    assert solve.ended.isfinite().tolist() == (~kept).tolist()
    for one, other in zip(found, expected, strict=True):
        assert one[:3] == other[:3]
        for y, z in zip(one[3:], other[3:], strict=True):
            if slopes or y is one.before or y is one.after:
                torch.testing.assert_close(y[kept], z[kept], rtol=1e-11, atol=1e-11)


def test_a_defect_stays_from_its_time_on() -> None:
    """The same solves are repeated without calls of the field."""
    calls = 0

    def field(t: Tensor, z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.where(t > 0.55, 1.0, 0.0) * torch.ones_like(z)

    runnable = on(
        field, points()[:, :1], t=torch.linspace(0, 1, 5, dtype=torch.float64), task=SERIES
    )
    solving = Witnessed(Course(), 4, 0, torch.arange(N), sampled=20)
    part = Part(torch.arange(N), True, solving=solving)
    first = runnable.run(FixedStep("rk4", n_steps=4), part).outputs
    before = calls
    moved = runnable.run(
        FixedStep("rk4", n_steps=4), part._replace(solving=solving.moved())
    ).outputs
    assert calls == before
    assert torch.equal(first[:, :3], moved[:, :3])
    assert bool((first[:, 3:] != moved[:, 3:]).all())


def test_the_interpolation_is_that_of_cubics() -> None:
    theta = torch.linspace(0, 1, 7, dtype=torch.float64)
    cubic = lambda x: 1 + x - 3 * x**2 + 2 * x**3  # noqa: E731
    slope = lambda x: 1 - 6 * x + 6 * x**2  # noqa: E731
    ends = (
        f(torch.full((7, 1), x, dtype=torch.float64)) for f in (cubic, slope) for x in (0.0, 1.0)
    )
    state, derivative = hermite(theta, *ends)
    torch.testing.assert_close(state[:, 0], cubic(theta))
    torch.testing.assert_close(derivative[:, 0], slope(theta))


def test_steps_grow_away_from_a_feature() -> None:
    feature = Feature(0.5, 0.502, ((0.5, 0.501), (0.501, 0.502)), 0.05)
    course = Course()
    assert course.add(0, [feature])
    assert not course.add(0, [feature])
    marks = course.marks(0, [0.5])
    assert 0.5 not in marks
    assert all(0 < mark < 1 for mark in marks)
    widths = torch.tensor([0.502, *(mark for mark in marks if mark > 0.502)]).diff()
    assert float(widths.max()) < 0.05
    assert bool((widths[1:] <= 2.1 * widths[:-1]).all())
