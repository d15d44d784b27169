"""Batches: the order is a function of seed and epoch; ranks share each batch."""

from __future__ import annotations

from itertools import chain, islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trueode.data import Batches, Split
from trueode.errors import UsageError


def numbered(n: int) -> Split:
    return Split(torch.arange(n, dtype=torch.float32).view(n, 1, 1), torch.arange(n))


def ids(batches: Batches, start: int, count: int) -> list[list[int]]:
    return [batch.y.tolist() for batch, _ in islice(batches.from_iteration(start), count)]


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 40),
    size=st.integers(1, 17),
    seed=st.integers(0, 5),
    start=st.integers(0, 30),
    ranks=st.integers(1, 4),
    shuffle=st.booleans(),
)
def test_laws_of_the_order(n, size, seed, start, ranks, shuffle):
    split = numbered(n)
    whole = Batches(split, size, seed=seed, shuffle=shuffle)
    per_epoch = len(whole)
    expected = ids(whole, 0, start + 2 * per_epoch)
    # every epoch holds every sample once, in batches of which only the last may be smaller
    for epoch in range(2):
        batches = expected[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(chain(*batches)) == list(range(n))
        assert [len(b) for b in batches[:-1]] == [size] * (per_epoch - 1)
        assert 1 <= len(batches[-1]) <= size
    # starting later equals skipping
    assert (
        ids(Batches(split, size, seed=seed, shuffle=shuffle), start, 2 * per_epoch)
        == expected[start:]
    )
    # ranks take contiguous parts in order, of sizes that differ by one at most, and know the whole
    # size
    shares = [
        list(
            islice(
                Batches(
                    split, size, seed=seed, shuffle=shuffle, rank=r, world_size=ranks
                ).from_iteration(start),
                5,
            )
        )
        for r in range(ranks)
    ]
    for step, reference in enumerate((expected[start:] + ids(whole, start + 2 * per_epoch, 5))[:5]):
        parts = [share[step][0].y.tolist() for share in shares]
        assert list(chain(*parts)) == reference
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert {share[step][1] for share in shares} == {len(reference)}
    # one pass in order
    passes = [
        Batches(split, size, seed=seed, shuffle=shuffle, rank=r, world_size=ranks).in_order()
        for r in range(ranks)
    ]
    assert sorted(i for batches in passes for batch in batches for i in batch.y.tolist()) == list(
        range(n)
    )
    assert [i for batch in whole.in_order() for i in batch.y.tolist()] == list(range(n))


def test_epochs_and_seeds_differ_and_the_global_state_is_left_alone():
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    a, b = (ids(Batches(numbered(50), 50, seed=s, shuffle=True), 0, 2) for s in (0, 1))
    assert a[0] != a[1]
    assert a[0] != b[0]
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002
    assert ids(Batches(numbered(5), 2, seed=0, shuffle=False), 0, 4) == [
        [0, 1],
        [2, 3],
        [4],
        [0, 1],
    ]


def test_bytes_become_numbers_between_0_and_1():
    split = Split(
        torch.tensor([[0, 51], [255, 102]], dtype=torch.uint8).view(2, 1, 2),
        torch.arange(2),
        dtype=torch.float64,
    )
    x = split.batch(torch.tensor([1, 0])).x
    torch.testing.assert_close(x, torch.tensor([[[1.0, 0.4]], [[0.0, 0.2]]], dtype=torch.float64))


def test_times_go_with_their_samples():
    shared = Split(torch.zeros(3, 1, 1), torch.zeros(3, 2, 1, 1), torch.tensor([1.0, 2.0]))
    assert torch.equal(shared.batch(torch.tensor([2])).t, shared.t)
    assert torch.equal(shared.first(1).t, shared.t)
    own = Split(torch.zeros(3, 1, 1), torch.zeros(3, 2, 1, 1), torch.arange(6.0).view(3, 2))
    assert torch.equal(own.batch(torch.tensor([2, 0])).t, own.t[[2, 0]])
    assert torch.equal(own.first(2).t, own.t[:2])
    assert len(own.first(2)) == 2
    assert len(own.first(9)) == 3
    assert own.to(torch.float64).x.dtype == torch.float64
    assert torch.equal(
        own.to(torch.float16).t, own.t
    )  # rounding would move the last time beyond the end


@pytest.mark.parametrize(
    ("n", "size", "options", "word"),
    [
        (4, 0, {}, "batch_size"),
        (4, 2, {"rank": 2, "world_size": 2}, "rank"),
        (0, 2, {}, "no samples"),
    ],
)
def test_impossible_batches(n, size, options, word):
    with pytest.raises(UsageError, match=word):
        Batches(numbered(n), size, seed=0, shuffle=True, **options)
