"""Processes that train together: devices, sums, and order."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed.rendezvous import rendezvous

from trueode import distributed
from trueode.distributed import Ranks, connect, launch, launched
from trueode.errors import DeviceError, UsageError


def test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert not launched()
    ranks = connect(False, "0")
    assert ranks == Ranks(0, 1, torch.device("cpu"))
    assert ranks.is_main
    x = torch.randn(3, requires_grad=True)
    assert ranks.sum(x) is x
    assert [ranks.any(fact) for fact in (True, False)] == [True, False]
    with ranks.main_first():
        pass
    ranks.close()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not launched()
    assert connect(False, "0").world_size == 1


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch report two GPUs that work."""
    monkeypatch.setattr(distributed.gpus, "count", lambda: 2)
    monkeypatch.setattr(distributed.gpus, "claim", lambda device: device)


@pytest.mark.usefixtures("two_gpus")
def test_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert connect(True, "1") == Ranks(0, 1, torch.device("cuda", 1))


@pytest.mark.usefixtures("two_gpus")
def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert launched()
    with pytest.raises(DeviceError, match=r"Process 1.*--gpu_ids 0 names 1"):
        connect(True, "0")


@pytest.mark.usefixtures("two_gpus")
def test_several_gpus_without_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    with pytest.raises(DeviceError, match="NCCL") as failure:
        launch(["-c", "raise SystemExit(7)"], 2)
    assert failure.value.exit_code == 2
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(DeviceError, match="NCCL"):
        connect(True, "0,1")


def join(monkeypatch: pytest.MonkeyPatch, gpus_of: list[str]) -> dict[str, Any]:
    """Connect rank 0 of processes with these GPUs; return how the group is made."""
    store, made = torch.distributed.HashStore(), {}
    for rank, gpu in enumerate(gpus_of[1:], start=1):
        store.set(f"gpu of rank {rank}", gpu)
    monkeypatch.setenv("WORLD_SIZE", str(len(gpus_of)))
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    monkeypatch.setattr(
        distributed, "rendezvous", lambda *_, **__: iter([(store, 0, len(gpus_of))])
    )
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=gpus_of[0])
    )

    def make(backend: str, **how: Any) -> None:
        made.update(how, backend=backend)
        raise RuntimeError("made")

    monkeypatch.setattr(torch.distributed, "init_process_group", make)
    with pytest.raises(UsageError, match="made"):
        connect(True, "0,1")
    return made


@pytest.mark.usefixtures("two_gpus")
def test_a_group_is_bound_to_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    made = join(monkeypatch, ["a", "b"])
    assert (made["backend"], made["device_id"]) == ("nccl", torch.device("cuda", 0))


@pytest.mark.usefixtures("two_gpus")
def test_processes_that_share_a_gpu_do_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BaseException, match=r"processes 0, 2 have the same GPU \(a\)") as failure:
        join(monkeypatch, ["a", "b", "a"])
    assert isinstance(failure.value.__context__ or failure.value, DeviceError)


def place(rank: int, world_size: int, port: int) -> None:
    """Give a process its place among several, as torchrun does."""
    found = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": world_size}
    os.environ.update(
        {key: str(value) for key, value in {**found, "RANK": rank, "LOCAL_RANK": rank}.items()}
    )
    torch.set_num_threads(1)


def silent(folder: Path, rank: int, world_size: int, port: int) -> None:
    """Connect with a process that takes part in the group, but in no exchange."""
    place(rank, world_size, port)
    distributed.PATIENCE = timedelta(seconds=3)
    if rank:
        store, *_ = next(rendezvous("env://"))
        torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
        while not (folder / "refused").exists():
            time.sleep(0.1)
        return
    with pytest.raises(UsageError, match="cannot connect"):
        connect(False, "0")
    (folder / "refused").touch()


def test_a_process_that_does_not_answer(tmp_path: Path) -> None:
    assert exit_codes(silent, tmp_path) == [0, 0]


def work(folder: Path, rank: int, world_size: int, port: int) -> None:
    """The work of one of several processes, which writes its results to a file."""
    place(rank, world_size, port)
    ranks = connect(False, "0")
    assert (ranks.rank, ranks.world_size, ranks.is_main) == (rank, world_size, rank == 0)
    x = torch.tensor([1.0, 0.1 * (rank + 1)], dtype=torch.float64, requires_grad=True)
    total = ranks.sum(x)
    assert not total.requires_grad
    assert x.tolist() == [1.0, 0.1 * (rank + 1)]  # not changed in place
    assert [ranks.any(rank == one) for one in (0, 1, 2)] == [True, True, False]
    for _ in range(2):  # the second time must not see the first
        with ranks.main_first():
            if ranks.is_main:
                time.sleep(0.2)  # the others would overtake
            with (folder / "order").open("a") as file:
                file.write(f"{rank}\n")
        ranks.sum(torch.zeros(1))
    torch.save(total, folder / f"total {rank}")
    ranks.close()
    assert not torch.distributed.is_initialized()
    ranks.close()


def exit_codes(target: Callable[..., None], tmp_path: Path) -> list[int | None]:
    """The exit codes of two processes that do some work together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    children = [context.Process(target=target, args=(tmp_path, rank, 2, port)) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    codes = [child.exitcode for child in children]
    for child in children:
        child.kill()
    return codes


def test_two_processes(tmp_path: Path) -> None:
    assert exit_codes(work, tmp_path) == [0, 0]
    assert (tmp_path / "order").read_text().split() == ["0", "1", "0", "1"]
    totals = [torch.load(tmp_path / f"total {rank}") for rank in range(2)]
    assert torch.equal(totals[0], totals[1])
    torch.testing.assert_close(totals[0].tolist(), [2.0, 0.3], rtol=1e-15, atol=0)
