"""Processes that train together: devices, sums, and order."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from pathlib import Path

import pytest
import torch

from trueode.distributed import Ranks, check_gpus, connect, launched
from trueode.errors import DeviceError


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> int:
    """Let torch report a number of GPUs."""
    count: int = request.param
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    return count


def refusal(gpu_ids: str) -> str:
    with pytest.raises(DeviceError) as failure:
        check_gpus(True, gpu_ids)
    assert failure.value.exit_code == 2
    return str(failure.value)


@pytest.mark.parametrize("gpus", [0, 2], indirect=True)
@pytest.mark.parametrize("gpu_ids", ["0", "0,1", "7", "x", ""])
def test_without_use_gpu_nothing_is_asked_for(gpus: int, gpu_ids: str) -> None:
    assert check_gpus(False, gpu_ids) == []


@pytest.mark.parametrize("gpus", [0], indirect=True)
def test_no_gpu(gpus: int) -> None:
    message = refusal("0")
    assert "cuda:0" in message
    assert "no GPU" in message
    assert "cuda:1" in refusal("1,0")


def test_a_driver_without_a_working_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert "cuda:0" in refusal("0")


@pytest.mark.parametrize("gpus", [0, 2], indirect=True)
@pytest.mark.parametrize(
    "gpu_ids", ["0,x", "x", "0,0", "1,0,1", "-1", "0,-1", "", ",", "0,", "0.5", "0 1", "cuda:0"]
)
def test_what_is_no_list_of_gpus(gpus: int, gpu_ids: str) -> None:
    message = refusal(gpu_ids)
    assert "--gpu_ids" in message
    assert repr(gpu_ids) in message
    assert "'0,1,2'" in message


@pytest.mark.parametrize("gpus", [2], indirect=True)
def test_gpus_that_exist(gpus: int) -> None:
    assert check_gpus(True, "0") == [0]
    assert check_gpus(True, "1") == [1]
    assert check_gpus(True, "1, 0") == [1, 0]


@pytest.mark.parametrize("gpus", [2], indirect=True)
def test_a_gpu_too_many(gpus: int) -> None:
    message = refusal("0,3")
    assert "cuda:3" in message
    assert "2 GPUs" in message
    assert "--gpu_ids" in message
    assert "cuda:2" in refusal("0,1,2")


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


@pytest.mark.parametrize("gpus", [1], indirect=True)
def test_more_processes_than_gpus(gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert launched()
    with pytest.raises(DeviceError, match=r"Process 1.*--gpu_ids 0 names 1"):
        connect(True, "0")


def work(folder: Path, rank: int, world_size: int, port: int) -> None:
    """The work of one of several processes, which writes its results to a file."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": world_size}
    os.environ.update(
        {key: str(value) for key, value in {**place, "RANK": rank, "LOCAL_RANK": rank}.items()}
    )
    torch.set_num_threads(1)
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


def test_two_processes(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    children = [context.Process(target=work, args=(tmp_path, rank, 2, port)) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    codes = [child.exitcode for child in children]
    for child in children:
        child.kill()
    assert codes == [0, 0]
    assert (tmp_path / "order").read_text().split() == ["0", "1", "0", "1"]
    totals = [torch.load(tmp_path / f"total {rank}") for rank in range(2)]
    assert torch.equal(totals[0], totals[1])
    torch.testing.assert_close(totals[0].tolist(), [2.0, 0.3], rtol=1e-15, atol=0)
