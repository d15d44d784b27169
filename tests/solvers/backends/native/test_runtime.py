"""What solves of a process share goes to one of them at a time."""

from __future__ import annotations

import sys
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from trueode.fields import SequentialField
from trueode.solvers import Adaptive, Checkpoint, FixedStep, solve
from trueode.solvers.backends.native import runtime
from trueode.solvers.backends.native.runtime import Runtime, rounded


@given(st.integers(0, 2**31))
def test_memory_is_rounded_up_by_a_quarter_at_most(size: int) -> None:
    found = rounded(size)
    assert size <= found <= max(1.25 * size + 4096, 4096)
    assert rounded(found) == found


def test_memory_is_used_again_and_never_by_two() -> None:
    shared = Runtime()
    first, second = shared.take(10_000), shared.take(10_000)
    assert first.address != second.address
    addresses = {first.address, second.address}
    del first, second
    third, fourth = shared.take(9_999), shared.take(10_001)
    assert {third.address, fourth.address} == addresses


def test_little_memory_is_kept() -> None:
    shared = Runtime()
    blocks = [shared.take(size) for size in (10_000, 20_000, 40_000) for _ in range(10)]
    blocks += [shared.take(2 * runtime.LARGEST_TAPE)]
    del blocks
    kept = [piece for spare in shared._spare.values() for piece in spare]
    assert len(kept) == 3 * runtime.MOST_SPARE
    for size in range(10_000, 10_000_000, 500_000):
        shared.take(size)
    assert len(shared._spare) <= runtime.MOST_SIZES + 1


@pytest.mark.parametrize("n_threads", [6])
def test_solves_from_several_threads_give_the_right_gradients(n_threads: int) -> None:
    """At the shortest switch interval; fields, batches and solvers differ, so that memory of one would spoil another's."""
    torch_threads, interval = torch.get_num_threads(), sys.getswitchinterval()

    def gradients(number: int) -> list[torch.Tensor]:
        field, x = settings[number]
        solver = (FixedStep("rk4", n_steps=8), Adaptive("dopri5", 1e-4, 1e-4), FixedStep("euler", n_steps=20))[
            number % 3
        ]
        how = {"gradient": Checkpoint()} if number % 2 else {}
        z = solve(field, x, solver=solver, **how).z  # type: ignore[arg-type]
        return list(torch.autograd.grad(z.square().mean(), list(field.parameters())))

    settings = []
    for seed in range(n_threads):
        torch.manual_seed(seed)
        settings.append((SequentialField(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)), torch.randn(60 + seed, 2)))
    wrong: list[int] = []
    try:
        torch.set_num_threads(1)
        expected = [gradients(number) for number in range(n_threads)]

        def work(number: int) -> None:
            right = all(all(map(torch.equal, gradients(number), expected[number])) for _ in range(150))
            wrong.extend([] if right else [number])

        sys.setswitchinterval(1e-6)
        threads = [threading.Thread(target=work, args=(number,)) for number in range(n_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
        torch.set_num_threads(torch_threads)
    assert not wrong
