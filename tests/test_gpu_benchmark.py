"""The benchmark for GPUs runs all of its sections without one, and tells what it did."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="sections are forked")


def call(words: str, out: Path) -> tuple[int, str]:
    """Run the script; return exit code and output."""
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *words.split()]
    done = subprocess.run(
        [*command, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return done.returncode, done.stdout


def report(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return found


def test_all_sections_run_without_a_gpu(tmp_path: Path) -> None:
    code, told = call("--device pretend --budget 400", tmp_path)
    found = report(tmp_path)
    assert code == 0, told + json.dumps(found, indent=1)
    statuses = {name: section["status"] for name, section in found["sections"].items()}
    assert set(statuses.values()) <= {"done", "missing"}, statuses
    assert {row["result"] for row in found["targets"]} == {"unmeasured: no GPU"}
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    for section in found["sections"].values():
        for row in section["rows"]:
            assert row["name"] in page
    # a second call repeats nothing
    done = [name for name, status in statuses.items() if status == "done"]
    assert call(f"--device pretend --sections {' '.join(done)}", tmp_path)[0] == 0
    assert report(tmp_path) == found


@pytest.mark.parametrize(
    "words",
    [
        "--budget 0",
        "--sections unknown",
        "--device tpu",
        "--images nowhere",
        *([] if torch.cuda.is_available() else ["--device cuda"]),
    ],
)
def test_a_wrong_request_ends_with_code_2(words: str, tmp_path: Path) -> None:
    code, told = call(words, tmp_path / "out")
    assert code == 2, told
    assert "Traceback" not in told


def test_results_of_another_device_are_not_continued(tmp_path: Path) -> None:
    (tmp_path / "call.json").write_text('{"device": "cuda", "tiny": false}')
    assert call("--device cpu --sections machine", tmp_path)[0] == 2


def test_an_interrupted_call_writes_its_report(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--device", "cpu"]
    with subprocess.Popen(
        [*command, "--out", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stderr is not None
        while "parity" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == 130
    statuses = {name: each["status"] for name, each in report(tmp_path)["sections"].items()}
    assert statuses["machine"] == "done"
    assert statuses["figure4d"] == "not begun"


def wrong(bench: Any) -> None:
    """A section with a row that holds, one that does not, one that raises, one that lacks much."""
    bench.row("right", lambda: {"figure": 1.0})
    bench.row("false", lambda: {"wrong": "above the limit"})
    bench.row("raising", lambda: [][0])
    bench.row("lacking", lambda: importlib.import_module("diffrax.unknown"))


def broken(bench: Any) -> None:
    """A section whose process dies."""
    os.kill(os.getpid(), signal.SIGSEGV)


def endless(bench: Any) -> None:
    """A section that never ends, as its child."""
    bench.row("before", lambda: {"child": bench.start(sleeping).pid})
    sleeping(bench)


def sleeping(bench: Any) -> None:
    time.sleep(600)


def repeated(bench: Any) -> None:
    bench.row("counted", lambda: {"at": time.time()})
    bench.row("again", lambda: {"at": time.time()}, again=True)
    if not (bench.out / "second").exists():
        (bench.out / "second").touch()
        raise ValueError("the first time")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("gpu")


def run(gpu: Any, out: Path, seconds: float, **works: str) -> dict[str, Any]:
    """Run sections of this file; return their results."""
    bench = gpu.Bench("", "cpu", True, out)
    sections = {
        name: gpu.Section(f"tests.test_gpu_benchmark:{work}", 1) for name, work in works.items()
    }
    gpu.Call(bench, time.time() + seconds, sections).run()
    return {name: json.loads((out / "sections" / f"{name}.json").read_text()) for name in works}


def test_a_failure_is_told_and_ends_neither_section_nor_call(gpu: Any, tmp_path: Path) -> None:
    found = run(gpu, tmp_path, 60, one="wrong", two="broken", three="repeated")
    assert [found[name]["status"] for name in ("one", "two", "three")] == ["failed"] * 3
    rows = {row.pop("name"): row for row in found["one"]["rows"]}
    assert rows["right"] == {"figure": 1.0}
    assert "IndexError" in rows["raising"]["error"]
    assert set(rows["lacking"]) == {"missing"}
    assert found["one"]["why"] == "false, raising"
    assert "the first time" in found["three"]["why"]
    later = run(gpu, tmp_path, 60, three="repeated")["three"]
    assert later["status"] == "done"
    before, after = ([row["at"] for row in each["rows"]] for each in (found["three"], later))
    assert before[0] == after[0]
    assert before[1] < after[1]


def test_a_section_is_killed_with_its_children_when_its_time_is_over(
    gpu: Any, tmp_path: Path
) -> None:
    found = run(gpu, tmp_path, 6, one="endless")["one"]
    assert found["status"] == "stopped"
    assert not lives(found["rows"][0]["child"])


def lives(pid: int) -> bool:
    """Whether a process is still there after some seconds."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.1)
    return True


def sections(**rows: dict[str, Any]) -> dict[str, Any]:
    """Results with the rows of training steps."""
    from collections import defaultdict

    speed = [{"name": name.replace("_", ", "), **row} for name, row in rows.items()]
    empty: dict[str, Any] = {"status": "not begun", "why": "", "rows": []}
    return defaultdict(lambda: empty, speed={**empty, "rows": speed})


def test_targets_are_met_missed_or_unmeasured(gpu: Any) -> None:
    judge = importlib.import_module("gpu_report")
    target = judge.speedup("steps", 20, "a, b", "a, c")

    def result(on_gpu: bool = True, **rows: dict[str, Any]) -> str:
        return str(judge.judged(target, sections(**rows), on_gpu)["result"])

    assert result(a_b={"ms": 40.0}, a_c={"ms": 2.0}) == "met"
    assert result(a_b={"ms": 40.0}, a_c={"ms": 2.1}) == "missed"
    assert result(False, a_b={"ms": 40.0}, a_c={"ms": 2.0}) == "unmeasured: no GPU"
    assert "not installed: b" in result(a_b={"missing": "not installed: b"}, a_c={"ms": 1.0})
    assert result(a_b={"ms": 1.0}).startswith("unmeasured: a, c: ")
    minutes = judge.Target("run", 10, "min", (("speed", "a", "minutes"),))
    row = judge.judged(minutes, sections(a={"minutes": 9.0, "projected": "yes"}), True)
    assert (row["result"], "projected" in row["figure"]) == ("met", True)
