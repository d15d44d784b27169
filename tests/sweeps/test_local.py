"""Workers on this machine: as many as cores, or as GPUs, of which each sees its own."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.sweeps.samples import SOURCE
from trueode.errors import DeviceError
from trueode.sweeps import SweepDirectory, execute, local, make_plan
from trueode.sweeps.jobs import Job

SEEN = "CUDA_VISIBLE_DEVICES"


def test_each_worker_sees_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SEEN, "3,GPU-5f")
    both, seen = threading.Barrier(2), list[str]()

    def start(*_: Any, env: dict[str, str], **__: Any) -> Any:
        both.wait(60)
        seen.append(env[SEEN])
        raise OSError("not started")

    monkeypatch.setattr(local.subprocess, "Popen", start)
    for gpus, expected in ((["3", "GPU-5f"], {"3", "GPU-5f"}), ([], {"3,GPU-5f"})):
        seen.clear()
        workers = local.LocalWorkers(2, gpus)
        for name in ("a", "b"):
            workers.submit(Job(name, {}, ""))
        results = [workers.next(60) for _ in range(2)]
        workers.close()
        assert {result.status for result in results if result is not None} == {"failed"}
        assert set(seen) == expected


@pytest.mark.parametrize(
    ("base", "there", "count", "expected"),
    [
        ({}, 2, None, (4, [])),
        ({"use_gpu": True}, 2, None, (2, ["0", "1"])),
        ({"use_gpu": True}, 2, 3, (3, ["0", "1"])),
        ({"use_gpu": True}, 8, None, (4, [str(i) for i in range(8)])),
        ({"use_gpu": True, "gpu_ids": "1"}, 2, None, (1, [])),
        ({"use_gpu": True, "gpu_ids": "0,1"}, 2, 2, (2, [])),
    ],
)
def test_how_many_workers(
    base: dict[str, Any],
    there: int,
    count: int | None,
    expected: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(SEEN, raising=False)
    monkeypatch.setattr(execute.gpus, "count", lambda: there)
    monkeypatch.setattr(execute, "cores", lambda: 16)
    made: list[tuple[int, Sequence[str]]] = []
    monkeypatch.setattr(execute, "LocalWorkers", lambda *how: made.append(how))
    plan = make_plan({**SOURCE, "base": {**SOURCE["base"], **base}})
    execute._workers(count, None, list(plan.runs), SweepDirectory(tmp_path))
    assert made == [expected]


def test_no_gpu_is_told_before_any_run(tmp_path: Path) -> None:
    plan = make_plan({**SOURCE, "base": {**SOURCE["base"], "use_gpu": True}})
    with pytest.raises(DeviceError, match="cuda:0 does not exist"):
        execute.run_sweep(plan, SweepDirectory(tmp_path / "sweep"))
