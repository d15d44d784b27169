"""``trueode sweep`` and ``trueode reproduce``: bad requests, help, and passed arguments."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trueode import sweeps
from trueode.cli.main import main
from trueode.cli.reproduce import NAMES
from trueode.reproduction import results


@pytest.fixture
def plan(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text("axes: {random_seed: [0, 1]}")
    return str(path)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["sweep"], "PLAN.yaml"),
        (["sweep", "nothing.yaml"], "cannot be read"),
        (["sweep", "PLAN", "--nitr", "3"], "'niter'"),
        (["sweep", "PLAN", "--worker", "3"], "'workers'"),
        (["sweep", "PLAN", "--workers", "0"], "at least 1"),
        (["sweep", "PLAN", "more"], "Unexpected argument"),
        (["sweep", "PLAN", "--niter", "-1"], "impossible"),
        (["sweep", "status"], "status DIR"),
        (["sweep", "status", "nowhere"], "There is no sweep"),
        (["reproduce", "fig4"], "Did you mean 'fig"),
        (["reproduce", "fig4a", "--scale", "huge"], "invalid choice"),
        (["reproduce", "fig4a", "--nme", "x"], "'name'"),
    ],
)
def test_bad_requests_end_with_2_and_one_line(
    words: list[str],
    told: str,
    plan: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([plan if word == "PLAN" else word for word in words]) == 2
    printed = capsys.readouterr()
    assert told in printed.err
    assert len(printed.err.strip().splitlines()) == 1
    assert printed.out == ""


@pytest.mark.parametrize("command", ["sweep", "reproduce"])
def test_help_is_quick_and_complete(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(flag in shown for flag in ("--dry_run", "--workers", "--scheduler", "--output_dir"))
    if command == "reproduce":
        assert all(name in shown for name in NAMES)
    code = (
        f"import sys; from trueode.cli.main import main; main(['{command}', '--help']); "
        "sys.exit(bool({'torch', 'numpy', 'matplotlib', 'distributed'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_flags_reach_the_sweep(plan: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Any] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sweeps,
        "run_sweep",
        lambda plan, directory, **rest: seen.append((plan, directory, rest)) or 1,
    )
    assert main(["sweep", plan, "--workers", "3", "--niter", "7", "--scheduler", "tcp://x:1"]) == 1
    found, directory, rest = seen[0]
    assert [(run.options.niter, run.options.random_seed) for run in found.runs] == [(7, 0), (7, 1)]
    assert directory.path == Path("experiments/mine")
    assert rest == {"workers": 3, "scheduler": "tcp://x:1"}


def test_all_goes_on_after_data_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from trueode.errors import DataError

    done: list[str] = []

    def reproduce(name: str, scale: str, **rest: Any) -> int:
        done.append(name)
        if name == "mnist":
            raise DataError("no images")
        return 0

    monkeypatch.setattr(results, "reproduce", reproduce)
    assert main(["reproduce", "all"]) == 1
    assert done == list(NAMES)
    assert "mnist: no images" in capsys.readouterr().err
