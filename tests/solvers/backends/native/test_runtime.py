"""Shared memory of a process is used by one solve at a time."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any
from weakref import ref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from trueode.fields import SequentialField
from trueode.solvers import Adaptive, Checkpoint, FixedStep, solve
from trueode.solvers.backends.native import runtime
from trueode.solvers.backends.native.runtime import Runtime, rounded
from trueode.solvers.backends.native.task import method_of
from trueode.solvers.methods import RK4


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


@pytest.mark.parametrize("spares", [0, 1, 2])
def test_whoever_comes_in_between_takes_other_memory(spares: int) -> None:
    """A tracer acts as another thread that runs between any two instructions."""
    shared = Runtime()
    kept = [shared.take(10_000) for _ in range(spares)]
    blocks: list[runtime.Block] = []

    def tracer(frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        if frame.f_code.co_filename != runtime.__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            sys.settrace(None)
            blocks.append(shared.take(10_000))
            shared.take(10_000)  # and returned at once
            sys.settrace(tracer)
        return tracer

    before = sys.gettrace()
    try:
        sys.settrace(tracer)
        blocks += [shared.take(10_000), shared.take(10_000)]
        kept.clear()
    finally:
        sys.settrace(before)
    assert len(blocks) > 20
    pieces = [shared.take(10_000) for _ in range(4)]
    addresses = [block.address for block in [*blocks, *pieces]]
    assert len(set(addresses)) == len(addresses)


def test_addresses_live_as_long_as_what_refers_to_them() -> None:
    """A solve is differentiated after its method was dropped from the cache of methods."""
    field, x = (
        SequentialField(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)),
        torch.randn(4, 2, requires_grad=True),
    )
    z = solve(field, x, solver=FixedStep("rk4", n_steps=2)).z
    method = ref(method_of(RK4).a)
    method_of.cache_clear()
    gc.collect()
    assert method() is not None
    del z
    gc.collect()
    assert method() is None


def test_little_memory_is_kept() -> None:
    shared = Runtime()
    blocks = [shared.take(size) for size in (10_000, 20_000, 40_000) for _ in range(10)]
    blocks += [shared.take(size * runtime.LARGEST_TAPE) for size in (2, 2, 3, 10)]
    del blocks
    kept = [piece for spare in shared._spare.values() for piece in spare]
    assert len(kept) == 3 * runtime.MOST_SPARE
    assert sum(len(spare) for spare in shared._large.values()) == 1
    (large,) = shared._large[next(iter(shared._large))]
    assert shared.take(large.numel()).address == large.data_ptr()
    for size in range(10_000, 10_000_000, 500_000):
        shared.take(size)
    assert len(shared._spare) <= runtime.MOST_SIZES + 1


@pytest.mark.parametrize("n_threads", [6])
def test_solves_from_several_threads_give_the_right_gradients(n_threads: int) -> None:
    """With the shortest switch interval, and fields, batches and solvers that differ."""
    torch_threads, interval = torch.get_num_threads(), sys.getswitchinterval()

    def gradients(number: int) -> list[torch.Tensor]:
        field, x = settings[number]
        solver = (
            FixedStep("rk4", n_steps=8),
            Adaptive("dopri5", 1e-4, 1e-4),
            FixedStep("euler", n_steps=20),
        )[number % 3]
        how = {"gradient": Checkpoint()} if number % 2 else {}
        z = solve(field, x, solver=solver, **how).z
        return list(torch.autograd.grad(z.square().mean(), list(field.parameters())))

    settings = []
    for seed in range(n_threads):
        torch.manual_seed(seed)
        settings.append(
            (
                SequentialField(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)),
                torch.randn(60 + seed, 2),
            )
        )
    wrong: list[int] = []
    try:
        torch.set_num_threads(1)
        expected = [gradients(number) for number in range(n_threads)]

        def work(number: int) -> None:
            right = all(
                all(map(torch.equal, gradients(number), expected[number])) for _ in range(50)
            )
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
