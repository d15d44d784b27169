"""A batch is cut only after a check that its samples are independent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trueode import FixedStep, audit, solve
from trueode.auditing.kept import Kept
from trueode.auditing.model_under_test import model_under_test
from trueode.auditing.preconditions import prepare
from trueode.data import Split
from trueode.errors import UsageError

X = torch.randn(700, 2, generator=torch.Generator().manual_seed(1))
Y = (X[:, 0] > 0).long()


class Turning(nn.Module):
    """Turns each state at a speed that may depend on all samples.

    With ``rows``, every other number of samples fails.
    """

    def __init__(self, speed: Callable[[Tensor], Any], rows: int | None = None) -> None:
        super().__init__()
        self.speed, self.rows = speed, rows

    def forward(self, x: Tensor) -> Tensor:
        if self.rows not in (None, len(x)):
            raise ValueError("an edge leads to a node that is not there")
        speed = self.speed(x)
        return solve(
            lambda t, z: speed * torch.stack([z[:, 1], -z[:, 0]], 1),
            x,
            (0.0, 1.0),
            solver=FixedStep("euler", n_steps=2),
        ).z


ALONE = Turning(lambda x: 0.5)
GRAPH = Turning(lambda x: 0.005 * len(x))
HELD = Turning(lambda x: 0.5, rows=700)  # like a graph with fixed edges


def looked_at(model: nn.Module, data: Any, **how: Any) -> Any:
    subject = model_under_test(model, data, **how)
    with torch.no_grad():
        prepare(subject, Kept(), was_training=False)
    return subject


@pytest.mark.parametrize(
    "data",
    [
        (X, Y),
        (X, Y, torch.ones(700, dtype=torch.bool)),
        Split(X, Y),
        (X, X, torch.tensor([0.5, 1.0])),
    ],
    ids=["pair", "mask", "split", "times"],
)
def test_rows_are_cut_only_where_samples_are_independent(data: Any) -> None:
    call = lambda model, batch: model(batch[0])  # noqa: E731
    assert looked_at(ALONE, data, samples=600, call=call).sizes == (600,)
    for model in (GRAPH, HELD):
        subject = looked_at(model, data, samples=600, call=call, groups=torch.arange(700) // 2)
        assert not subject.separable
        assert (subject.sizes, subject.n, len(subject.y), len(subject.groups)) == (
            (700,),
            700,
            700,
            700,
        )
        assert subject.mask is None or len(subject.mask) == 700


def test_batches_are_read_once_and_the_last_one_is_cut_only_where_samples_are_independent() -> None:
    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        yield X[:300], Y[:300]
        yield X[300:650], Y[300:650]
        raise AssertionError("more is read than is looked at")

    assert looked_at(ALONE, batches(), samples=400).sizes == (300, 100)
    subject = looked_at(GRAPH, batches(), samples=400)
    assert subject.sizes == (300, 350)
    assert subject.y.equal(Y[:650])


def test_a_coupling_that_only_the_cut_shows() -> None:
    """The speed depends on the number of rows, in a way that small batches do not reveal."""
    model = Turning(lambda x: 0.5 if len(x) <= 256 else 2.0)
    assert looked_at(model, (X[:256], Y[:256])).separable
    assert not looked_at(model, (X, Y)).separable


def test_an_audit_of_a_pair_is_that_of_one_batch() -> None:
    pair, whole = (
        audit(GRAPH, (X, Y), samples=300, methods=()),
        audit(GRAPH, [(X, Y)], samples=300, methods=()),
    )
    assert pair.decision == whole.decision
    assert (pair.n, pair.verdict) == (700, "solver-dependent")
    assert any("kept whole as given" in note for note in pair.notes)


def test_one_sample_and_a_model_that_fails_on_all_rows() -> None:
    assert looked_at(ALONE, (X[:1], Y[:1])).separable
    with pytest.raises(UsageError, match="an edge leads"):
        looked_at(HELD, (X[:600], Y[:600]))
