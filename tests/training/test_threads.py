"""PyTorch's threads in training: one for small tensors, otherwise all; restored afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from trueode.solvers.backends import native
from trueode.training.threads import spared


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("batch_size", "sample", "features", "threads"),
    [(128, (2,), 32, 1), (32, (3, 32, 32), 32, 3), (128, (2,), 40_000, 3)],
    ids=["small", "large inputs", "large weights"],
)
def test_pytorch_gets_one_thread_for_small_tensors(
    batch_size: int, sample: tuple[int, ...], features: int, threads: int
) -> None:
    with spared(nn.Linear(1, features), batch_size, sample):
        assert torch.get_num_threads() == threads
        assert native.library.threads() == 3
    assert torch.get_num_threads() == 3


def test_the_threads_come_back_after_a_failure() -> None:
    with pytest.raises(KeyboardInterrupt), spared(nn.Linear(2, 2), 1, (2,)):
        raise KeyboardInterrupt
    assert torch.get_num_threads() == native.library.threads() == 3
