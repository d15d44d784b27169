"""The exact flow."""

from __future__ import annotations

from collections.abc import Callable
from math import pi

import pytest
import torch
from torch import Tensor, nn

from tests.problems import PROBLEMS, TanhField, states
from trueode.data import Split
from trueode.evaluation import exact_flow, get_task
from trueode.evaluation.reference import FINEST, first_steps, least_cost
from trueode.models import NeuralODE
from trueode.solvers import FixedStep

CLASSES, NUMBERS, SERIES = get_task("classification"), get_task("regression"), get_task("timeseries")
LINEAR = PROBLEMS[0]


class Counted:
    """A field that counts the samples that it is called with."""

    def __init__(self, field: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.field, self.samples = field, 0

    def __call__(self, t: Tensor, z: Tensor) -> Tensor:
        self.samples += len(z)
        return self.field(t, z)

    def __deepcopy__(self, memo: object) -> Counted:
        return self


def turn(t: Tensor, z: Tensor) -> Tensor:
    """A quarter of a turn in a unit of time."""
    return pi / 2 * torch.stack([-z[:, 1], z[:, 0]], 1)


def stiff(rate: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Samples with a larger second component need more steps: they turn faster, and keep their radius."""
    return lambda t, z: rate * z[:, 2:] * torch.stack([-z[:, 1], z[:, 0], 0 * z[:, 0]], 1)


@pytest.mark.parametrize("batch_size", [1, 2, 256])
def test_outputs_of_a_linear_field_are_those_of_the_matrix_exponential(batch_size: int) -> None:
    model = NeuralODE(LINEAR.field, t=LINEAR.t)
    split = Split(LINEAR.start, torch.zeros(3, 2))
    found = exact_flow(model, split, NUMBERS, n_steps=4, batch_size=batch_size)
    assert found.outputs.dtype == torch.float64
    torch.testing.assert_close(found.outputs, LINEAR.exact(LINEAR.t[1]), rtol=1e-6, atol=1e-6)
    assert found.settled.tolist() == [True] * 3
    assert found.complete
    assert found.n_steps == 4 * first_steps(4)


def test_starts_finer_than_training() -> None:
    assert [first_steps(n) for n in (1, 8, 8.2, 100)] == [32, 32, 36, 400]
    assert [first_steps(100, order) for order in (1, 2, 3, 5)] == [100, 200, 300, 400]
    assert first_steps(8, 1) == 32
    model = NeuralODE(TanhField())
    split = Split(states(5), torch.zeros(5, 2))
    assert exact_flow(model, split, NUMBERS, n_steps=100).n_steps == 1600
    # more than the usual finest solve: two doublings are possible all the same
    found = exact_flow(NeuralODE(lambda t, z: -z), split.first(3), NUMBERS, n_steps=FINEST / 8)
    assert found.n_steps == 2 * FINEST
    assert bool(found.settled.all())


def test_the_cost_is_what_the_field_was_called_with() -> None:
    field = Counted(turn)
    split = Split(states(7), torch.zeros(7, 2))
    found = exact_flow(NeuralODE(field), split, NUMBERS, n_steps=8, batch_size=3)
    assert bool(found.settled.all())
    assert found.evaluations == field.samples == 7 * least_cost(8) == 4 * 7 * (32 + 64 + 128)


def test_only_samples_that_have_not_settled_are_refined() -> None:
    field = Counted(stiff(5.0))
    x = torch.tensor([[1.0, 0.0, 0.1], [0.0, 1.0, 0.1], [1.0, 0.0, 12.0], [1.0, 1.0, 12.0]], dtype=torch.float64)
    split = Split(x, torch.zeros(4, 3))
    found = exact_flow(NeuralODE(field), split, NUMBERS, n_steps=1)
    assert bool(found.settled.all())
    assert found.n_steps > 128
    late = 2  # samples that take part in every doubling
    doublings = [32 << i for i in range(20) if 32 << i <= found.n_steps]
    assert found.evaluations == field.samples
    assert found.evaluations == 4 * sum(n * (4 if n <= 128 else late) for n in doublings)
    angle = 5.0 * x[:, 2]
    expected = torch.stack(
        [x[:, 0] * angle.cos() - x[:, 1] * angle.sin(), x[:, 0] * angle.sin() + x[:, 1] * angle.cos(), x[:, 2]], 1
    )
    torch.testing.assert_close(found.outputs, expected, rtol=1e-3, atol=1e-3)


def test_the_budget_ends_the_refinement() -> None:
    field = Counted(turn)
    split = Split(states(6), torch.zeros(6, 2))
    least = 6 * least_cost(8)
    for budget, steps in ((least, 128), (least - 1, 64), (4 * 6 * (32 + 64) - 1, 32)):
        field.samples = 0
        found = exact_flow(NeuralODE(field), split, NUMBERS, n_steps=8, budget=budget)
        assert found.n_steps == steps
        assert found.complete == (steps == 128)
        assert found.settled.tolist() == [steps == 128] * 6
        assert found.evaluations == field.samples <= budget


def sides(z: Tensor) -> Tensor:
    """Logits that tell positive from negative first components."""
    return torch.stack([z[:, 0], -z[:, 0]], 1)


def test_a_sample_on_the_boundary_never_settles() -> None:
    x = torch.tensor([[1.0, 1.0], [0.0, 0.0], [-1.0, 0.5]])
    found = exact_flow(
        NeuralODE(turn, downstream=sides), Split(x, torch.zeros(3, dtype=torch.int64)), CLASSES, n_steps=1
    )
    assert found.settled.tolist() == [True, False, True]
    assert found.complete
    assert found.n_steps == FINEST
    assert found.evaluations == 4 * (3 * (32 + 64 + 128) + sum(256 << i for i in range(5)))


def test_a_sample_close_to_the_boundary_settles_late() -> None:
    """Its logits must be known to a tenth of their margin."""
    eps = 1e-9
    ends = torch.tensor([[-1.0, 0.0], [eps, 1.0]], dtype=torch.float64)
    back = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)  # a quarter of a turn back
    split = Split(ends @ back.T, torch.zeros(2, dtype=torch.int64))
    found = exact_flow(NeuralODE(turn, downstream=sides), split, CLASSES, n_steps=1)
    assert found.settled.tolist() == [True, True]
    assert found.n_steps > 128
    assert float(found.outputs[1, 0]) == pytest.approx(eps, rel=0.1)


class Moody(type(CLASSES)):
    """A task whose samples are calm as it was told, doubling by doubling."""

    def __init__(self, *moods: list[bool]) -> None:
        self.moods = list(moods)

    def calm(self, before: Tensor, after: Tensor, scale: Tensor | None = None) -> Tensor:
        assert before.shape == after.shape
        return torch.tensor(self.moods.pop(0))


def test_settling_takes_two_doublings_in_a_row() -> None:
    task = Moody([True, True, False], [True, False, True], [True, True], [True])
    split = Split(states(3), torch.zeros(3, dtype=torch.int64))
    found = exact_flow(NeuralODE(turn, downstream=sides), split, task, n_steps=1)
    assert task.moods == []
    assert found.settled.tolist() == [True] * 3
    assert found.n_steps == 32 << 4
    assert found.evaluations == 4 * (3 * (32 + 64 + 128) + 2 * 256 + 512)


def blow_up(t: Tensor, z: Tensor) -> Tensor:
    """z' = z²: from above 1 the flow ends before time 1."""
    return z * z


@pytest.mark.parametrize("batch_size", [1, 256])
def test_samples_that_are_not_finite_do_not_disturb_classes(batch_size: int) -> None:
    model = NeuralODE(blow_up, downstream=lambda z: torch.cat([z, -z], 1))
    x = torch.tensor([[-1.0], [5.0], [0.5], [3.0], [-0.2]], dtype=torch.float64)
    good = torch.tensor([0, 2, 4])
    found = exact_flow(model, Split(x, torch.zeros(5)), CLASSES, n_steps=1, batch_size=batch_size)
    alone = exact_flow(model, Split(x[good], torch.zeros(3)), CLASSES, n_steps=1)
    assert found.settled.tolist() == [True, False, True, False, True]
    assert found.complete
    torch.testing.assert_close(found.outputs[good], alone.outputs, rtol=1e-12, atol=0)
    torch.testing.assert_close(alone.outputs[:, :1], x[good] / (1 - x[good]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("n", [0, 1])
def test_samples_that_are_not_finite_do_not_disturb_numbers(n: int) -> None:
    """One that is close to its end settles late, however many others have none."""
    x = torch.tensor([[-1.0], [0.5], [0.98], [5.0]], dtype=torch.float64)[: 3 + n]
    found = exact_flow(NeuralODE(blow_up), Split(x, x), NUMBERS, n_steps=1)
    assert found.settled.tolist() == [True] * 3 + [False] * n
    torch.testing.assert_close(found.outputs[:3], x[:3] / (1 - x[:3]), rtol=1e-4, atol=0)


def test_the_model_is_untouched() -> None:
    torch.manual_seed(0)
    model = NeuralODE(nn.Module(), nn.Linear(2, 2), nn.Linear(2, 2), solver=FixedStep("euler", n_steps=1))
    model.field = _Tanh()
    model.reduce = reduce = lambda x: 1 / 0  # sums over ranks are not for the exact flow
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    split = Split(states(4).float(), torch.zeros(4, dtype=torch.int64))
    found = exact_flow(model, split, CLASSES, n_steps=1)
    assert found.outputs.dtype == torch.float64
    assert not found.outputs.requires_grad
    assert model.training
    assert model.reduce is reduce
    assert split.x.dtype == torch.float32
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name])


class _Tanh(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(self.layer(z))


def test_images_held_as_bytes_are_numbers_in_double_precision() -> None:
    pixels = torch.randint(256, (3, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model = NeuralODE(lambda t, z: -z, downstream=nn.Flatten())
    found = exact_flow(model, Split(pixels, torch.zeros(3, dtype=torch.int64)), CLASSES, n_steps=1)
    expected = pixels.double().flatten(1) / 255 * torch.exp(torch.tensor(-1.0, dtype=torch.float64))
    torch.testing.assert_close(found.outputs, expected, rtol=1e-8, atol=0)


def test_time_series_at_shared_and_at_own_times() -> None:
    start, nan = LINEAR.start, torch.nan
    model = NeuralODE(LINEAR.field, t=(0.0, 1.5))
    shared = torch.tensor([0.0, 0.7, 1.5], dtype=torch.float64)
    exact = torch.stack([LINEAR.exact(t) for t in shared.tolist()], 1)
    found = exact_flow(model, Split(start, exact, shared), SERIES, n_steps=8)
    torch.testing.assert_close(found.outputs, exact, rtol=1e-6, atol=1e-6)
    own = torch.tensor([[0.7, nan], [0.0, 1.5], [1.5, nan]], dtype=torch.float64)
    truth = torch.full((3, 2, 2), nan, dtype=torch.float64)
    truth[0, 0], truth[1], truth[2, 0] = exact[0, 1], exact[1, [0, 2]], exact[2, 2]
    found = exact_flow(model, Split(start, truth, own), SERIES, n_steps=8, batch_size=2)
    assert bool(found.settled.all())
    torch.testing.assert_close(found.outputs, truth, rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("end", [0.1, 0.3, 1.5, 2.6])
def test_times_in_single_precision_that_reach_the_end(end: float) -> None:
    """Rounded to single precision, the last time may lie just beyond the end of the interval."""
    model = NeuralODE(LINEAR.field, t=(0.0, end))
    split = Split(LINEAR.start, torch.zeros(3, 2, 2), torch.tensor([end / 2, end], dtype=torch.float64))
    single = split.to(torch.float32)
    found = exact_flow(model, single, SERIES, n_steps=8)
    torch.testing.assert_close(found.outputs, exact_flow(model, split, SERIES, n_steps=8).outputs, rtol=1e-5, atol=1e-5)
