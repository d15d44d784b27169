"""A model on samples under any solver, and the predictions that count."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.evaluation.flows import CLASSES, NUMBERS, RK4, Given, Turn, logits, on, turn
from tests.problems import TanhField, states
from trueode.errors import DataError, UsageError
from trueode.evaluation import evaluate, get_task
from trueode.evaluation.course import Course, Guided
from trueode.evaluation.runnable import Part
from trueode.solvers import Adaptive, FixedStep

SHARED = Adaptive("bosh3", 1e-3, 1e-3)


@pytest.mark.parametrize("batch_size", [3, 4, 11])
def test_outputs_do_not_depend_on_the_batches_and_means_are_those_of_evaluate(
    batch_size: int,
) -> None:
    runnable = turn(11, RK4, batch_size=batch_size)
    found, expected = runnable.run(), evaluate(runnable.model, runnable.samples, CLASSES, RK4)
    assert (found.n, found.nfe, found.n_steps, found.status) == (11, 32.0, 8.0, "success")
    assert (found.loss, found.metric) == (
        pytest.approx(expected.loss),
        pytest.approx(expected.metric),
    )
    with torch.no_grad():
        torch.testing.assert_close(found.outputs, runnable.model(runnable.samples.x))
    torch.testing.assert_close(found.states[:, 0], found.outputs[:, 0])
    rows = torch.tensor([1, 5, 6, 10])
    plain, nudged = (
        runnable.run(part=Part(rows, True, solving=Guided(Course(), nudge)))
        for nudge in (0.0, 1e-6)
    )
    assert (plain.outputs.dtype, plain.loss != plain.loss) == (torch.float64, True), (
        "means are those of all rows"
    )
    torch.testing.assert_close(plain.outputs.float(), found.outputs[rows])
    torch.testing.assert_close(
        nudged.outputs - plain.outputs, 1e-6 * plain.outputs, rtol=1e-6, atol=1e-14
    )


def test_steps_that_a_batch_shares_are_those_of_whole_batches() -> None:
    x = states(11) * torch.linspace(0.1, 9, 11)[:, None]
    runnable, rows = on(TanhField(), x, solver=SHARED, batch_size=4), torch.tensor([1, 5, 10])
    whole = runnable.run().outputs
    assert runnable.run(part=Part(rows, whole=True)).outputs.equal(whole[rows])
    assert not runnable.run(part=Part(rows)).outputs.equal(whole[rows])


def test_a_solver_that_fails_leaves_nan_and_no_means() -> None:
    x = torch.tensor([[0.5], [1e200], [0.2]], dtype=torch.float64)
    found = on(lambda t, z: z**3, x, task=NUMBERS).run()
    assert (found.status, found.loss != found.loss, found.metric != found.metric) == (
        "non_finite",
        True,
        True,
    )
    assert found.outputs.isnan()[:, 0].tolist() == [False, True, False]
    assert found.message


def test_the_model_is_left_as_it_was() -> None:
    runnable = turn(4)
    model = runnable.model.train()
    model.reduce = reduce = lambda x: 1 / 0  # the exact flow does not sum over ranks
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = runnable.run(part=Part(torch.arange(4), True))
    assert not found.outputs.requires_grad
    assert (model.training, model.reduce, runnable.samples.x.dtype) == (True, reduce, torch.float32)
    assert all(
        value.dtype == torch.float32 and value.equal(before[name])
        for name, value in model.state_dict().items()
    )


def test_images_held_as_bytes_are_numbers_in_double_precision() -> None:
    pixels = torch.randint(
        256, (3, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    runnable = on(
        lambda t, z: -z, pixels, downstream=nn.Flatten(), solver=FixedStep("rk4", n_steps=99)
    )
    expected = pixels.double().flatten(1) / 255 * torch.tensor(-1.0, dtype=torch.float64).exp()
    torch.testing.assert_close(
        runnable.run(part=Part(double=True)).outputs, expected, rtol=1e-8, atol=0
    )


def test_equal_steps_are_one_grid() -> None:
    grid = turn(2, end=2.0).grid
    rk4, euler = FixedStep("rk4", n_steps=2), FixedStep("euler", n_steps=2)
    assert grid(rk4) == grid(FixedStep("rk4", step_size=1.0)) != grid(euler)
    assert grid(FixedStep("rk4", step_size=9.0)) == grid(FixedStep("rk4", step_size=2.0))
    assert grid(FixedStep("rk4", step_size=0.8)) != grid(FixedStep("rk4", n_steps=3))
    assert grid(SHARED) is None


def test_data_of_which_nothing_can_be_said_is_refused() -> None:
    x = states(3)
    for bad in (x[:0], x.index_fill(0, torch.tensor(1), torch.nan)):
        with pytest.raises(DataError):
            on(Turn(), bad)
    with pytest.raises(DataError, match="targets"):
        on(Turn(), x, x.masked_fill(x > 0, torch.inf), task=NUMBERS)
    two = logits(torch.tensor([0, 1]))
    for y in (
        torch.tensor([0, 2]),
        torch.tensor([-1, 0]),
        torch.tensor([0.5, 1.0]),
        torch.zeros(2, 3),
    ):
        with pytest.raises(DataError):
            Given(two, two, y=y).run()
    with pytest.raises(DataError, match="agree"):
        Given(two, two, task=NUMBERS, y=torch.zeros(2, 3)).run()


def test_a_metric_of_ones_own() -> None:
    pixels, y = logits(torch.tensor([[0, 1], [1, 1]])), torch.tensor([[0, 0], [1, -100]])
    found = Given(
        pixels, pixels, y=y, metric=lambda outputs, y: (outputs.argmax(1) == y).double().mean(1)
    ).run()
    assert found.metric == 0.5
    for metric, word in (
        (lambda x, y: y[:1], "shape"),
        (lambda x, y: 1.0, "float"),
        (lambda x, y: 1 / 0, "failed"),
    ):
        with pytest.raises(UsageError, match=word):
            Given(pixels, pixels, y=y, metric=metric).run()


# predictions that count


def image(*shape: int) -> Tensor:
    return logits(torch.randint(2, shape, generator=torch.Generator().manual_seed(0)))


def test_labels_to_ignore_and_masks_take_predictions_away() -> None:
    y = torch.zeros(3, 2, 2, dtype=torch.int64)
    y[0, 0], y[1] = 7, 7
    mask = torch.ones(3, 2, 2, dtype=torch.bool)
    mask[2, :, 1] = False
    task = get_task("classification", ignore_index=7)
    runnable = Given(image(3, 2, 2), image(3, 2, 2), task=task, y=y, mask=mask)
    valid = runnable.valid(3, 4)
    assert valid.tolist() == [[False, False, True, True], [False] * 4, [True, False, True, False]]
    found, right = runnable.run(), runnable.own.argmax(1) == y
    assert found.metric == pytest.approx(float(right.flatten(1)[valid].double().mean()))
    drawn = runnable.drawn(3, 4)
    assert (drawn // 4).tolist() == [0, 2], "a sample without any prediction that counts is none"
    assert bool(valid.flatten()[drawn].all())
    runnable.mask = torch.zeros_like(mask)
    with pytest.raises(DataError, match="No prediction counts"):
        runnable.drawn(3, 4)
    runnable.mask = mask[:, 0]
    with pytest.raises(DataError, match="fit"):
        runnable.valid(3, 4)
    runnable.mask, runnable.groups = None, torch.tensor([5, 3, 5])  # rows of a group are one sample
    assert runnable.drawn(3, 4).shape == (1,)
    runnable.mask, runnable.y = torch.tensor([True, False, True]), None  # of whole samples
    assert runnable.valid(3, 4).all(1).tolist() == [True, False, True]


def test_one_prediction_of_each_sample_is_drawn_and_always_the_same() -> None:
    runnable = Given(image(200, 5), image(200, 5))
    drawn = runnable.drawn(200, 5)
    assert drawn.equal(Given(image(200, 5), image(200, 5)).drawn(200, 5))
    assert (drawn // 5).equal(torch.arange(200))
    counts = torch.bincount(drawn % 5, minlength=5)
    assert int(counts.min()) > 20, "each prediction of a sample has its chance"
    assert Given(image(4), image(4)).drawn(4, 1).tolist() == [0, 1, 2, 3]
