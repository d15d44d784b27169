"""Benchmarks refuse wrong requests, and print nothing if interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    "script", ["run.py", "jobs.py", "sweep.py", "audit_truth.py", "audit_deceived.py"]
)
@pytest.mark.parametrize(
    "words",
    [
        "--unknown",
        "--rows unknown",
        "--seconds 0",
        "--jobs unknown",
        "--niter 0",
        "--before unknown",
        "--runs 0",
    ],
)
def test_a_wrong_request_ends_with_code_2(script: str, words: str) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *words.split()]
    assert subprocess.run(command, capture_output=True).returncode == 2


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_benchmark_tells_nothing(number: signal.Signals) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "run.py"), "--rows", "processes"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        assert process.stderr.readline() == "measuring processes\n"
        process.send_signal(number)
        assert process.stderr.read().splitlines()[-1] == "interrupted, nothing measured"
        assert process.stdout.read() == ""
    assert process.returncode == 130
