"""Data on a GPU: stored there or sent there, with the bits that the CPU has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.pretend import CUDA, Device, Pretended, pretend
from trueode.data import Batch, Batches, Samples, Split, folder, load_dataset, splits
from trueode.data.device import ahead

N = 23
DRAW = torch.Generator().manual_seed(0)
BYTES = torch.randint(256, (N, 5, 4, 3), generator=DRAW, dtype=torch.uint8)
STATES = torch.randn(N, 3, 1, 2, generator=DRAW)
SPLITS = {
    "numbers": Split(torch.randn(N, 1, 2, generator=DRAW), torch.arange(N)),
    "bytes": Split(BYTES[:, None, :, :, 0], torch.arange(N)),
    "colours": Split(BYTES.permute(0, 3, 1, 2), torch.arange(N), dtype=torch.float64),
    "series": Split(STATES[:, 0], STATES, torch.arange(3.0)),
    "own times": Split(STATES[:, 0], STATES, torch.rand(N, 3, generator=DRAW)),
}


@pytest.fixture
def device() -> Iterator[Device]:
    with pretend() as found:
        yield found


def taken(split: Samples, device: torch.device, **how: int) -> list[tuple[Batch, int]]:
    """The batches of more than one epoch, from the second batch on."""
    batches = Batches(split, 5, seed=3, device=device, **how)
    return list(islice(batches.from_iteration(1), 7)) + [(x, 0) for x in batches.in_order()]


def number(x: Tensor | None) -> Tensor | None:
    """A tensor's numbers, which must be on the device."""
    assert x is None or isinstance(x, Pretended)
    return None if x is None else x.inner


def assert_same(there: list[tuple[Batch, int]], here: list[tuple[Batch, int]]) -> None:
    """Equal bits and strides: kernels for other strides round differently."""
    assert [n for _, n in there] == [n for _, n in here]
    for (batch, _), (wanted, _) in zip(there, here, strict=True):
        for found, part in ((batch.x, wanted.x), (batch.y, wanted.y)):
            moved = number(found)
            assert moved is not None
            assert torch.equal(moved, part)
            assert (moved.dtype, moved.stride()) == (part.dtype, part.stride())
        if wanted.t is not None:
            assert batch.t is not None
            assert torch.equal(batch.t, wanted.t)  # on the CPU


@pytest.mark.parametrize("share", [1.0, 0.0])
@pytest.mark.parametrize("name", SPLITS)
def test_batches_have_the_bits_of_the_cpu(
    name: str, share: float, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splits, "SHARE", share)
    split = replace(SPLITS[name])  # not copied by another test
    held = split.on(CUDA).place == CUDA
    assert held == (share > 0 and name != "own times")
    device.reset()
    there = taken(split, CUDA)
    assert not device.waits
    # the orders of the epochs, or inputs and targets of all batches and of one that was sent ahead
    assert device.copies.total() == (3 if held else 2 * (7 + 1 + 5))
    assert_same(there, taken(split, torch.device("cpu")))


def test_data_is_copied_once(device: Device) -> None:
    split = SPLITS["numbers"].first(N - 1)
    for _ in range(3):
        for _ in Batches(split, 5, device=CUDA).in_order():
            pass
    assert device.waits.total() == 2
    assert split.on(torch.device("cpu")) is split
    assert split.on(CUDA) is split.on(CUDA)


class Divisors(TorchDispatchMode):
    """Records by what tensors are divided."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._overloadpacket in (torch.ops.aten.div, torch.ops.aten.div_):
            self.found.append(args[1])
        return func(*args, **(kwargs or {}))


def test_bytes_are_stored_and_become_numbers_there(device: Device) -> None:
    """They are divided by a tensor: of a plain number a GPU takes the reciprocal, which rounds."""
    split = replace(SPLITS["bytes"])
    held = split.on(CUDA)
    assert isinstance(held.x, Pretended)
    assert held.x.dtype == torch.uint8
    with Divisors() as divisors:
        split.batch(torch.tensor([0, 1]), CUDA)
    (divisor,) = divisors.found
    assert isinstance(divisor, Pretended)


@pytest.mark.parametrize("workers", [0, 1])
def test_images_from_disk(
    workers: int, tmp_path: Path, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = pytest.importorskip("PIL.Image")
    for i in range(9):
        path = tmp_path / ("train", "test")[i % 2] / ("ant", "zebra")[i // 2 % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.fromarray(np.full((4, 5, 3), 20 * i, np.uint8)).save(path)
    monkeypatch.setattr(folder, "MEMORY", 0)
    split = load_dataset("image_folder", tmp_path).train
    assert split.on(CUDA).place.type == "cpu"
    device.reset()
    there = taken(split, CUDA, num_workers=workers)
    assert not device.waits
    assert_same(there, taken(split, torch.device("cpu"), num_workers=workers))


@pytest.mark.parametrize("n", range(4))
def test_the_next_batch_is_made_before_one_is_used(n: int) -> None:
    events: list[tuple[str, int]] = []

    def making() -> Iterator[int]:
        for i in range(n):
            events.append(("made", i))
            yield i

    events.extend(("used", i) for i in ahead(making()))
    assert [i for what, i in events if what == "used"] == list(range(n))
    for i in range(n - 1):
        assert events.index(("made", i + 1)) < events.index(("used", i))
        assert ("made", i + 2) not in events[: events.index(("used", i))]
