"""Triton's kernels, interpreted on the CPU, give what calling the field gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.solvers.backends.gpu.interpreted import CASES, CHOICES, pairs
from trueode.solvers import FixedStep, solve
from trueode.solvers.backends import gpu, native
from trueode.solvers.backends.gpu import library
from trueode.solvers.backends.native.runtime import NOT_ASKED, RUNTIME

ROOT = Path(__file__).resolve().parents[4]
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
TOLERANCE = {"float32": 2e-6, "float64": 1e-12}


def told_by(module: str, folder: Path, **variables: str) -> Any:
    """What a module of this folder prints, in a process that imports Triton anew."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("TRITON_")
    }
    environment |= {"TRUEODE_TRITON": "on", "TRITON_CACHE_DIR": str(folder), **variables}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "src")))
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-m", f"{__package__}.{module}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_cases_test_all_choices() -> None:
    tested = {choice for case in CASES for pair in pairs(case) for choice in pair}
    assert tested == {(name, value) for name, values in CHOICES.items() for value in values}


@needs_triton
def test_interpreted_kernels(tmp_path: Path) -> None:
    """All cases in one test, since the process that interprets them takes long to start."""
    told = told_by("interpreted", tmp_path, TRITON_INTERPRET="1")
    for case, found in zip(CASES, told["cases"], strict=True):
        assert found["served"], case
        assert found["error"] < TOLERANCE[case.dtype], case  # NaN, where nothing was written, fails
        assert found["equal"], case
        assert found["counts"] == found["expected counts"], case
        assert found["steps"] == [2, 2], case
    for name, found in told["fields"].items():
        assert found["served"], name
        assert found["error"] < TOLERANCE["float32" if name == "wide" else "float64"], name
        assert found["equal"], name
    for name, found in told["graph"].items():  # gradients of gradients, batched ones, and none
        assert found["error"] < 1e-12, name
    for name, (served, error) in told["refusals"].items():
        assert not served, name
        assert error < 1e-12, name
    for name, (warned, error) in told["broken"].items():
        assert len(warned) == 1, name
        assert "no compiler" in warned[0]
        assert error < 1e-12, name


@needs_triton
def test_code_for_gpus_is_exact_and_repeatable(tmp_path: Path) -> None:
    for found in told_by("compiled", tmp_path):
        for name, kernel in found.items():
            assert not kernel["unwanted"], name
            assert kernel["compiled"] == 1, name


@pytest.fixture
def asked_anew(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(RUNTIME, "triton", NOT_ASKED)
    monkeypatch.delenv(library.TRITON.variable, raising=False)
    return monkeypatch


@pytest.mark.parametrize("value", [None, "", "off"])
def test_kernels_are_off_by_default(asked_anew: pytest.MonkeyPatch, value: str | None) -> None:
    if value is not None:
        asked_anew.setenv(library.TRITON.variable, value)
    assert library.kernels() is None
    assert f"{library.TRITON.variable}=off" in gpu.describe()


def test_an_unknown_value_is_warned_of(asked_anew: pytest.MonkeyPatch) -> None:
    asked_anew.setenv(library.TRITON.variable, "yes")
    with pytest.warns(RuntimeWarning, match="yes.*on or off"):
        assert library.kernels() is None
    assert library.kernels() is None  # without a second warning


def test_without_triton_everything_runs(asked_anew: pytest.MonkeyPatch) -> None:
    asked_anew.setenv(library.TRITON.variable, "on")
    asked_anew.setitem(sys.modules, "triton", None)
    asked_anew.delitem(sys.modules, f"{gpu.__name__}.kernels", raising=False)
    field, z0 = nn.Linear(2, 2), torch.ones(3, 2)
    how = {"solver": FixedStep("rk4", n_steps=2)}
    with native.using("off"):
        with pytest.warns(RuntimeWarning, match="Triton.*slower"):
            found = solve(lambda t, z: field(z), z0, **how)
        again = solve(lambda t, z: field(z), z0, **how)
    assert torch.equal(found.z, again.z)
    assert "missing" in gpu.describe()
