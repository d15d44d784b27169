"""Benchmarks refuse wrong requests, and print nothing if interrupted."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

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


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")
def test_the_terms_of_the_regularisers_are_what_they_are_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Closed forms for z' = A z; the error estimate of rk4's embedded method is of order 4."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    terms = importlib.import_module("regularisers")
    matrix = torch.tensor([[0.2, -1.5], [1.0, -0.3]], dtype=torch.float64)
    z = torch.tensor([[[1.0, 0.5]], [[-0.3, 2.0]]], dtype=torch.float64, requires_grad=True)

    def field(t: object, at: Tensor) -> Tensor:
        return at @ matrix.T

    times = torch.linspace(0, 1, 2001, dtype=torch.float64)
    flow = torch.matrix_exp(times[:, None, None] * matrix)
    path = torch.einsum("tij,bj->tbi", flow, z.detach()[:, 0])
    slope, bend = path @ matrix.T, path @ (matrix @ matrix).T
    energy, curvature = (
        float(torch.trapezoid(x.square().sum(2).mean(1), times)) for x in (slope, bend)
    )
    signs = torch.from_numpy(np.random.default_rng(5).choice([-1.0, 1.0], (2, 1, 2)))
    rows = float((signs @ matrix).square().sum((1, 2)).mean())
    assert terms.kinetic(field, z, 200, 5).item() == pytest.approx(energy + rows, rel=1e-4)
    assert terms.taylor(field, z, 200, 5).item() == pytest.approx(curvature, rel=1e-4)
    coarse, fine = (terms.embedded(field, z, n, 5).item() for n in (8, 16))
    assert coarse / fine == pytest.approx(16, rel=0.2)
    assert [terms.span(3, weight) for weight in (0, 1, 2)] == [(3, 4), (2, 4), (2, 5)]
