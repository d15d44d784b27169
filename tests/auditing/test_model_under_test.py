"""The model under test: all forms of data, outputs of all tasks, both precisions."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from trueode import Adaptive, FixedStep, NeuralODE
from trueode.auditing.model_under_test import model_under_test
from trueode.data import Split
from trueode.errors import DataError, UsageError
from trueode.evaluation.runnable import Part

X = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
LABELS = (X[:, 0] > 0).long()


class Tanh(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.a = nn.Parameter(torch.randn(2, 2, generator=generator))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(z @ self.a)


def model(n_steps: int = 3) -> NeuralODE:
    return NeuralODE(Tanh(), solver=FixedStep("euler", n_steps=n_steps))


@pytest.mark.parametrize(
    "data",
    [
        (X, LABELS),
        Split(X, LABELS),
        DataLoader(TensorDataset(X, LABELS), batch_size=4),
        [(X[:4], LABELS[:4]), [X[4:], LABELS[4:]]],
        ((X[i : i + 5], LABELS[i : i + 5]) for i in (0, 5)),
    ],
    ids=["pair", "split", "loader", "lists", "generator"],
)
def test_all_forms_of_data_give_the_same(data: Any) -> None:
    net = model()
    subject = model_under_test(net, data)
    assert (subject.n, subject.task.name) == (10, "classification")
    ran = subject.run()
    torch.testing.assert_close(ran.outputs, net(X).detach())
    assert (ran.nfe, ran.n_steps, ran.n_rejected, ran.status) == (3, 3, 0, "success")
    torch.testing.assert_close(ran.states, ran.outputs)
    assert ran.outputs is not None
    accuracy, losses = subject.metrics(ran.outputs), subject.losses(ran.outputs)
    assert accuracy is not None
    assert accuracy[:, 0].tolist() == (net(X).argmax(1) == LABELS).double().tolist()
    assert losses is not None
    torch.testing.assert_close(
        losses[:, 0], nn.functional.cross_entropy(net(X), LABELS, reduction="none").double()
    )
    assert (ran.metric, ran.loss) == pytest.approx((float(accuracy.mean()), float(losses.mean())))


def test_inputs_alone() -> None:
    subject = model_under_test(model(), X, task="classification")
    assert subject.y is None
    assert subject.metrics(X) is subject.losses(X) is None
    with pytest.raises(UsageError, match="no targets"):
        model_under_test(model(), X)


@pytest.mark.parametrize("samples", [1, 4, 7, 10, 99])
def test_only_the_first_samples_are_taken(samples: int) -> None:
    subject = model_under_test(
        model(), DataLoader(TensorDataset(X, LABELS), batch_size=4), samples=samples
    )
    assert subject.n == min(samples, 10)
    torch.testing.assert_close(subject.run().outputs, model()(X[:samples]).detach())


def test_an_endless_loader_is_left_after_the_samples() -> None:
    def endless() -> Any:
        while True:
            yield X, LABELS

    assert model_under_test(model(), endless(), samples=25).sizes == (10, 10, 5)


@pytest.mark.parametrize("separable", [True, False])
def test_some_samples(separable: bool) -> None:
    net = model()
    subject = model_under_test(net, DataLoader(TensorDataset(X, LABELS), batch_size=4))
    subject.separable = separable
    for rows in ([0, 5, 9], [4, 5, 6, 7], list(range(10)), [3]):
        ran = subject.run(FixedStep("rk4", n_steps=2), Part(torch.tensor(rows)))
        torch.testing.assert_close(ran.outputs, net(X, FixedStep("rk4", n_steps=2)).detach()[rows])


def test_double_precision_leaves_the_model_alone() -> None:
    net = model()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    ran = model_under_test(net, (X, LABELS)).run(
        Adaptive("dopri5", 1e-10, 1e-10), Part(double=True)
    )
    assert ran.outputs.dtype == torch.float64
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.dtype == torch.float32 for p in net.parameters())


@pytest.mark.parametrize(
    ("y", "t", "task"),
    [
        (LABELS, None, "classification"),
        (LABELS.bool(), None, "classification"),
        (X, None, "regression"),
        (X[:, 0], None, "regression"),
        (torch.randn(10, 3, 2), torch.tensor([0.2, 0.5, 1.0]), "timeseries"),
    ],
)
def test_the_task_follows_from_the_targets(y: Tensor, t: Tensor | None, task: str) -> None:
    data = (X, y) if t is None else (X, y, t)
    assert model_under_test(model(), data).task.name == task


def test_a_time_series_of_our_own_model() -> None:
    t = torch.tensor([0.2, 0.5, 1.0])
    net = model(10)
    ran = model_under_test(net, (X, torch.randn(10, 3, 2), t)).run()
    torch.testing.assert_close(ran.outputs, net(X, save_at=t).detach().transpose(0, 1))


@pytest.mark.parametrize("shape", [(10,), (10, 1)])
def test_one_logit_stands_for_two_classes(shape: tuple[int, ...]) -> None:
    net = NeuralODE(
        Tanh(), downstream=lambda z: z[:, 0].reshape(shape), solver=FixedStep("euler", n_steps=3)
    )
    subject = model_under_test(net, (X, LABELS))
    assert subject.run().metric == float(
        ((net(X).reshape(10) > 0).long() == LABELS).double().mean()
    )


def test_a_metric_of_ones_own() -> None:
    found = model_under_test(
        model(), (X, X), metric=lambda outputs, y: (outputs - y).abs().amax(1)
    ).run()
    assert found.metric == pytest.approx(float((model()(X).detach() - X).abs().amax(1).mean()))
    with pytest.raises(UsageError, match="a value for each of the 10 samples"):
        model_under_test(model(), (X, X), metric=lambda outputs, y: outputs).run()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "holds no samples"),
        (iter(()), "holds no samples"),
        (3.0, "float"),
        ("data.csv", "str"),
        ([{"x": 3}], "no tensor"),
        ((X, LABELS[:4]), "must agree"),
        ([(X, LABELS[:4])], "must agree"),
    ],
)
def test_bad_data(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        model_under_test(model(), data, task="classification")


def test_labels_that_the_model_does_not_know() -> None:
    with pytest.raises(DataError, match="2 classes"):
        model_under_test(model(), (X, LABELS + 1)).run()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net, batch: net(batch[0])[0], r"shape \(2,\) for 10 samples"),
        (lambda net, batch: (net(batch[0]),), "tuple"),
        (lambda net, batch: net(batch[0]).argmax(1), "int64"),
        (lambda net, batch: net(batch[0])[:, :, None].expand(-1, -1, 3), "labels of shape"),
    ],
)
def test_bad_outputs(call: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        model_under_test(model(), (X, LABELS), call=call).run()


def test_a_model_without_a_solver_is_an_error() -> None:
    with pytest.raises(UsageError, match="no solver that can be replaced"):
        model_under_test(nn.Linear(2, 2), (X, LABELS)).run()


def test_models_that_cannot_be_audited() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer releases of torch announce the end of scripts
        scripted = torch.jit.script(nn.Linear(2, 2))
    with pytest.raises(UsageError, match="scripted"):
        model_under_test(scripted, (X, LABELS))
    with pytest.raises(UsageError, match="callable"):
        model_under_test("model", (X, LABELS))


def test_a_model_that_raises_because_a_solver_fails_is_lost_under_that_solver_alone() -> None:
    net = model()

    def call(_: Any, batch: Any, solver: Any = None) -> Tensor:
        outputs = net(batch[0])
        assert bool(outputs.isfinite().all())
        return outputs

    subject = model_under_test(net, (X, LABELS), call=call)
    own = subject.run()
    for part in (Part(), Part(double=True)):
        lost = subject.run(FixedStep("euler", step_size=1e-3, max_steps=10), part)
        assert (lost.status, lost.outputs.shape) == ("max_steps", own.outputs.shape)
        assert bool(lost.outputs.isnan().all())
    assert lost.outputs.dtype == torch.float64
    assert subject.run(FixedStep("euler", n_steps=3)).status == "success"
