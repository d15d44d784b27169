"""The models of known flow in benchmarks/ have the stated flows."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from trueode.solvers import Adaptive, solve

pytest.importorskip("torchdiffeq")
pytest.importorskip("torchdyn")
pytest.importorskip("torchode")
BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
CLOSED = [
    *(
        "dose of 1e-2, rk4 x 8",
        "dose of 1e-1, clock, rk4 x 64",
        "protocol, euler x 10",
        "16 waves, rk4 x 256",
    ),
    *("crossed switch, euler x 4", "repelling switch, dopri5 1e-6", "bouncing ball, rk4 x 1024"),
    *("stiff 1e3, dopri5 1e-6", "growth, no blow-up, dopri5 1e-8", "fall from far, dopri5 1e-7"),
]


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that imports a module of benchmarks/."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms_are_the_flows(benchmarks: Any, name: str) -> None:
    models = benchmarks("hard_in_time").MODELS | benchmarks("hard_in_state").MODELS
    known = models[name][1]()
    x = known.draw(10, 1).double()
    lift = getattr(known.model, "upstream", getattr(known.model, "lift", None)) or (lambda x: x)
    head = getattr(known.model, "downstream", None) or known.model.head
    solver = Adaptive("dopri5", 1e-9, 1e-9, max_step=5e-3, per_sample=True, max_steps=100_000)
    with torch.no_grad():
        found = head(solve(known.model.field, lift(x), solver=solver).z)
        torch.testing.assert_close(found, known.exact(x), rtol=1e-4, atol=1e-4)


def test_doses_change_what_they_act_on(benchmarks: Any) -> None:
    doses = benchmarks("doses")
    for kind in doses.KINDS:
        made = doses.deceive(kind, 0)
        acted = float((made.x[:, 2] > 0).double().mean())
        assert 0.5 * acted <= made.true <= 1.0
        assert acted == 1 if kind.spread != "some" else 0.02 < acted < 0.1
    dose = doses.deceive(doses.Kind("clock", "own", 0.1), 1)
    solver = Adaptive("dopri5", 1e-9, 1e-9, max_step=0.01)
    torch.testing.assert_close(
        dose.known.model(dose.x.double(), solver), dose.known.exact(dose.x.double())
    )


def test_what_is_wanted_of_a_verdict(benchmarks: Any) -> None:
    judged = benchmarks("known_flows").judged
    assert judged("ode", 0.011) == judged("ode", math.nan) == "false `ode`"
    assert judged("solver-dependent", 0.0) == "false `solver-dependent`"
    assert judged("inconclusive", 0.001) == "no `ode`"
    assert judged("inconclusive", 0.05) == "no `solver-dependent`"
    assert not any(judged("inconclusive", true) for true in (0.005, 0.02, math.nan))


def test_what_is_measured_is_not_measured_again(tmp_path: Path) -> None:
    words = [
        "--parts",
        "models",
        "--models",
        "repelling switch, dopri5",
        "--output_dir",
        str(tmp_path),
        "--processes",
        "1",
    ]
    command = [sys.executable, str(BENCHMARKS / "audit_deceived.py"), *words]
    for extra in ([], ["--again"]):
        assert (
            "ode"
            in subprocess.run([*command, *extra], check=True, capture_output=True, text=True).stdout
        )
    stored = tmp_path / "audit-deceived-models.jsonl"
    (line,) = stored.read_text().splitlines()
    result = json.loads(line)
    assert [each["verdict"] for each in result["audits"]] == ["ode"] * 3
    stored.write_text(json.dumps({**result, "source": "another"}) + "\n")
    subprocess.run([*command, "--again"], check=True, capture_output=True)
    assert len(stored.read_text().splitlines()) == 2
