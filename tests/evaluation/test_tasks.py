"""Losses, metrics, and the differences between predictions that count."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from torch import Tensor

from tests.problems import TanhField, states
from trueode.catalog import TASKS
from trueode.data import Batch
from trueode.errors import UsageError
from trueode.evaluation import Task, get_task
from trueode.models import NeuralODE
from trueode.solvers import FixedStep

NAN = float("nan")
CLASSES, NUMBERS, SERIES = (
    get_task("classification"),
    get_task("regression"),
    get_task("timeseries"),
)
RK4 = FixedStep("rk4", n_steps=6)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


def series_batch(n: int = 3, seed: int = 0) -> Batch:
    """Four times, shared."""
    y = torch.randn(n, 4, 1, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Batch(
        states(n).unsqueeze(1), y, torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    )


def test_tasks_by_name() -> None:
    assert [get_task(name).name for name in TASKS] == list(TASKS)
    names = [get_task(name).metric_name for name in TASKS]
    assert names == ["accuracy", "mse", "mse", "bits_per_dim"]
    with pytest.raises(UsageError, match="Did you mean 'regression'"):
        get_task("regresion")


# losses and metrics


def test_losses_and_metrics() -> None:
    output = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    batch = Batch(output, torch.tensor([[1.0, 4.0], [3.0, 1.0]]))
    assert (float(NUMBERS.loss_sum(output, batch)), float(NUMBERS.metric_sum(output, batch))) == (
        7.0,
        7.0,
    )
    batch = Batch(output, torch.tensor([0, 0]))
    assert int(CLASSES.metric_sum(output, batch)) == 1
    assert float(CLASSES.loss_sum(output, batch)) == pytest.approx(log(1 + exp(1)) + log(2))
    task, y = (
        get_task("classification", ignore_index=9),
        torch.tensor([[0, 9], [1, 2], [9, 9], [0, 0]]),
    )
    logits = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))
    losses = task.losses(logits, Batch(logits, y))
    assert (losses == 0).tolist() == (y == 9).tolist()
    assert float(task.loss_sum(logits, Batch(logits, y))) == pytest.approx(float(losses.sum()))


# time series


def test_a_time_series_is_predicted_at_its_times() -> None:
    batch, field = series_batch(), TanhField()
    model = NeuralODE(lambda t, z: field(t, z.flatten(1)).view_as(z), solver=RK4)
    output, solution = SERIES.predict(model, batch)
    assert output.shape == (3, 4, 1, 2)
    assert solution.nfe == 24
    torch.testing.assert_close(output[:, 0], batch.x)
    torch.testing.assert_close(output[:, 3], model(batch.x))
    with pytest.raises(UsageError, match="needs times"):
        SERIES.predict(model, Batch(batch.x, batch.y))


def test_masked_times_do_not_matter() -> None:
    """The same loss, metric and gradients as without them."""
    x, y = states(3).unsqueeze(1), series_batch().y[:, :3]
    short = torch.tensor([[0.1, 0.5, NAN], [0.3, NAN, NAN], [0.2, 0.7, 1.0]], dtype=torch.float64)
    y = y.masked_fill(short.isnan()[..., None, None], NAN)
    long = torch.cat([short, torch.full((3, 2), NAN, dtype=torch.float64)], 1)
    padded = torch.cat([y, torch.full((3, 2, 1, 2), NAN, dtype=torch.float64)], 1)
    found = []
    for t, truth in ((short, y), (long, padded)):
        field = TanhField()
        model = NeuralODE(lambda t, z, f=field: f(t, z.flatten(1)).view_as(z), solver=RK4)
        batch = Batch(x, truth, t)
        output, _ = SERIES.predict(model, batch)
        loss = SERIES.loss_sum(output, batch)
        torch.testing.assert_close(SERIES.metric_sum(output, batch), loss)
        found.append((loss, *torch.autograd.grad(loss, list(field.parameters()))))
    for one, other in zip(*found, strict=True):
        assert bool(one.isfinite().all())
        torch.testing.assert_close(one, other)


# flips


def flips(task: Task, own: Tensor, reference: Tensor, allowed: Tensor | None = None) -> list[bool]:
    found = task.flipped(own, reference, allowed)
    assert found.shape == (len(own), 1)
    return found[:, 0].tolist()


def test_a_class_flips_when_another_one_is_the_most_likely() -> None:
    own = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.9], [5.0, 6.0, 7.0]])
    reference = torch.tensor([[9.0, 8.0, 0.0], [0.0, 0.9, 1.0], [0.0, 0.0, 1e-3]])
    assert flips(CLASSES, own, reference) == [False, True, False]
    assert CLASSES.allowed(reference) is None
    pixels = [x.view(1, 3, 3, 1).transpose(1, 2) for x in (own, reference)]  # each row is a pixel's
    assert CLASSES.flipped(*pixels).tolist() == [[False, True, False]]


@pytest.mark.parametrize("bad", [NAN, float("inf"), -float("inf")])
def test_what_is_not_finite_counts_as_flipped(bad: float) -> None:
    good = torch.tensor([[1.0, 0.0], [2.0, 1.0], [0.0, 4.0]])
    broken = good.clone()
    broken[1, 0] = bad
    sign = get_task("regression", decision=lambda outputs: outputs.nan_to_num() > 0.5)
    for task in (CLASSES, NUMBERS, sign):
        allowed = task.allowed(good)
        for own, reference in ((broken, good), (good, broken), (broken, broken)):
            assert task.flipped(own, reference, allowed).any(1).tolist() == [False, True, False]
            assert not bool(task.settled(own, reference, allowed)[1].any())
    assert flips(SERIES, broken.view(3, 1, 2), good.view(3, 1, 2), NUMBERS.allowed(good)) == [
        False,
        True,
        False,
    ]


def test_numbers_flip_beyond_one_percent_of_the_spread_or_what_is_said() -> None:
    reference = column(0.0, 10.0, 20.0, 30.0)
    spread = NUMBERS.spread(reference)
    assert float(spread) == pytest.approx(125**0.5)
    for task, allowed in (
        (NUMBERS, 0.01 * float(spread)),
        (get_task("regression", tolerance=0.2), 0.2 * float(spread)),
        (get_task("regression", absolute=0.3), 0.3),
        (get_task("density", absolute=0.1), 0.1),
        (get_task("density", margin=0.1, dimensions=3), 0.3 * log(2)),
    ):
        assert float(task.allowed(reference)) == pytest.approx(allowed)
        assert flips(task, reference + column(0.0, 0.99, -1.01, 50) * allowed, reference) == [
            False,
            False,
            True,
            True,
        ]


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), NAN])
def test_what_is_allowed_is_positive(value: float) -> None:
    for option in ("tolerance", "absolute"):
        with pytest.raises(UsageError, match=option):
            get_task("regression", **{option: value})


def test_gap_and_spread_are_rms_of_each_component() -> None:
    """The spread is over samples and times, without absent and infinite values."""
    reference = torch.tensor([[1.0, 1000.0], [-1.0, -1000.0]], dtype=torch.float64)
    for part in (0.0099, 0.0101):
        for direction in ([1.0, 1000.0], [1.0, -1000.0], [2**0.5, 0.0], [0.0, 1000 * 2**0.5]):
            own = reference + part * torch.tensor(direction, dtype=torch.float64)
            assert flips(NUMBERS, own, reference) == [part > 0.01] * 2
    outputs = torch.tensor([[[[1, 5]], [[3, 5]]], [[[5, 9]], [[NAN, NAN]]]], dtype=torch.float64)
    expected = torch.tensor([(8 / 3) ** 0.5, (32 / 9) ** 0.5], dtype=torch.float64)
    torch.testing.assert_close(SERIES.spread(outputs), expected)
    for bad in (NAN, float("inf")):
        torch.testing.assert_close(NUMBERS.spread(column(1.0, 3.0, 5.0, bad)), expected[:1])
    for equal in (column(2.0, 2.0), column(3.0)):
        assert not any(flips(NUMBERS, equal, equal.clone()))


def test_what_measurements_cannot_see_is_no_change() -> None:
    """A component of a series may move by a tenth of its RMS residual, if above the tolerance."""
    reference = series_batch(5).y
    spread = SERIES.spread(reference)
    residual = torch.ones_like(reference) * torch.tensor([0.01, 2.0])
    residual[0] = NAN
    torch.testing.assert_close(
        SERIES.allowed(reference, residual),
        torch.stack([0.01 * spread[0], torch.tensor(0.2).double()]),
    )
    torch.testing.assert_close(
        SERIES.allowed(reference, torch.full_like(residual, NAN)), 0.01 * spread
    )
    assert get_task("timeseries", absolute=0.3).allowed(reference, residual).tolist() == [0.3, 0.3]


def test_gaps_of_series_leave_absent_times_out() -> None:
    reference = series_batch().y
    allowed = SERIES.allowed(reference)
    move = 0.99 * allowed.view(1, 1, 1, 2)
    own = reference + move
    assert flips(SERIES, own, reference, allowed) == [False] * 3
    own[1, 0] += 1.0
    assert flips(SERIES, own, reference, allowed) == [False, True, False]
    absent = torch.tensor([[True, False, False, False]]).expand(3, 4)[..., None, None]
    own, reference = own.masked_fill(absent, NAN), reference.masked_fill(absent, NAN)
    assert flips(SERIES, own, reference, allowed) == [False] * 3
    # the mean is over present times: an absent one does not hide that three moved by 1.1 %
    assert flips(SERIES, reference + 1.1 / 0.99 * move, reference, allowed) == [True] * 3
    torch.testing.assert_close(
        SERIES.error_over_time(reference + move, reference, allowed),
        torch.tensor([[0.0, 0.99, 0.99, 0.99]], dtype=torch.float64).expand(3, 4),
    )
    # absent in only one of the two: the predictions differ
    own[2, 1] = NAN
    assert flips(SERIES, own, reference, allowed) == [False, False, True]


# settled


def test_logits_are_settled_below_a_share_of_their_margin() -> None:
    after = torch.tensor([[2.0, 1.0, 0.0]] * 5, dtype=torch.float64)
    move = torch.tensor(
        [[0.9, -0.9, 0.9], [-1.1, 0.0, 0.0], [0.0, 0.0, 1.1], [0.0] * 3, [-20.0, 0.0, 0.0]]
    )
    for share in (0.1, 0.05):
        found = CLASSES.settled(after + share * move, after, None, share)
        assert found[:, 0].tolist() == [True, False, False, True, False]
    on_the_boundary = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    assert not bool(CLASSES.settled(on_the_boundary, on_the_boundary).any())
    single = CLASSES.settled(column(1.0, 2.0, NAN), column(9.0, 2.0, 1.0))
    assert single[:, 0].tolist() == [True, True, False]
    after = column(0.0, 10.0, 20.0, 30.0)
    found = NUMBERS.settled(
        after + column(0.0, 0.099, -0.101, 0.99) * NUMBERS.allowed(after), after
    )
    assert found[:, 0].tolist() == [True, True, False, False]


# a decision


def test_a_sign_decides() -> None:
    task = get_task("regression", decision=lambda outputs: outputs > 0)
    own, reference = (
        torch.tensor([[1.0, -1.0], [2.0, 3.0]]),
        torch.tensor([[9.0, 1.0], [1e-9, 4.0]]),
    )
    assert task.flipped(own, reference).tolist() == [[False, True], [False, False]]
    batch = Batch(own, torch.tensor([[1.0, 1.0], [-1.0, 1.0]]))
    assert (task.metric_name, task.metrics(own, batch).tolist()) == (
        "accuracy",
        [[True, False], [False, True]],
    )
    labels = get_task(
        "classification", decision=lambda outputs: (outputs[:, 1] > outputs[:, 0]).long()
    )
    assert labels.metrics(own, Batch(own, torch.tensor([0, 0]))).tolist() == [True, False]
    for share in (
        0.1,
        0.05,
    ):  # settled if a move 1 / share times as large does not change the decision
        after = column(1.0, 1.0, 1.0, -1.0, 0.0)
        before = after + share * column(0.99, 1.01, -1.01, 0.99, 0.0)
        assert task.settled(before, after, None, share)[:, 0].tolist() == [
            True,
            False,
            False,
            True,
            True,
        ]
    for wrong in (lambda x: 1 / 0, lambda x: True, lambda x: x[:1] > 0, lambda x: x.sum() > 0):
        with pytest.raises(UsageError, match="decision"):
            get_task("regression", decision=wrong).flipped(own, reference)


# differences


def test_the_difference_of_classifications_is_close_to_the_share_of_flips() -> None:
    """For all scales of logits and all sizes of changes."""
    task = get_task("classification")
    margin = torch.linspace(-20, 20, 4001, dtype=torch.float64)
    for scale in (0.5, 1.0, 3.0):
        for moved in (0.05, 0.5, 2.0):
            one, other = (
                torch.stack([scale * m, torch.zeros_like(m)], 1) for m in (margin, margin + moved)
            )
            share = float(task.flipped(one, other).double().mean())
            assert task.difference(one, other) == pytest.approx(share, rel=0.05, abs=2 / 4001)


@pytest.mark.parametrize("name", ["regression", "timeseries"])
def test_the_target_bounds_the_share_of_flips(name: str) -> None:
    """By Markov's inequality, a difference equal to the target bounds the share of flips.

    The difference scales with the error.
    """
    task = get_task(name)
    generator = torch.Generator().manual_seed(0)
    shape = (400, 3) if name == "regression" else (400, 6, 1, 3)
    reference = torch.randn(shape, generator=generator, dtype=torch.float64)
    error = torch.randn(shape, generator=generator, dtype=torch.float64).pow(3)  # heavy tails
    for fidelity in (0.01, 0.1):
        scaled = error * task.target(fidelity) / task.difference(reference + error, reference)
        assert task.difference(reference + scaled, reference) == pytest.approx(
            task.target(fidelity)
        )
        assert 0 < float(task.flipped(reference + scaled, reference).double().mean()) <= fidelity


@pytest.mark.parametrize("name", ["regression", "timeseries"])
def test_components_that_do_not_vary_are_left_out(name: str) -> None:
    task = get_task(name)
    reference = torch.randn(100, 5, 2) if name == "timeseries" else torch.randn(100, 2)
    error = 1e-3 * torch.randn_like(reference)
    expected = task.difference(reference[..., :1] + error[..., :1], reference[..., :1])
    reference[..., 1] = 3.0
    found = task.difference(reference + error, reference)
    assert found == pytest.approx(expected * 2**-0.5), "the gap is a mean over all components"
    constant = torch.ones_like(reference)
    assert task.difference(constant + error, constant) != task.difference(
        constant + error, constant
    ), "not a number"


# distances, which penalties sum up


def outputs(name: str, n: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two outputs of a task; some are absent in time series."""
    generator = torch.Generator().manual_seed(seed)
    shape = {"classification": (n, 4), "regression": (n, 3), "timeseries": (n, 6, 1, 2)}
    own, other = torch.randn(2, *shape.get(name, (n, 1)), generator=generator, dtype=torch.float64)
    if name == "timeseries":
        own[1, 4:] = other[1, 4:] = NAN
    return own, other


@pytest.mark.parametrize("name", [*TASKS, "density"])
def test_gradients_of_distances_flow_through_both_outputs(name: str) -> None:
    task = get_task(name)
    own, other = outputs(name)
    present = ~own.isnan()

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return task.distance(own.masked_scatter(present, a), other.masked_scatter(present, b))

    a, b = own[present].requires_grad_(), other[present].requires_grad_()
    assert torch.autograd.gradcheck(distance, (a, b))
    found = distance(a, b)
    assert found.shape == (len(own),)
    assert bool((found > 0).all())


@pytest.mark.parametrize("name", [*TASKS, "density"])
def test_equal_outputs_have_no_distance_and_finite_gradients(name: str) -> None:
    task = get_task(name)
    own, _ = outputs(name)
    own.requires_grad_()
    found = task.distance(own, own.detach())
    assert found.tolist() == [0.0] * len(own)
    (gradient,) = torch.autograd.grad(found.sum(), own)
    assert bool(gradient[~own.isnan()].isfinite().all())


def test_the_distance_of_classes_is_their_total_variation() -> None:
    own, other = outputs("classification")
    shares, others = own.softmax(1), other.softmax(1)
    expected = torch.stack([shares - others, others - shares]).clamp(min=0).sum(2).amax(0)
    torch.testing.assert_close(CLASSES.distance(own, other), expected)
    pixels = own[:, :, None].expand(5, 4, 3)
    torch.testing.assert_close(
        CLASSES.distance(pixels, other[:, :, None].expand(5, 4, 3)), expected
    )


@pytest.mark.parametrize("name", ["regression", "timeseries"])
def test_the_distance_of_numbers_scales_as_their_squared_error(name: str) -> None:
    task = get_task(name)
    own, other = outputs(name)
    torch.testing.assert_close(task.distance(10 * own, 10 * other), 100 * task.distance(own, other))


@pytest.mark.parametrize("name", ["regression", "timeseries"])
def test_the_distance_of_numbers_is_their_loss(name: str) -> None:
    task = get_task(name)
    own, other = outputs(name)
    times = torch.zeros(own.shape[:2]) if name == "timeseries" else None
    losses = task.losses(own, Batch(own, other, times))
    torch.testing.assert_close(task.distance(own, other), losses)


def test_the_distance_of_log_densities_is_in_nats() -> None:
    own, other = outputs("density")
    torch.testing.assert_close(get_task("density").distance(own, other), (own - other).abs()[:, 0])


# densities: no targets, one number for each sample


@pytest.mark.parametrize("shape", [(5,), (5, 1)])
def test_losses_of_log_densities_are_in_nats_and_metrics_in_bits(shape: tuple[int, ...]) -> None:
    task, batch = get_task("density"), Batch(torch.zeros(5, 1, 3), torch.empty(5, 0))
    output = torch.linspace(-3, 1, 5).view(shape)
    expected = -output.view(5)
    torch.testing.assert_close(task.losses(output, batch), expected)
    torch.testing.assert_close(task.metrics(output, batch), expected / (3 * log(2)))
    assert float(task.loss_sum(output, batch)) == pytest.approx(float(expected.sum()))
    nothing = Batch(torch.zeros(0, 1, 3), torch.empty(0, 0))
    assert float(task.metric_sum(output[:0], nothing)) == 0
    assert task.metric_name == "bits_per_dim"


def test_the_difference_of_log_densities_bounds_their_mean_change() -> None:
    task = get_task("density").fitted((2,))
    own, other = outputs("density", 200)
    found = task.difference(own, other)
    assert found == pytest.approx(float((own - other).abs().mean()) / (2 * log(2)))
    assert found >= abs(float((own - other).mean())) / (2 * log(2))
    assert task.difference(2 * own, 2 * other) == pytest.approx(2 * found)
    assert task.target(0.02) == 0.02
    broken = own.clone()
    broken[3] = torch.inf
    assert task.difference(broken, other) == float("inf")
    with pytest.raises(UsageError, match="dimensions="):
        get_task("density").difference(own, other)


def test_log_densities_settle_to_a_share_of_the_margin() -> None:
    task, reference = get_task("density").fitted((2,), 0.1), column(0.0, 0.0, 0.0)
    moved = reference + 0.1 * 2 * log(2) * column(0.049, 0.051, -0.051)
    assert task.settled(moved, reference, share=0.05)[:, 0].tolist() == [True, False, False]


def test_samples_are_compared_over_all_their_numbers() -> None:
    task = get_task("sampler")
    reference = torch.randn(400, 3, generator=torch.Generator().manual_seed(0)).double()
    reference[:, 2] = 1.0  # a number that is the same in all samples does not matter
    spread = task.spread(reference)
    assert spread is not None
    expected = (reference - reference.mean(0)).square().mean().sqrt()
    torch.testing.assert_close(spread, expected[None])
    for size, flips_ in ((0.0099, False), (0.0101, True)):
        moved = reference + size * float(expected)
        assert bool(task.flipped(moved, reference).all()) is flips_
        assert bool(task.flipped(moved, reference).any()) is flips_
    batch = Batch(reference, torch.empty(400, 0))
    assert bool(task.losses(reference, batch).isnan().all())
    assert bool(task.metrics(reference, batch).isnan().all())
