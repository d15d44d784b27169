"""GPUs: which are requested, whether they work, what they are."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pretend import CUDA, pretend
from trueode import gpus as module
from trueode.errors import DeviceError
from trueode.gpus import chosen, claim, count, facts, names, one
from trueode.precision import modes


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> int:
    """Let torch report a number of GPUs."""
    count: int = request.param
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    return count


def refusal(gpu_ids: str) -> str:
    with pytest.raises(DeviceError) as failure:
        chosen(True, gpu_ids)
    assert failure.value.exit_code == 2
    return str(failure.value)


@pytest.mark.parametrize("gpus", [0, 2], indirect=True)
@pytest.mark.parametrize("gpu_ids", ["0", "0,1", "7", "x", ""])
def test_without_use_gpu_nothing_is_asked_for(gpus: int, gpu_ids: str) -> None:
    assert chosen(False, gpu_ids) == []


@pytest.mark.parametrize("gpus", [0], indirect=True)
def test_no_gpu(gpus: int) -> None:
    message = refusal("0")
    assert "cuda:0" in message
    assert "no GPU" in message
    assert "--use_gpu false" in message
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
    assert chosen(True, "0") == [0]
    assert chosen(True, "1") == [1]
    assert chosen(True, "1, 0") == [1, 0]


@pytest.mark.parametrize("gpus", [2], indirect=True)
def test_a_gpu_too_many(gpus: int) -> None:
    message = refusal("0,3")
    assert "cuda:3" in message
    assert "2 GPUs" in message
    assert "--gpu_ids" in message
    assert "cuda:2" in refusal("0,1,2")


@pytest.mark.parametrize(
    ("failure", "remedy"),
    [
        (RuntimeError("The NVIDIA driver on your system is too old (found version 11040). Please"),
         r"too old \(found version 11040\)\)\. Update it"),
        (RuntimeError("Found no NVIDIA driver on your system. Please check"), r"Found no NVIDIA"),
        (AssertionError("Torch not compiled with CUDA enabled"), "not compiled with CUDA"),
    ],
)  # fmt: skip
def test_why_there_is_no_gpu(
    failure: Exception, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warning of torch is no traceback, even where warnings are errors."""

    def unavailable() -> bool:
        warnings.warn(
            "CUDA initialization: The NVIDIA driver on your system is too old", stacklevel=2
        )
        return False

    def init() -> None:
        raise failure

    monkeypatch.setattr(torch.cuda, "is_available", unavailable)
    monkeypatch.setattr(torch.cuda, "init", init)
    assert count() == 0
    with pytest.raises(DeviceError, match=remedy):
        chosen(True, "0")


@pytest.mark.parametrize(
    ("failure", "remedy"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB"), "wait for them"),
        (RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable"), "--gpu_ids"),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "wait for them"),
        (RuntimeError("CUDA error: no kernel image is available for execution"), "torch that fit"),
        (AssertionError("Torch not compiled with CUDA enabled"), "torch that fit"),
    ],
)
def test_a_gpu_that_cannot_be_used(
    failure: Exception, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise failure

    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch, "ones", fail)
    with pytest.raises(DeviceError, match=remedy) as refused:
        claim(CUDA)
    assert refused.value.exit_code == 2
    assert "cuda:0" in str(refused.value)
    assert claim(torch.device("cpu")) == torch.device("cpu")


def test_a_gpu_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[torch.device] = []
    with pretend():
        monkeypatch.setattr(torch.cuda, "set_device", current.append)
        assert claim(CUDA, current=False) == CUDA
        assert not current
        assert one(True, "0", "an audit") == CUDA
        assert current == [CUDA]
        monkeypatch.undo()
    assert one(False, "7", "an audit") == torch.device("cpu")


@pytest.mark.parametrize("gpus", [2], indirect=True)
def test_work_on_one_gpu(gpus: int) -> None:
    with pytest.raises(DeviceError, match="an audit takes one"):
        one(True, "0,1", "an audit")


@pytest.mark.parametrize("gpus", [2], indirect=True)
def test_names_for_processes_with_one_gpu_each(gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert names() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5f,-1,4")
    assert names() == ["3", "GPU-5f"]


def test_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert facts(torch.device("cpu")) == {}
    monkeypatch.setattr(module, "DRIVER", tmp_path / "version")
    with pretend():
        unknown = facts(CUDA)["gpu"]
        (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Module  550.54.15  x\n")
        found = facts(CUDA)["gpu"]
    assert unknown["driver"] is None
    assert found["driver"] == "550.54.15"
    assert found["device"] == "cuda:0"
    assert found["precision"] == modes()._asdict()
    assert found["capability"].count(".") == 1
